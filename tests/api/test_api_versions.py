"""What another version of the service has written, read by this one's API on a real queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest
import redis
from starlette.testclient import TestClient

from api.app import create_app
from api.openai.translate.answer import Head
from api.openai.translate.chat import ChatWriter
from api.openai.translate.kept import keep
from api.settings import ApiSettings
from tasks import keys
from tasks.connection import connect_async
from tasks.events import EVENTS_VERSION
from tasks.jobs import Lane, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.settings import TaskSettings
from tasks.store import JobStore

TOMORROW = msgspec.msgpack.encode([EVENTS_VERSION, [["teleported", 1]]])
"""An event of a kind that a later version knows."""


@pytest.fixture
def http(client: redis.Redis, valkey_url: str) -> Iterator[TestClient]:
    app = create_app(ApiSettings(), TaskSettings(redis_url=valkey_url, durability="ram"))
    with TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as http:
        yield http


@pytest.fixture
def job(client: redis.Redis, valkey_url: str) -> str:
    """A job in whose stream a neighbour of a later version has said what this one does not know."""
    job = new_job_id()

    async def accept() -> None:
        aclient = connect_async(valkey_url)
        await JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600).accept(
            *(job, "echo", ChatRequest((Message("user", "hello"),))),
            lane=Lane.INTERACTIVE,
            owner="",
            rendering=keep(ChatWriter.kind, Head(f"chatcmpl-{job}", 1, "echo", "fp", "default", 1, False)),
        )
        await aclient.aclose()

    asyncio.run(accept())
    client.xadd(keys.events(job), {"e": TOMORROW}, id="2-7")
    return job


def test_a_stream_with_an_event_of_an_unknown_kind_ends_with_a_sentence(http: TestClient, job: str) -> None:
    """And not as an accident of the server: nothing is left out of an answer without a word."""
    text = http.get(f"/v1/jobs/{job}/events").text
    assert '"code":"unreadable_record"' in text and "another version" in text
    assert "teleported" in text


def test_a_page_with_an_event_of_an_unknown_kind_is_a_problem(http: TestClient, job: str) -> None:
    """The same to a program that polls."""
    reply = http.get(f"/v1/jobs/{job}/events", headers={"accept": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "unreadable_record")
    assert "another version" in reply.json()["error"]["message"]
    assert reply.headers["x-should-retry"] == "false"


def test_an_end_that_is_not_known_is_a_problem(http: TestClient, job: str, client: redis.Redis) -> None:
    """A job that failed for a reason of tomorrow is not shown as one that ended well."""
    end = msgspec.msgpack.encode([EVENTS_VERSION, [["failed", "a_code_of_tomorrow", "x"]]])
    client.hset(keys.job(job), mapping={"state": "failed", "end": end, "ended": "1"})
    reply = http.get(f"/v1/jobs/{job}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "unreadable_record")


def test_fields_of_a_later_version_are_ignored(http: TestClient, job: str, client: redis.Redis) -> None:
    """In the record, in its events and in their ends."""
    client.xdel(keys.events(job), "2-7")
    said = [["started", "w", "b", 1, 2], ["text", "hi", 0, [], "more"], ["finished", "stop", [1, 2, 0, 0, 9], [0] * 9]]
    client.xadd(keys.events(job), {"e": msgspec.msgpack.encode([EVENTS_VERSION, said, "more"]), "q": "new"}, id="4-7")
    end = msgspec.msgpack.encode([EVENTS_VERSION, said[-1:], "more"])
    client.hset(keys.job(job), mapping={"state": "finished", "end": end, "ended": "1", "fence": "1", "new": "x"})
    assert http.get(f"/v1/jobs/{job}").json()["usage"]["completion_tokens"] == 2
    page = http.get(f"/v1/jobs/{job}/events", headers={"accept": "application/json"}).json()
    assert [event["type"] for event in page["data"]] == ["queued", "started", "text", "finished"]
