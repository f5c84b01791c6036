"""One part of the service: the process that runs it, and when to start it again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from ops import environment
from ops.up.output import TAIL, LogFile, Output
from tasks import systemd

WINDOW = 60.0
"""Seconds in which deaths are counted together."""
TOO_OFTEN = 5
"""Deaths within the window after which a part is given up."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0


class Part:
    """A process to keep alive. Its children may outlive it for a moment; they write into the same output."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        stdin: int | None = None,
        show: Callable[[bytes], None] | None = None,
        whole_group: bool = False,
        secrets: bool = False,
        mend: Callable[[], object] | None = None,
        again: Callable[[], object] | None = None,
    ) -> None:
        """`whole_group`: what the process started must not outlive it, so a death takes the rest of its group along.
        `secrets`: it may know the API's. `mend`: called before it is started again when it does not stay alive. `again`: called
        whenever it was started again, in a thread of its own."""
        self.name = name
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.start_again_at: float | None = None
        """When to start it again, by `time.monotonic`; None while it runs or is not wanted."""
        self.started = 0.0
        """When it was started last, by the same clock."""
        self._command = list(command)
        self._log = LogFile(log)
        self._env = dict(env or {})
        self._fds = tuple(fds)
        self._stdin = stdin
        self._show = show
        self._whole_group = whole_group
        self._without = systemd.VARIABLES | (frozenset() if secrets else environment.API_SECRETS)
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths: deque[float] = deque(maxlen=TOO_OFTEN)
        self._mend = mend
        self._again = again

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def log_path(self) -> Path:
        """Where its output is kept."""
        return self._log.path

    def start(self) -> Output:
        """Start the process; its output is the caller's to read."""
        if self._mend is not None and self.start_again_at is not None and len(self._recent_deaths(now())) > 1:
            self._mend()
        again = self._again if self.start_again_at is not None else None
        self.start_again_at = None
        reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL if self._stdin is None else self._stdin,
                stdout=writer,
                stderr=writer,
                env=environment.for_child(self._env, self._without),
                pass_fds=self._fds,
                start_new_session=True,  # Ctrl-C is for `up`, which stops its parts in order
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self.started = now()
        if again is not None:
            threading.Thread(target=again, name=f"{self.name} again", daemon=True).start()
        return Output(reader, self._log, self.tail, self._show)

    def ended(self) -> int | None:
        """Its exit status, once, after it has ended; None otherwise."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        if self._whole_group:
            self._signal_group(self._process.pid, signal.SIGKILL)
        self._process = None
        return status

    def plan_restart(self, now: float) -> float | None:
        """Count a death; the seconds to wait before the next start, or None when it dies too often."""
        self._deaths.append(now)
        recent = self._recent_deaths(now)
        if len(recent) >= TOO_OFTEN:
            return None
        pause: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (len(recent) - 1))
        self.start_again_at = now + pause
        return pause

    def _recent_deaths(self, now: float) -> list[float]:
        return [death for death in self._deaths if now - death <= WINDOW]

    def terminate(self) -> None:
        """Ask it to stop in order."""
        self.start_again_at = None
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End it at once, with what it started: workers lead sessions of their own."""
        self.start_again_at = None
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for descendant in psutil.Process(self._process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        descendant.kill()
            self._signal_group(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close its log."""
        self._log.close()

    @staticmethod
    def _signal_group(pid: int, number: int) -> None:
        # The process leads a session of its own, so its group is what it started; nobody else is ever in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)


def describe_end(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def now() -> float:
    """The clock that restarts are planned by."""
    return time.monotonic()
