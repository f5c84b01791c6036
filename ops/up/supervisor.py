"""Keeps the parts of the service alive, passes their output on, and stops them in order."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Self

from ops.up.errors import PartFailed
from ops.up.output import Output
from ops.up.part import TOO_OFTEN, WINDOW, Part, describe_end, now
from ops.up.vitals import Ear

log = logging.getLogger("rockchipllama.up")

USAGE = 2
"""The exit code of a part that refuses its settings; starting it again would change nothing."""


HURRIED = 1.0
"""Seconds a part gets to stop once the user has pressed Ctrl-C again."""


class StopAsked(Exception):
    """Raised inside `turn` when Ctrl-C or a signal asked to stop."""


class Supervisor:
    """A loop over signals, output and ends of processes. One thread; `turn` is one round of it.

    As a context manager it takes over SIGINT, SIGTERM, SIGHUP and SIGCHLD, and the lifeline's write end exists.
    """

    def __init__(self) -> None:
        self.lifeline = -1
        """The read end that every part must inherit."""
        self._lifeline_kept = -1
        self._asked = 0
        self._stopping = False
        self._started: list[Part] = []
        self._kept: list[Part] = []
        self._outputs: set[Output] = set()
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._before: dict[int, object] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self.lifeline, self._lifeline_kept = os.pipe()
        for sock in (self._wake, self._waker):
            sock.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._wakeup_before = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._ask)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned
        for part in self._started:
            part.close()
        for output in self._outputs:
            output.close()
        self._selector.close()
        self._wake.close()
        self._waker.close()
        self.let_go()
        os.close(self.lifeline)

    def start(self, part: Part) -> None:
        """Start a part; when it ends, nothing is done about it until `keep`."""
        self._started.append(part)
        self._start(part)

    def keep(self, part: Part) -> None:
        """Keep a started part alive from now on."""
        self._kept.append(part)

    def hear(self, ear: Ear) -> None:
        """Have `ear` read whenever something is said to it."""
        self._selector.register(ear.fd, selectors.EVENT_READ, ear)

    def wake(self) -> None:
        """End the current wait. From any thread."""
        with contextlib.suppress(BlockingIOError, OSError):
            self._waker.send(b"\0")

    def turn(self, limit: float | None = None) -> None:
        """Wait for something to happen, at most `limit` seconds, and see to it.

        Raises `StopAsked`, and `PartFailed` when a part cannot be kept alive.
        """
        self._wait(limit)
        for part in self._kept:
            self._see_to(part)
        if self._asked:
            raise StopAsked

    def until(self, reached: Callable[[], bool], limit: float) -> bool:
        """Turn until `reached()` is true; false when that takes more than `limit` seconds."""
        deadline = now() + limit
        while not reached():
            if (left := deadline - now()) <= 0:
                return False
            self.turn(min(left, 0.1))
        return True

    def stop(self, order: Sequence[tuple[Part, float]]) -> None:
        """End each part in turn: ask, wait so many seconds, kill. A second Ctrl-C while this runs hurries it."""
        self._stopping = True
        asked_before = min(self._asked, 1)  # two may have come at once
        for part, patience in order:
            part.terminate()
            began = now()
            while part.pid is not None:
                hurried = self._asked > asked_before
                left = began + (min(patience, HURRIED) if hurried else patience) - now()
                if left <= 0:
                    if not hurried:
                        log.warning("%s did not stop within %.0f s; killing it", part.name, patience)
                    part.kill()
                self._wait(min(1.0, max(0.05, left)))
                part.ended()

    def let_go(self) -> None:
        """Close the lifeline: whatever still holds its other end leaves. Twice is safe."""
        if self._lifeline_kept >= 0:
            os.close(self._lifeline_kept)
        self._lifeline_kept = -1

    def drain(self, limit: float) -> bool:
        """Read until every writer of every output is gone, grandchildren included; false after `limit` seconds."""
        deadline = time.monotonic() + limit
        while self._outputs and time.monotonic() < deadline:
            self._wait(0.1)
        return not self._outputs

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked += 1

    def _start(self, part: Part) -> None:
        output = part.start()
        self._outputs.add(output)
        self._selector.register(output.fd, selectors.EVENT_READ, output)

    def _wait(self, limit: float | None) -> None:
        planned = [part.start_again_at for part in self._kept if part.start_again_at is not None]
        if planned and not self._stopping:
            until_start = max(0.0, min(planned) - now())
            limit = until_start if limit is None else min(limit, until_start)
        for key, _ in self._selector.select(limit):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(4096)
            elif not key.data.read():
                self._selector.unregister(key.fd)
                self._outputs.discard(key.data)
                key.data.close()

    def _see_to(self, part: Part) -> None:
        if part.start_again_at is not None and part.start_again_at <= now():
            self._start(part)
        status = part.ended()
        if status is None or self._asked:
            return
        self._wait(0.05)  # its last words
        if status == USAGE:
            raise PartFailed(f"{part.name} does not start with these settings; above it says why.", usage=True)
        pause = part.plan_restart(now())
        if pause is None:
            raise PartFailed(
                f"{part.name} keeps dying ({describe_end(status)}, {TOO_OFTEN} times in {WINDOW:.0f} s), "
                f"so everything stops. "
                f"Its log is {part.log_path}. Its last lines:\n" + _indented(part)
            )
        log.warning("%s ended unexpectedly (%s); starting it again in %.1f s", part.name, describe_end(status), pause)


def _indented(part: Part) -> str:
    return "\n".join(f"  {line}" for line in part.tail) or "  (nothing)"
