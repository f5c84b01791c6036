"""The answers a process has open, so that shutting down can end them with a word instead of a cut."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager

from api.answer import Answer

log = logging.getLogger("rockchipllama.api")

CLOSE_SECONDS = 5.0
"""How long closing an answer may take before it is left to its lease: the queue may be the thing that is down."""


_ending: set[asyncio.Future[None]] = set()
"""Closings under way; the event loop alone would not keep them alive."""


def _keep(work: Coroutine[object, object, None]) -> asyncio.Future[None]:
    ending = asyncio.ensure_future(work)
    _ending.add(ending)
    ending.add_done_callback(_ending.discard)
    return ending


async def close(answer: Answer) -> None:
    """Close an answer, whatever happens meanwhile to the task that asks. A failure to do so is logged, not raised."""
    # Cancelled here, the asking task leaves; the closing goes on without it.
    await asyncio.wait({_keep(_closed(answer))})


async def _closed(answer: Answer) -> None:
    try:
        await asyncio.wait_for(answer.close(), CLOSE_SECONDS)
    except Exception as error:
        log.warning("could not cancel a job", extra={"job": answer.job, "error": repr(error)})


class Drain:
    """Every answer on its way to a client. `ended` is set once those that are left are being ended, `cut` once those go without
    a word that are still open after that."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.cut = asyncio.Event()
        self._open: set[Answer] = set()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def holding(self, answer: Answer) -> Iterator[None]:
        """Count the answer as open for the length of the block. One that comes too late is ended at once."""
        self._open.add(answer)
        if self.ended.is_set():
            answer.stop()
        try:
            yield
        finally:
            self._open.discard(answer)

    def end(self) -> None:
        """End whatever is still open. Its client is told that the server is shutting down."""
        self.ended.set()
        if self._open:
            log.warning("ending answers that are still open", extra={"open": len(self._open)})
        for answer in tuple(self._open):
            answer.stop()

    async def abandon(self) -> None:
        """Leave every answer that is still open, without a word to its client."""
        self.ended.set()
        await asyncio.gather(*(close(answer) for answer in tuple(self._open)))
