"""Settings that administrators change while the service runs, over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import redis

from tasks.api_keys import Scope
from tasks.card import Card
from tasks.presence import Presence, breathe
from tasks.roster import announce
from tasks.settings import TaskSettings
from tests.api.site import RealWorld, Site, site
from tests.stack import eventually


@pytest.fixture
def alone() -> Iterator[Site]:
    """A server of one's own, for settings outlast a test."""
    with site(drain=0) as place:
        yield place


def test_a_setting_is_changed_and_taken_back(alone: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The next request goes by it; the answer shows all there are; the log says who did it."""
    caplog.set_level(logging.INFO, "rockchipllama.settings")
    alone.world.api_keys.make("ops-key", Scope.ADMIN)
    admin = {"authorization": "Bearer ops-key"}
    before = alone.http.get("/v1/settings", headers=admin).json()["data"]
    assert {"queue_limit", "stream_grace", "log_level", "keep_alive"} <= {item["name"] for item in before}
    reply = alone.http.patch("/v1/settings", json={"stream_grace": 12.5}, headers=admin)
    changed = {item["name"]: item for item in reply.json()["data"]}["stream_grace"]
    assert (reply.status_code, changed["value"], changed["own"], changed["changed_by"]) == (
        200,
        12.5,
        0,
        "key 'ops-key'",
    )
    assert alone.app.state.settings.now.stream_grace == 12.5
    said = [record.getMessage() for record in caplog.records if record.name == "rockchipllama.settings"]
    assert said == ["key 'ops-key' changed the setting stream_grace from 0.0 to 12.5"]
    assert alone.http.patch("/v1/settings", json={"stream_grace": None}, headers=admin).status_code == 200
    assert alone.app.state.settings.now.stream_grace == 0


def test_only_administrators_see_and_change_them(alone: Site) -> None:
    """A key for chats is not enough."""
    alone.world.api_keys.make("user-key", Scope.INFERENCE, Scope.BATCH)
    for method in ("GET", "PATCH"):
        reply = alone.http.request(
            method, "/v1/settings", headers={"authorization": "Bearer user-key"}, json={"port": 1}
        )
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "insufficient_permissions")


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, None), ({"port": 80}, "port"), ({"queue_limit": [1]}, "queue_limit"), ({"patience": 0}, "patience")],
)
def test_what_is_refused_names_the_setting(place: Site, body: dict[str, object], param: str | None) -> None:
    """With a sentence that says which there are, or what it may be."""
    reply = place.http.patch("/v1/settings", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def accepted_by(place: Site, client: redis.Redis) -> str:
    """How many jobs may wait, as it says that accepts one."""
    breathe(client, Presence(name="m@b", board="b", model="m", state="loaded"))
    body = {"endpoint": "/v1/completions", "body": {"model": "m", "prompt": "x"}}
    reply = place.http.post("/v1/jobs", json=body)
    assert reply.status_code == 202, reply.text
    return str(reply.headers["x-ratelimit-limit-requests"])


def test_every_process_obeys(client: redis.Redis, valkey_url: str) -> None:
    """The one that is told at once, and another of the same service has heard about it by itself."""
    announce(client, Card(id="m", board="b", engine="echo", context_length=8192))
    queue = TaskSettings(redis_url=valkey_url, durability="ram", queue_limit=20)
    with site(RealWorld(queue), drain=0) as one, site(RealWorld(queue), drain=0) as other:
        assert accepted_by(one, client) == "20"
        assert one.http.patch("/v1/settings", json={"stream_grace": 33, "queue_limit": 30}).status_code == 200
        assert accepted_by(one, client) == "30"
        eventually(lambda: other.app.state.settings.now.stream_grace == 33)
        assert accepted_by(other, client) == "30"
        assert one.http.patch("/v1/settings", json={"stream_grace": None, "queue_limit": None}).status_code == 200
        eventually(lambda: other.app.state.settings.now.stream_grace == 0)
