"""What a job that waits is kept by, as its client is told."""

from __future__ import annotations

import msgspec
import pytest
import redis

from tasks import presence, roster
from tasks.card import Card
from tasks.presence import Presence
from tasks.roster import ModelStatus, read_roster
from tasks.standing import Gate
from tasks.waits_for import WaitsFor, story, waits_for

RESTS = ModelStatus(
    card=Card(id="m", board="one"), served=False, loaded=False, loading=False, waiting=1, boards=("one",)
)


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"served": True, "loaded": True}, WaitsFor.TURN),
        ({}, WaitsFor.LOAD),
        ({"served": True, "loading": True}, WaitsFor.LOAD),
        ({"served": True, "no_room": "Others are busy."}, WaitsFor.LOAD),  # somewhere else it is being loaded by now
        ({"no_room": "Others are busy."}, WaitsFor.ROOM),
        ({"boards": ()}, WaitsFor.BOARD),
        ({"boards": (), "served": True}, WaitsFor.LOAD),
        ({"gate": Gate.PAUSED, "no_room": "Others are busy."}, WaitsFor.QUEUE),
    ],
)
def test_what_the_jobs_of_a_model_wait_for(changes: dict[str, object], waits: WaitsFor) -> None:
    """Everything but their turn is told as a sentence, too."""
    status = msgspec.structs.replace(RESTS, **changes)
    assert waits_for(status) is waits
    assert bool(story(status)) is (waits is not WaitsFor.TURN)


def test_a_board_tells_what_it_has_no_room_for(client: redis.Redis) -> None:
    """Of each model by itself."""
    for model in ("m", "n"):
        roster.announce(client, Card(id=model, board="one"))
    presence.breathe(client, Presence(name="board:one", board="one", no_room={"m": "Others are busy."}))
    told = {status.card.id: status.no_room for status in read_roster(client).models}
    assert told == {"m": "Others are busy.", "n": ""}
