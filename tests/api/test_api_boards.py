"""Boards, and who may tell them what to do."""

from __future__ import annotations

import logging

import pytest

from tasks.api_keys import Scope
from tasks.commands import AWAY, BUSY, CommandCode, RuntimeUsed, UseRuntime
from tasks.errors import CommandFailed
from tasks.presence import Presence
from tests.api.site import Site


def test_only_administrators_drain_boards(place: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The answer says what is to become of the board, and the log who asked for it."""
    caplog.set_level(logging.INFO, "rockchipllama.api")
    for plain, scopes in (("user-key", (Scope.INFERENCE, Scope.BATCH)), ("admin-key", (Scope.ADMIN,))):
        place.world.api_keys.make(plain, *scopes)
    user, admin = ({"authorization": f"Bearer {plain}"} for plain in ("user-key", "admin-key"))
    for step in ("drain", "resume"):
        refused = place.http.post(f"/v1/boards/rack/one/{step}", headers=user)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
    assert place.http.delete("/v1/boards/rack/one", headers=user).status_code == 403
    assert place.world.boards.told == []
    for step, drained in (("drain", True), ("resume", False)):
        reply = place.http.post(f"/v1/boards/rack%2Fone/{step}", headers=admin)
        assert (reply.status_code, reply.json()) == (200, {"object": "board", "id": "rack/one", "drained": drained})
    assert place.http.delete("/v1/boards/rack/one", headers=admin).json()["deleted"] is True
    assert place.world.boards.told == [("drain", "rack/one"), ("resume", "rack/one"), ("forget", "rack/one")]
    said = [record.getMessage() for record in caplog.records if "rack/one'" in record.getMessage()]
    assert said == [
        "key 'admin-key' drained the board 'rack/one'",
        "key 'admin-key' let the board 'rack/one' serve again",
        "key 'admin-key' had the board 'rack/one' forgotten",
    ]


@pytest.mark.parametrize("step", ["drain", "resume"])
def test_an_unknown_board_is_not_found(place: Site, step: str) -> None:
    """The answer names those that are there."""
    reply = place.http.post(f"/v1/boards/two/{step}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "board_not_found")
    assert "There are: rack/one." in reply.json()["error"]["message"]


def test_only_administrators_change_runtimes(place: Site) -> None:
    """The answer says what the board uses now, what it had, and what that was tried with."""
    place.world.roster.alive = [Presence(name="board:rack/one", board="rack/one")]
    place.world.commander.said = RuntimeUsed(version="1.2.3", before="1.3.0", tried=("small",))
    for plain, scopes in (("user-key", (Scope.INFERENCE, Scope.BATCH)), ("admin-key", (Scope.ADMIN,))):
        place.world.api_keys.make(plain, *scopes)
    user, admin = ({"authorization": f"Bearer {plain}"} for plain in ("user-key", "admin-key"))
    asked = {"version": "1.2.3"}
    assert place.http.post("/v1/boards/rack/one/runtime", json=asked, headers=user).status_code == 403
    assert place.world.commander.told == []
    reply = place.http.post("/v1/boards/rack/one/runtime", json={**asked, "model": "small"}, headers=admin)
    told = {"object": "board.runtime", "id": "rack/one", "version": "1.2.3", "before": "1.3.0", "tried": ["small"]}
    assert (reply.status_code, reply.json()) == (200, told)
    assert place.world.commander.told == [("rack/one", UseRuntime("1.2.3", "small"))]


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        (CommandCode.RUNTIME_REFUSED, 409, "runtime_refused"),
        (BUSY, 503, "board_busy"),
        (AWAY, 503, "board_away"),
        ("timeout", 502, "board_refused"),
    ],
)
def test_why_a_runtime_is_not_changed(place: Site, code: str, status: int, word: str) -> None:
    """In the board's words."""
    place.world.roster.alive = [Presence(name="board:one", board="one")]
    place.world.commander.refusals["one"] = CommandFailed(code, "it says nonsense")
    reply = place.http.post("/v1/boards/one/runtime", json={"version": "1.2.3"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, word)
    assert reply.json()["error"]["message"] == "it says nonsense"
    gone = place.http.post("/v1/boards/two/runtime", json={"version": "1.2.3"})
    assert gone.json()["error"]["code"] == "board_not_found"
