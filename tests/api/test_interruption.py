"""Work that is ended when something else comes first."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from api.interruption import Interrupted, first_of, unless

pytestmark = pytest.mark.anyio


class Bell:
    """Something that may come, once it is waited for."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self.left = asyncio.Event()

    async def wait(self) -> None:
        try:
            await self.rung.wait()
        finally:
            self.left.set()


async def never(seen: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0)  # as somebody who tidies up
        seen.append("cancelled")
        raise


async def test_work_is_cancelled_when_its_end_comes_first() -> None:
    """And has seen that when the caller hears of it, who is not cancelled."""
    bell, seen = Bell(), list[str]()
    asyncio.get_running_loop().call_soon(bell.rung.set)
    with pytest.raises(Interrupted):
        await unless(bell.wait(), never(seen))
    assert seen == ["cancelled"]
    await asyncio.sleep(0)


async def test_work_that_is_done_is_not_ended_any_more() -> None:
    """What would have ended it is not waited for, also where it comes in the same moment."""
    bell = Bell()

    async def work() -> str:
        await asyncio.sleep(0)
        bell.rung.set()
        return "done"

    assert await unless(bell.wait(), work()) == "done"
    async with asyncio.timeout(10):
        await bell.left.wait()
    await asyncio.sleep(0)


async def test_what_the_work_raises_is_its_own() -> None:
    """A time-out of its own is no interruption."""

    async def work() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await unless(Bell().wait(), work())


async def test_a_caller_that_is_cancelled_is_not_interrupted() -> None:
    """The server ends it, and nobody else: so it hears of that."""
    seen: list[str] = []
    task = asyncio.create_task(unless(Bell().wait(), never(seen)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


async def test_one_of_several_is_enough() -> None:
    """The others are let go of."""
    one, other = Bell(), Bell()
    asyncio.get_running_loop().call_soon(one.rung.set)
    with pytest.raises(Interrupted):
        await unless(first_of(one.wait, partial(other.wait)), never([]))
    async with asyncio.timeout(10):
        await other.left.wait()
