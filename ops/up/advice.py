"""What would be better on a board, as the doctor says while the first model loads."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ops import environment

PATIENCE = 10.0
"""Seconds that are waited for it once its word is wanted."""
TOLD = frozenset({"setting_unknown", "memory_short"})
"""Codes that are left out: `up` says the first itself, and the second is only the model that is being loaded."""


class Advice:
    """A doctor at work in a process of its own, whose memory is given back when it is done."""

    def __init__(self, command: Sequence[str]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - `close` does; a pipe that nobody reads would hold the doctor up
        self._doctor = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.DEVNULL,
            env=environment.for_child({}, without=environment.API_SECRETS | environment.BOARD_SECRETS),
        )

    def lines(self, until: Callable[[Callable[[], bool], float], bool]) -> Iterator[str]:
        """A sentence for each thing that could be better, the gravest first, and what to type for it. None where the doctor has
        died or takes too long: it can be asked again by hand. `until` waits for something, so many seconds at most, and raises
        where it is not to be waited for any longer."""
        try:
            until(lambda: self._doctor.poll() is not None, PATIENCE)
            self._said.seek(0)
            findings: list[dict[str, Any]] = json.load(self._said)["findings"]
        except (ValueError, LookupError):
            return
        finally:
            self.close()
        for level in ("problem", "warning", "note"):
            for finding in findings:
                if finding["level"] == level and finding["code"] not in TOLD:
                    yield finding["title"]
                    if finding["command"]:
                        yield f"  $ {finding['command']}"

    def close(self) -> None:
        """Ask no more. Twice is safe."""
        with contextlib.suppress(OSError):
            self._doctor.kill()
        self._doctor.wait()
        self._said.close()
