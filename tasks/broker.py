"""The Celery application: how workers take calls from Redis. Only workers and Flower load it."""

from __future__ import annotations

from celery import Celery

from tasks import keys
from tasks.connection import SOCKET_TIMEOUT, celery_url


def celery_app(redis_url: str) -> Celery:
    """The application on that Redis, without tasks."""
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
        # A call is acknowledged when it was served: so a worker never has a second one waiting behind a long answer.
        task_acks_late=True,
        # The parent ends a dead child's claim itself; putting the call back would neither be needed nor tell anybody.
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        # A dead engine is reported at once: it publishes no late result that would be worth waiting for.
        worker_lost_wait=0.1,
        worker_proc_alive_timeout=30,
        worker_hijack_root_logger=False,
        # Each event costs half a millisecond before a call is served. Flower switches them on when it begins to watch.
        worker_send_task_events=False,
    )
    return app
