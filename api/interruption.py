"""Work that something may end before it is done: its client leaves, or the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

Result = TypeVar("Result")


class Interrupted(Exception):
    """Raised in place of a result: what was to end the work came first."""


async def unless(end: Coroutine[object, object, object], work: Awaitable[Result]) -> Result:
    """What becomes of `work`. It is cancelled when `end` is over before; raises `Interrupted` once it has seen that.

    It runs in the task of whoever asks, and `end` first gets a turn when it waits: a task of its own would begin a round of
    the loop later and be heard another two after its end, all of it on the way of a first token.
    """
    watching = asyncio.ensure_future(end)
    working = True
    try:
        async with asyncio.timeout(None) as limit:

            def ended(_: object) -> None:
                if working:
                    limit.reschedule(0)

            watching.add_done_callback(ended)
            try:
                return await work
            finally:
                working = False
                watching.cancel()
    except TimeoutError:
        if not limit.expired():
            raise  # the work's own
        raise Interrupted from None


async def first_of(*ends: Callable[[], Coroutine[object, object, object]]) -> None:
    """Wait until one of these is over; the others are cancelled."""
    watching = [asyncio.ensure_future(end()) for end in ends]
    try:
        await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in watching:
            each.cancel()
