"""Models are removed from all boards that have files of them."""

from __future__ import annotations

from typing import cast

import pytest
import redis
import redis.asyncio

from api.shelf import Shelf
from tasks.card import Card
from tasks.commands import Delete
from tasks.errors import ModelDown, UnknownModel
from tasks.feed import LiveFeed
from tasks.presence import Presence, breathe
from tasks.roster import Roster, announce
from tests.api.scripted_services import ScriptedCommander

pytestmark = pytest.mark.anyio


async def test_files_that_cannot_be_used_are_removed_as_well(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """From boards that have nothing else of the model, and beside a board that can use it; by any of its names."""
    cut = {"trunc-1b": ("trunc:1b",)}
    why = dict.fromkeys(("trunc-1b", "trunc:1b"), "it was cut short")
    breathe(client, Presence(name="board:two", board="two", refused=why, unusable=cut))
    commander = ScriptedCommander()
    shelf = Shelf(Roster(aclient, {}, None), commander, cast(LiveFeed, None))
    await shelf.remove("Trunc:1B")
    assert commander.told == [("two", Delete("trunc:1b"))]
    announce(client, Card(id="trunc-1b", board="one", names=("trunc:1b",)))
    commander.told.clear()
    await shelf.remove("trunc:1b")
    assert commander.told == [("two", Delete("trunc-1b"))]  # the board 'one' is away
    breathe(client, Presence(name="board:one", board="one"))
    commander.told.clear()
    await shelf.remove("trunc:1b")
    assert sorted(board for board, _ in commander.told) == ["one", "two"]


async def test_what_nobody_has_is_not_removed(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Nor what only a board has that is away."""
    announce(client, Card(id="tiny", board="one"))
    commander = ScriptedCommander()
    shelf = Shelf(Roster(aclient, {}, None), commander, cast(LiveFeed, None))
    with pytest.raises(UnknownModel):
        await shelf.remove("tinier")
    with pytest.raises(ModelDown):
        await shelf.remove("tiny")
    assert commander.told == []
