"""Which models boards could load and have loaded, and who may have that changed."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from npu.model import RESERVED
from tasks.api_keys import Scope
from tasks.commands import AWAY, BUSY, SILENT, CommandCode, Keep, Load, Unload
from tasks.errors import CommandFailed
from tasks.events import FailureCode
from tasks.presence import Presence, Resident
from tests.api.scripted import CARD, TINY
from tests.api.site import Site

GIB = 1 << 30


def board(name: str, **told: Any) -> Presence:
    return Presence(name=f"board:{name}", board=name, **({"budget": 6 * GIB, "room": 2 * GIB} | told))


def worker(where: str, state: str, **told: Any) -> Presence:
    return Presence(name=f"tiny@{where}", board=where, model="tiny", state=state, **told)


@pytest.fixture
def rack(place: Site) -> Site:
    """Two boards with the model, the second with more room; none has it loaded."""
    roster = place.world.roster
    roster.alive = [board("b1"), board("b2", room=5 * GIB)]
    roster.cards = [msgspec.structs.replace(CARD, board=name, memory_bytes=3 * GIB) for name in ("b1", "b2")]
    roster.known = [msgspec.structs.replace(TINY, boards=("b1", "b2"))]
    return place


def places(rack: Site) -> list[tuple[str, bool | None, bool, str]]:
    [model] = rack.http.get("/v1/models/available").json()["data"]
    assert (model["id"], model["context_length"], model["quantization"]) == ("tiny", 2048, "none")
    return [(each["state"], each["fits"], each["beside"], each["why"] or "") for each in model["boards"]]


def test_where_a_model_fits(rack: Site) -> None:
    """Beside what is loaded, or instead of it."""
    assert places(rack) == [("unloaded", True, False, ""), ("unloaded", True, True, "")]
    rack.world.roster.alive.append(worker("b1", "busy"))
    assert places(rack)[0] == ("busy", True, True, "")


def test_a_pinned_model_that_leaves_no_room_is_named(rack: Site) -> None:
    """Where the others could go, they would; one that nobody uses and none pinned gives way."""
    both = {"kept": Resident(memory=3 * GIB, pinned=True), "idle": Resident(memory=GIB)}
    rack.world.roster.alive = [board("b1", room=GIB, residents=both), board("b2", room=2 * GIB, residents=both)]
    kept_out, takes_its_place = places(rack)
    assert kept_out == ("unloaded", True, False, "What is pinned there leaves no room: kept.")
    assert takes_its_place == ("unloaded", True, False, "")


def test_why_a_model_does_not_fit(rack: Site) -> None:
    """With the figures; a board that is away, drained, or does not tell is told as such."""
    rack.world.roster.alive = [board("b1", budget=2 * GIB)]
    small, away = places(rack)
    assert small[:3] == ("unloaded", False, False) and "3072 MiB" in small[3] and "2048 MiB" in small[3]
    assert away == ("away", False, False, "The board 'b2' is not there.")
    rack.world.roster.alive = [board("b1", drained=True), board("b2", budget=0)]
    drained, silent = places(rack)
    assert drained[1] is False and "drained" in drained[3]
    assert silent[1] is None and "does not tell" in silent[3]


def test_a_drained_board_is_not_told_to_be_away(rack: Site) -> None:
    """Whoever asks for a model that it alone has hears what would help."""
    rack.world.roster.known = [msgspec.structs.replace(TINY, served=False, loaded=False, boards=())]
    rack.world.roster.alive = [board("b2", drained=True)]
    refused = rack.http.post("/v1/models/load", json={"model": "tiny"})
    assert refused.status_code == 503 and "the board 'b2' that has it is drained" in refused.json()["error"]["message"]
    rack.world.roster.alive = []
    assert "is not there" in rack.http.post("/v1/models/load", json={"model": "tiny"}).json()["error"]["message"]


def test_what_is_loaded_tells_since_when_and_how_long(rack: Site) -> None:
    """In seconds of this process' clock; a busy one is not idle, and what is starting has a row already."""
    rack.world.roster.alive = [
        board(
            "b1",
            stays={"tiny": 60.0},
            residents={"tiny": Resident(memory=3 * GIB, idle=240.0, pinned=True), "later": Resident(memory=GIB)},
        ),
        board("b2"),
        worker("b1", "loaded", loaded_for=100.0),
        worker("b2", "busy", loaded_for=5.0),
    ]
    later, resting, busy = rack.http.get("/v1/models/loaded").json()["data"]
    assert (later["id"], later["state"], later["since"]) == ("later", "starting", None)
    assert abs(resting["since"] - (time.time() - 100)) < 50 and abs(resting["until"] - (time.time() + 60)) < 50
    assert (resting["memory_bytes"], resting["idle_seconds"], resting["pinned"]) == (3 * GIB, 240.0, True)
    assert (busy["board"], busy["busy"], busy["idle_seconds"], busy["until"]) == ("b2", True, None, None)
    found = rack.http.get("/v1/models/loaded", params={"model": "org/tiny", "board": "b2"}).json()["data"]
    assert [(each["id"], each["board"]) for each in found] == [("tiny", "b2")]
    assert rack.http.get("/v1/models/loaded?bord=b2").json()["error"]["param"] == "bord"
    refused = rack.http.get("/v1/models/loaded?board=nosuch")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "board_not_found")
    assert "There are: b1, b2." in refused.json()["error"]["message"]


def test_a_model_is_loaded_where_there_is_most_room(rack: Site) -> None:
    """Unless a board has it already, or is named. The answer says where that can be followed."""
    done = rack.http.post("/v1/models/load", json={"model": "org/tiny", "keep_alive": "5m"})
    assert (done.status_code, done.headers["location"]) == (202, "/v1/models/loaded?model=tiny&board=b2")
    assert (done.json()["board"], done.json()["state"]) == ("b2", "starting")
    assert rack.world.commander.told == [("b2", Load("tiny", by_hand=True)), ("b2", Keep("tiny", 300.0))]
    rack.world.commander.told.clear()
    rack.http.post("/v1/models/load", json={"model": "tiny", "board": "b1", "keep_alive": None})
    assert rack.world.commander.told == [("b1", Load("tiny", by_hand=True))]
    rack.world.commander.told.clear()
    rack.world.roster.alive.append(worker("b1", "loaded"))
    done = rack.http.post("/v1/models/load", json={"model": "tiny", "board": "any"})
    assert (done.status_code, done.json()["board"]) == (200, "b1")
    # It is told all the same: a worker that is about to leave says it is loaded, too.
    assert rack.world.commander.told == [("b1", Load("tiny", by_hand=True))]


def test_the_next_board_is_asked_when_one_refuses(rack: Site) -> None:
    """And when all do, that one counts which has room in a moment."""
    rack.world.commander.refusals["b2"] = CommandFailed(CommandCode.NO_ROOM_YET, "others are busy")
    assert rack.http.post("/v1/models/load", json={"model": "tiny"}).json()["board"] == "b1"
    rack.world.commander.refusals["b1"] = CommandFailed(CommandCode.DOES_NOT_FIT, "never")
    refused = rack.http.post("/v1/models/load", json={"model": "tiny"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "board_busy")


def test_a_board_that_says_nothing_may_be_at_it_still(rack: Site) -> None:
    """So no other one is told to load the model as well."""
    rack.world.commander.refusals["b2"] = CommandFailed(SILENT, "not within 30 s")
    refused = rack.http.post("/v1/models/load", json={"model": "tiny"})
    assert refused.status_code == 503
    assert [board for board, _ in rack.world.commander.told] == ["b2"]


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        (CommandCode.DOES_NOT_FIT, 409, "does_not_fit"),
        (CommandCode.NO_ROOM_YET, 503, "board_busy"),
        (BUSY, 503, "board_busy"),
        (AWAY, 503, "model_unavailable"),
        (FailureCode.MODEL_UNAVAILABLE, 503, "model_unavailable"),
        (SILENT, 503, "model_unavailable"),
    ],
)
def test_why_a_board_does_not_load(rack: Site, code: str, status: int, word: str) -> None:
    """Each reason has its status and its word; the board's sentence is passed on."""
    rack.world.commander.refusals["b1"] = CommandFailed(code, "because of 7 MiB")
    refused = rack.http.post("/v1/models/load", json={"model": "tiny", "board": "b1"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, word)
    assert "because of 7 MiB" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "nobody"}, 404, "model_not_found", "model"),
        ({"model": "tiny", "board": "b3"}, 404, "board_not_found", "board"),
        ({"model": "tiny", "board": "other"}, 404, "model_not_found", "board"),
        ({"model": "tiny", "bord": "b1"}, 400, "invalid_value", "bord"),
        ({"model": "tiny", "keep_alive": 0}, 400, "invalid_value", "keep_alive"),
        ({"model": "tiny", "keep_alive": "soon"}, 400, "invalid_value", "keep_alive"),
        ({}, 400, "missing_required_parameter", "model"),
        ({"model": ""}, 400, "invalid_value", "model"),
    ],
)
def test_what_is_asked_wrongly_loads_nothing(
    rack: Site, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    """The field at fault is named."""
    rack.world.roster.alive.append(board("other"))
    refused = rack.http.post("/v1/models/load", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (status, code, param)
    assert rack.world.commander.told == []


def test_a_load_is_waited_for(rack: Site) -> None:
    """Until the model is there."""
    states = iter(["idle", "loading", "loading", "loaded"])
    alive = rack.world.roster.alive

    def look() -> None:
        if (state := next(states, None)) is not None and rack.world.commander.told:
            rack.world.roster.alive = [*alive, worker("b1", state, tries=1)]

    rack.world.roster.refreshed = look
    done = rack.http.post("/v1/models/load", json={"model": "tiny", "board": "b1", "wait": True})
    assert (done.status_code, done.json()["state"]) == (200, "loaded")


def test_a_load_that_fails_says_why(rack: Site) -> None:
    """The problem of an earlier try is none of this one."""
    before = worker("b1", "idle", tries=1, problem="an old story")
    rack.world.roster.alive.append(before)
    told = iter(
        [before, before, worker("b1", "loading", tries=2), worker("b1", "idle", tries=2, problem="the file is torn")]
    )

    def look() -> None:
        rack.world.roster.alive[-1] = next(told, rack.world.roster.alive[-1])

    rack.world.roster.refreshed = look
    failed = rack.http.post("/v1/models/load", json={"model": "tiny", "board": "b1", "wait": True})
    error = failed.json()["error"]
    assert (failed.status_code, error["code"], error["message"]) == (503, "model_unavailable", "the file is torn")
    [row] = rack.http.get("/v1/models/loaded?board=b1").json()["data"]
    assert (row["state"], row["problem"]) == ("failed", "the file is torn")


def test_a_model_is_unloaded_from_all_boards_or_one(rack: Site) -> None:
    """One that is loaded nowhere is unloaded already. Boards are asked where nothing of it is seen: its worker may have just
    been started. One that does not answer then is not waited for."""
    unload, commander = "/v1/models/unload", rack.world.commander
    commander.said = False
    assert rack.http.post(unload, json={"model": "tiny"}).json()["boards"] == []
    assert commander.told == [("b1", Unload("tiny")), ("b2", Unload("tiny"))]
    commander.said, commander.refusals["b2"] = True, CommandFailed(AWAY, "It does not answer.")
    assert rack.http.post(unload, json={"model": "tiny"}).json()["boards"] == ["b1"]
    rack.world.roster.alive += [worker("b1", "loaded"), worker("b2", "busy")]
    assert rack.http.post(unload, json={"model": "tiny"}).status_code == 503
    commander.refusals.clear()
    commander.told.clear()
    assert rack.http.post(unload, json={"model": "tiny", "board": "b2"}).json()["boards"] == ["b2"]
    assert rack.http.post(unload, json={"model": "tiny"}).json()["boards"] == ["b1", "b2"]
    assert rack.world.commander.told == [(name, Unload("tiny")) for name in ("b2", "b1", "b2")]
    assert rack.http.post(unload, json={"model": "tiny", "board": "b3"}).json()["error"]["code"] == "board_not_found"


def test_no_model_has_the_name_of_a_route(rack: Site) -> None:
    """It would be hidden behind it."""
    paths = rack.app.openapi()["paths"]
    words = {path.removeprefix("/v1/models/") for path in paths if path.startswith("/v1/models/")}
    assert {word for word in words if "{" not in word} == RESERVED


def test_only_administrators_load_and_unload(rack: Site) -> None:
    """Whoever may ask a model sees where it is."""
    rack.world.api_keys.make("user-key", Scope.INFERENCE, Scope.BATCH)
    user = {"authorization": "Bearer user-key"}
    for path in ("load", "unload"):
        refused = rack.http.post(f"/v1/models/{path}", json={"model": "tiny"}, headers=user)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
    assert rack.world.commander.told == []
    assert rack.http.get("/v1/models/loaded", headers=user).status_code == 200
