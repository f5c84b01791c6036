"""What a request for a model that nobody serves waits for."""

from __future__ import annotations

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from api import relay as module
from api.answer import Waiting
from api.relay import Relay
from tasks.card import Card
from tasks.commands import AWAY, CommandCode, Load
from tasks.errors import CommandFailed, ModelDown
from tasks.jobs import Lane
from tasks.presence import Presence
from tasks.requests import ChatRequest, Message
from tasks.roster import ModelStatus
from tasks.standing import Gate, Standing
from tests.stack import LIMIT

pytestmark = pytest.mark.anyio


def status(*boards: str, served: bool = False, loaded: bool = False) -> ModelStatus:
    return ModelStatus(
        card=Card(id="m", board="one"), served=served, loaded=loaded, loading=False, waiting=0, boards=boards
    )


class Place:
    """A relay on a Redis that came back some time ago, with a roster that is heard piece by piece."""

    def __init__(self, connected: float) -> None:
        self.heard: list[ModelStatus] = []
        self.looks = 0
        self.asked: list[str] = []
        self.refusals: list[CommandFailed] = []
        parts: Any = SimpleNamespace(connected=connected, find=self._find, ask=self._ask, refresh=self._refresh)
        parts.resolve = lambda model: self.heard[0]
        parts.workers = lambda model: [
            Presence(name=f"m@{board}", board=board, model=model, state=state)
            for board, state in (("one", "idle"), ("two", "busy"))
        ]
        parts.snapshot = SimpleNamespace(cards=(), breaths=())
        self.relay = Relay(
            parts, parts, parts, parts, parts, name="api:x", patience=1, keep_alive=1, record_limit=10**9
        )

    async def _find(self, model: str) -> ModelStatus:
        self.looks += 1
        return self.heard.pop(0) if self.heard else status()

    async def _refresh(self) -> None:
        self.heard = [status("one", served=True, loaded=True)]

    async def _ask(self, board: str, command: Load, seconds: float) -> None:
        self.asked.append(board)
        if self.refusals:
            raise self.refusals.pop(0)

    async def load(self) -> None:
        async with asyncio.timeout(LIMIT):
            await self.relay._load(status())


@pytest.mark.parametrize("connected", [0.0, math.inf], ids=["just back", "not yet heard"])
async def test_boards_may_breathe_first_after_redis_came_back(
    connected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It remembers no breaths, so nobody seems to be there: the first to breathe is asked, or a worker serves already."""
    monkeypatch.setattr(module, "BREATH_PATIENCE", LIMIT)
    place = Place(time.monotonic() + connected)
    place.heard = [status(), status("one")]
    await place.load()
    assert (place.looks, place.asked) == (2, ["one"])
    place.heard = [status(), status("one", served=True)]
    await place.load()
    assert place.asked == ["one"]


async def test_a_board_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once when Redis has been there for a while, else after a breath's time."""
    with pytest.raises(ModelDown, match="'one'"):
        await Place(time.monotonic() - 60).load()
    monkeypatch.setattr(module, "BREATH_PATIENCE", LIMIT)
    place = Place(time.monotonic())
    feed: Any = place.relay._feed
    find = feed.find

    async def later(model: str) -> ModelStatus:
        feed.connected -= LIMIT
        return await find(model)

    monkeypatch.setattr(place.relay._roster, "find", later)
    with pytest.raises(ModelDown, match="'one'"):
        await place.load()
    assert place.looks == 1


async def test_a_load_alone_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have something to do for a while; no job waits that would have the board look by itself."""
    monkeypatch.setattr(module, "ROOM_LOOK", 0.01)
    place = Place(time.monotonic())
    place.refusals = [CommandFailed(CommandCode.NO_ROOM_YET, "Others are busy.") for _ in range(3)]
    async with asyncio.timeout(LIMIT):
        await place.relay.load(status("one"))
    assert place.asked == ["one"] * 4
    monkeypatch.setattr(module, "LOADED_PATIENCE", 0.0)
    place.refusals = [CommandFailed(CommandCode.NO_ROOM_YET, "Others are busy.") for _ in range(3)]
    with pytest.raises(ModelDown, match="Others are busy"):
        await place.relay.load(status("one"))
    place.refusals = [CommandFailed(CommandCode.DOES_NOT_FIT, "It never fits.")]
    with pytest.raises(ModelDown, match="It never fits"):
        await place.relay.load(status("one"))


async def test_a_load_of_what_is_loaded_gives_it_its_time() -> None:
    """On the board that has it, which may have been about to unload it; one whose agent is away has it still."""
    place = Place(time.monotonic())
    place.refusals = [CommandFailed(AWAY, "It does not answer.")]
    for _ in range(2):
        await place.relay.load(status("one", "two", served=True, loaded=True))
    assert place.asked == ["two", "two"]


async def test_nobody_foretells_a_wait_for_a_board() -> None:
    """Of a job that others are before, while no board has its model; its place is known."""
    place, standing = Place(0.0), Standing(Gate.OPEN, 1, 5.0)
    place.relay._roster.models = lambda: [status("one", loaded=True)]  # type: ignore[method-assign]
    assert place.relay.waiting("m", (1, standing)) == Waiting(2, 10.0)
    place.relay._roster.models = lambda: [status()]  # type: ignore[method-assign]
    told = place.relay.waiting("m", (1, standing))
    assert (told.position, told.wait) == (2, None) and "no board" in told.why


@pytest.mark.parametrize(("loaded", "held"), [(False, "load"), (True, None)])
async def test_a_record_says_what_its_model_waited_for(loaded: bool, held: str | None) -> None:
    """With which `why` tells that time from a wait for other jobs."""
    place, told = Place(time.monotonic()), []

    async def accept(*_: object, held: str | None, **more: object) -> None:
        told.append(held)

    parts: Any = place.relay.store
    parts.accept = accept
    place.heard = [status("one", served=True, loaded=loaded)]
    request = ChatRequest((Message("user", "Hi."),))
    await place.relay.submit("m", request, "j", lane=Lane.BACKGROUND, owner="")
    assert told == [held]
