"""The message that calls a worker, held against what Celery itself would send."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import pytest
import redis
from celery import Celery

from tasks import keys
from tasks.broker import celery_app
from tasks.queue import SERVE, call, send

ARGUMENTS = ("qwen3-0.6b", "interactive", "abcdefghijklmnopqrstuv")

IDS = ("id", "root_id", "correlation_id", "reply_to", "delivery_tag", "origin")
"""What is another in each message."""


@pytest.fixture
def by_celery() -> dict[str, Any]:
    """The same call, published by Celery with this application's configuration, as it lies in the broker."""
    app = celery_app("redis://nowhere")
    conf = {**app.conf.changes, "broker_url": "memory://", "broker_transport_options": {}}
    app = Celery("rockchipllama", set_as_current=False)
    app.conf.update(conf)

    @app.task(name=SERVE)
    def serve(model: str, lane: str = "", job: str = "") -> None:
        """Never run here."""

    with app.connection_for_write() as connection:
        queue = keys.call_queue("qwen3-0.6b")
        producer = app.amqp.Producer(connection)
        serve.apply_async(ARGUMENTS, queue=queue, producer=producer)
        raw = connection.default_channel._get(queue)
    assert isinstance(raw, dict)
    return raw


def kinds(value: Any) -> Any:
    """The shape of a message: its keys, and the types of what they hold."""
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [kinds(item) for item in value]
    return type(value).__name__


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_ids(item) for key, item in value.items() if key not in IDS}
    return value


def ours() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(*ARGUMENTS))
    return found


def test_every_key_and_type_is_celerys(by_celery: dict[str, Any]) -> None:
    """Of the envelope, the headers and the properties, to the last one."""
    assert kinds(ours()) == kinds(json.loads(json.dumps(by_celery)))


def test_every_value_is_celerys_but_ids(by_celery: dict[str, Any]) -> None:
    """Apart from the body's own spacing."""
    expected = json.loads(json.dumps(by_celery))
    mine = ours()
    assert json.loads(base64.b64decode(mine.pop("body"))) == json.loads(base64.b64decode(expected.pop("body")))
    assert without_ids(mine) == without_ids(expected)


def test_ids_are_one_where_celery_has_one(by_celery: dict[str, Any]) -> None:
    """The id of the call stands three times in it; two calls differ; all of them are what Celery takes for ids."""
    for message in (ours(), by_celery):
        headers, properties = message["headers"], message["properties"]
        assert headers["id"] == headers["root_id"] == properties["correlation_id"]
        for name in (headers["id"], properties["reply_to"], properties["delivery_tag"]):
            assert str(uuid.UUID(name)) == name
        assert "@" in headers["origin"]
    assert ours()["headers"]["id"] != ours()["headers"]["id"]


def test_a_worker_takes_it_from_redis(client: redis.Redis, valkey_url: str) -> None:
    """What lies in the queue, Celery's own consumer takes out, decodes and gives to the task of that name."""
    app = celery_app(valkey_url)
    client.lpush(keys.calls("qwen3-0.6b"), call(*ARGUMENTS))
    send(client, "qwen3-0.6b")
    taken: list[tuple[str, list[Any], dict[str, Any]]] = []
    queue = app.amqp.queues.select_add(keys.call_queue("qwen3-0.6b"))
    with app.connection_for_read() as connection:

        def take(body: Any, message: Any) -> None:
            arguments, options, _ = body
            taken.append((message.headers["task"], arguments, options))
            message.ack()

        with app.amqp.TaskConsumer(connection.default_channel, queues=[queue], callbacks=[take]):
            while len(taken) < 2:
                connection.drain_events(timeout=30)
    assert taken == [(SERVE, list(ARGUMENTS), {}), (SERVE, ["qwen3-0.6b", "", ""], {})]
    assert client.llen(keys.calls("qwen3-0.6b")) == 0


def test_nothing_of_a_request_is_in_it() -> None:
    """It names model, lane and job for people who watch, and carries no more than that."""
    body = json.loads(base64.b64decode(ours()["body"]))
    assert body[:2] == [list(ARGUMENTS), {}]
    assert ours()["headers"]["argsrepr"] == repr(ARGUMENTS)
