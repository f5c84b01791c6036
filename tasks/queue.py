"""Calls to serve: the Celery messages that make workers claim waiting jobs.

A call is not a job. It names a model, and, for people who watch in Flower, the lane and job it was sent for; the worker
that takes it claims whichever job of the model is next. A surplus call finds nothing and costs a millisecond.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from tasks import keys
from tasks.connection import SOCKET_TIMEOUT, UNREACHABLE, celery_url
from tasks.errors import QueueUnavailable

log = logging.getLogger("rockchipllama.queue")

SERVE = "tasks.serve"
LOAD = "tasks.load"


def celery_app(redis_url: str) -> Celery:
    """The Celery application, for those who call and those who serve."""
    app = Celery("rockchipllama", broker=celery_url(redis_url), set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "global_keyprefix": keys.PREFIX,
            "socket_timeout": 30,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            "socket_keepalive": True,
            "health_check_interval": 30,
        },
        accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # The worker claims a job when it begins, so a call taken by a worker that dies is only a lost call, and the
        # sweep makes up for those. Acknowledging late keeps a second call from waiting behind a long answer.
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        # A dead engine is reported at once: it publishes no late result that would be worth waiting for.
        worker_lost_wait=0.1,
        worker_hijack_root_logger=False,
        worker_send_task_events=True,
        task_send_sent_event=False,
        worker_enable_remote_control=True,
        worker_proc_alive_timeout=30,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_create_missing_queues=True,
        task_default_queue="serve",
        # A queue takes its exchange's name from itself: one binding set per model, and none beyond.
        task_queues=None,
    )
    return app


class Queue:
    """Sends calls. Publishing blocks, so it happens in one thread that keeps its connection."""

    def __init__(self, redis_url: str) -> None:
        self._app = celery_app(redis_url)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="calls")
        self._producer: Any = None

    async def call(self, model: str, lane: str, job: str) -> None:
        """Call a worker of the model. Raises `QueueUnavailable`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.send, SERVE, model, lane, job)

    def send(self, task: str, model: str, *args: str) -> None:
        """The same from a thread, for any task. Raises `QueueUnavailable`."""
        for last in (False, True):
            try:
                if self._producer is None:
                    self._producer = self._app.amqp.Producer(self._app.connection_for_write(), auto_declare=False)
                self._app.send_task(
                    task, (model, *args), queue=keys.call_queue(model), producer=self._producer, retry=False
                )
                return
            except (OperationalError, *UNREACHABLE) as error:
                self._producer = None  # a connection that Redis closed meanwhile fails once
                if last:
                    raise QueueUnavailable(str(error)) from error

    def close(self) -> None:
        """Let go of the connection."""
        self._thread.shutdown(wait=True)
        if self._producer is not None:
            self._producer.close()
