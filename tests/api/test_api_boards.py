"""Boards, and who may tell them what to do."""

from __future__ import annotations

import logging

import pytest

from tasks.api_keys import Scope
from tests.api.scripted import Site


def test_only_administrators_drain_boards(place: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The answer says what is to become of the board, and the log who asked for it."""
    caplog.set_level(logging.INFO, "rockchipllama.api")
    for plain, scopes in (("user-key", (Scope.INFERENCE, Scope.BATCH)), ("admin-key", (Scope.ADMIN,))):
        place.world.api_keys.make(plain, *scopes)
    user, admin = ({"authorization": f"Bearer {plain}"} for plain in ("user-key", "admin-key"))
    for step in ("drain", "resume"):
        refused = place.http.post(f"/v1/boards/rack/one/{step}", headers=user)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
    assert place.world.boards.told == []
    for step, drained in (("drain", True), ("resume", False)):
        reply = place.http.post(f"/v1/boards/rack%2Fone/{step}", headers=admin)
        assert (reply.status_code, reply.json()) == (200, {"object": "board", "id": "rack/one", "drained": drained})
    assert place.world.boards.told == [("drain", "rack/one"), ("resume", "rack/one")]
    said = [record.getMessage() for record in caplog.records if "rack/one'" in record.getMessage()]
    assert said == [
        "key 'admin-key' drained the board 'rack/one'",
        "key 'admin-key' let the board 'rack/one' serve again",
    ]


@pytest.mark.parametrize("step", ["drain", "resume"])
def test_an_unknown_board_is_not_found(place: Site, step: str) -> None:
    """The answer names those that are there."""
    reply = place.http.post(f"/v1/boards/two/{step}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "board_not_found")
    assert "There are: rack/one." in reply.json()["error"]["message"]
