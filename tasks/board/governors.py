"""The governors of a board's clocks: raised while its workers are at jobs, and given back."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from npu.hardware import Clock, read_clocks, read_soc
from npu.hardware.kernel import ROOT, read
from npu.whole_file import write_whole
from tasks.board.settings import RaiseGovernors

log = logging.getLogger("rockchipllama.board")

PERFORMANCE = "performance"
IDLE = 5.0
"""Seconds without a job after which they are given back: between the answers of a conversation nothing is to change."""


class Governors:
    """Those of the CPU, the NPU and the memory, where they can be `performance` and are not. Used by one thread.

    What was there before is remembered in a file until it is given back in order, so that the next agent gives it back where
    this one was killed. It is written when something else is to be remembered, not with each job: SD cards wear.
    """

    def __init__(
        self,
        when: RaiseGovernors,
        data_dir: Path,
        root: Path = ROOT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`root` is another tree, for tests; `clock` counts seconds."""
        self._when = when
        self._file = data_dir / "run" / "governors.json"
        self._root = root
        self._clock = clock
        self._last_work = float("-inf")
        self._before: Mapping[str, str] = {}
        """Files of governors with what they held before; also after that was given back."""
        self._raised = False
        self.able = when != "never" and read_soc(root) is not None
        """There may be something to raise."""

    def give_back_an_earlier_agents(self) -> None:
        """Where it was killed, and the machine was not started anew since. Raises `OSError` when its file cannot be removed."""
        try:
            kept = json.loads(self._file.read_bytes())
            same, before = kept["boot"] == self._boot(), {str(path): str(name) for path, name in kept["before"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("what an earlier agent noted of governors cannot be read: %s", error)
        else:
            if same:
                self._before = before
                self._lower()
        self._before = {}
        self._file.unlink()

    def look(self, anybody_at_work: Callable[[], bool]) -> None:
        """Raise them, or give them back, as it is time for. Raises what `anybody_at_work` does, and `OSError` when what is
        there cannot be remembered; nothing is raised then."""
        if not self.able:
            return
        if self._when == "always" or anybody_at_work():
            self._last_work = self._clock()
        wanted = self._clock() - self._last_work < IDLE
        if wanted and not self._raised:
            self._raise()
        elif self._raised and not wanted:
            self._lower()

    def give_back(self) -> None:
        """Give them back for good. Raises `OSError` when the file cannot be removed."""
        self._lower()
        self._before = {}
        self._file.unlink(missing_ok=True)

    def _raise(self) -> None:
        slow = [clock for clock in read_clocks(self._root) if PERFORMANCE in clock.governors]
        before = {_file_of(clock): clock.governor for clock in slow if clock.governor and clock.governor != PERFORMANCE}
        if before != self._before:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._file, json.dumps({"boot": self._boot(), "before": before}).encode())
            self._before = before
        self._raised = True
        for path in before:
            why = self._set(path, PERFORMANCE)
            if why is not None:
                log.warning(
                    "the governors of this board cannot be raised while jobs run, so answers are slower than they could be: "
                    "/%s %s. `sudo ops/board/performance-mode on` raises them until the next start of the board; "
                    "ROCKCHIPLLAMA_GOVERNORS=never ends this warning.",
                    path,
                    why,
                )
                self.able = False
                self.give_back()
                return

    def _lower(self) -> None:
        self._raised = False
        for path, name in self._before.items():
            # What somebody else has set meanwhile stays.
            if read(self._root / path) == PERFORMANCE and (why := self._set(path, name)) is not None:
                log.warning("the governor %s cannot be given back: /%s %s", name, path, why)

    def _set(self, path: str, name: str) -> str | None:
        """Why it cannot be set; None when it was."""
        try:
            (self._root / path).write_text(name)
        except PermissionError:
            return "may be written by root only"
        except OSError as error:
            return f"cannot be written ({error.strerror or error})"
        # Some drivers take a word and do nothing.
        return None if read(self._root / path) == name else "does not take it"

    def _boot(self) -> str:
        return read(self._root / "proc/sys/kernel/random/boot_id")


def _file_of(clock: Clock) -> str:
    if clock.of == "cpu":
        return f"sys/devices/system/cpu/cpufreq/{clock.name}/scaling_governor"
    return f"sys/class/devfreq/{clock.name}/governor"
