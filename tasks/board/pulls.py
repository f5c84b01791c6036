"""The pulls of one board: each in a thread, told to whoever listens, and gone on with when nobody does."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec
import redis

from npu.errors import ModelRefused
from tasks import keys
from tasks.board.pull.fetch import pull
from tasks.board.pull.shelf import Shelf
from tasks.commands import CommandCode, PullProgress, PullStep
from tasks.connection import UNREACHABLE
from tasks.errors import CommandFailed
from tasks.jobs import new_job_id
from tasks.prompting.failures import without_folders

log = logging.getLogger("rockchipllama.board")

AT_ONCE: Final = 4
"""Pulls that may be under way; more would share the same network and disk."""
REMEMBERED: Final = 32
"""Pulls whose end is remembered, for who asks afterwards."""


class _Stopped(Exception):
    """Raised in a pull whose board is being stopped."""


class Pulls:
    """`shelf` is made with how to wait; `look` announces what has come, and returns when that is done.

    Usable from any thread.
    """

    def __init__(
        self,
        client: redis.Redis,
        board: str,
        shelf: Callable[[Callable[[float], object]], Shelf],
        look: Callable[[], None],
    ) -> None:
        self._client = client
        self._channel = keys.pulls(board)
        self._shelf = shelf(self._wait)
        self._look = look
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._last: OrderedDict[str, PullProgress] = OrderedDict()
        """The last word of each pull, by its id; the oldest first."""

    def close(self) -> None:
        """End what is under way; what has arrived is kept. Twice is safe."""
        self._stopped.set()

    def start(self, model: str) -> PullProgress:
        """Begin a pull, or join the one of the same name; how far it is. Raises `CommandFailed`."""
        wanted = model.strip().lower()
        with self._lock:
            under_way = [progress for progress in self._last.values() if not progress.ended]
            for progress in under_way:
                if progress.model.strip().lower() == wanted:
                    return progress
            if len(under_way) >= AT_ONCE:
                raise CommandFailed(
                    CommandCode.NOT_POSSIBLE, f"{AT_ONCE} models are being pulled already. Try again when one is there."
                )
            first = PullProgress(pull=new_job_id(), model=model, number=0, step=PullStep.CHOOSING)
            self._last[first.pull] = first
            while len(self._last) > REMEMBERED:
                self._last.pop(next(key for key, progress in self._last.items() if progress.ended))
        threading.Thread(target=self._run, args=(first,), name=f"pull {model}", daemon=True).start()
        return first

    def state(self, pull_id: str) -> PullProgress:
        """How far a pull is. Raises `CommandFailed` for one that nobody remembers."""
        with self._lock:
            found = self._last.get(pull_id)
        if found is None:
            raise CommandFailed(
                CommandCode.PULL_FORGOTTEN, "The board was restarted meanwhile. Pull again: it goes on where it ended."
            )
        return found

    def _run(self, first: PullProgress) -> None:
        log.info("pulling %s", first.model)
        number = 0
        try:
            for progress in pull(first.model, self._shelf, pull_id=first.pull, local=False):
                number = progress.number
                if self._stopped.is_set():
                    raise _Stopped
                if progress.step is PullStep.DONE:
                    self._look()  # whoever hears of its end may ask it at once
                    log.info("pulled %s as %s", first.model, progress.id)
                self._tell(progress)
        except Exception as error:
            self._tell(self._failed(first, number + 1, error))

    def _failed(self, first: PullProgress, number: int, error: Exception) -> PullProgress:
        code, message = "internal", "A defect ended this pull; the board's log has the details."
        if isinstance(error, _Stopped):
            code, message = (
                CommandCode.NETWORK,
                "The board is being stopped. Pull again later: it goes on where it ended.",
            )
        elif isinstance(error, CommandFailed):
            code, message = error.code, without_folders(str(error))
        elif isinstance(error, ModelRefused):
            code, message = CommandCode.DOES_NOT_FIT, without_folders(str(error))
        if code == "internal":
            log.exception("the pull of %s broke", first.model)
        else:
            log.warning("the pull of %s failed: %s", first.model, error or message)
        return PullProgress(
            pull=first.pull, model=first.model, number=number, step=PullStep.FAILED, message=message, code=str(code)
        )

    def _tell(self, progress: PullProgress) -> None:
        with self._lock:
            self._last[progress.pull] = progress
        try:
            self._client.publish(self._channel, msgspec.json.encode(progress))
        except UNREACHABLE:
            log.debug("nobody hears how far the pull of %s is, Redis is away", progress.model)

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise _Stopped
