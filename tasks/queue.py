"""Calls to serve: the Celery messages that make workers claim waiting jobs.

A call is not a job. It names a model and, for people who watch in Flower, the lane and job it was sent for; the worker
that takes it claims whichever job of the model is next. A surplus call finds nothing and costs a millisecond.

The message is put together here, in Celery's task protocol version 2, and not published through Celery: so it can go to
the queue in the very step that accepts a job, no accepted job is ever without a call, and whoever only calls need not
load Celery. A test holds it against what Celery itself would send.
"""

from __future__ import annotations

import base64
import os
import socket
import uuid

import msgspec
import redis

from tasks import keys
from tasks.scripts import CALL

SERVE = "tasks.serve"

_ORIGIN = f"rockchipllama{os.getpid()}@{socket.gethostname()}"
_REPLY_TO = str(uuid.uuid4())
_encode = msgspec.json.Encoder().encode


def call(model: str, lane: str, job: str) -> bytes:
    """One call as it lies in the model's queue."""
    call_id = str(uuid.uuid4())
    arguments = (model, lane, job)
    body = _encode((arguments, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}))
    return _encode(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": SERVE,
                "id": call_id,
                "shadow": None,
                "eta": None,
                "expires": None,
                "group": None,
                "group_index": None,
                "retries": 0,
                "timelimit": [None, None],
                "root_id": call_id,
                "parent_id": None,
                "argsrepr": repr(arguments),
                "kwargsrepr": "{}",
                "origin": _ORIGIN,
                "ignore_result": True,
                "replaced_task_nesting": 0,
                "stamped_headers": None,
                "stamps": {},
            },
            "properties": {
                "correlation_id": call_id,
                "reply_to": _REPLY_TO,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": keys.call_queue(model)},
                "priority": 0,
                "body_encoding": "base64",
                # Under this name Celery keeps a call while it is served: the step that ends a dead worker's claim finds it so.
                "delivery_tag": call_id,
            },
        }
    )


def send(client: redis.Redis, model: str) -> None:
    """Put a call for nobody in particular into the model's queue."""
    CALL.run(client, [keys.calls(model)], call(model, "", ""))
