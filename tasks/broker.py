"""The Celery application: how workers take calls from Redis. Only workers and Flower load it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import kombu
from celery import Celery
from celery.app.amqp import AMQP

from tasks import keys, sentinel
from tasks.connection import SOCKET_TIMEOUT, sentinel_options

RECONNECT = 1.0
"""Seconds between two tries to reach a Redis that is away."""


class _Connection(kombu.Connection):
    """Comes back with Redis. Celery itself waits longer after each failure, up to half a minute, and all answers with it."""

    def _ensure_connection(self, errback: Callable[..., object] | None = None, *args: Any, **options: Any) -> Any:
        said = False

        def say_once(error: Exception, interval: float) -> None:
            nonlocal said
            if errback is not None and not said:
                said = True
                errback(error, interval)

        options |= {"interval_start": RECONNECT, "interval_step": 0, "interval_max": RECONNECT}
        return super()._ensure_connection(say_once, *args, **options)


class _Amqp(AMQP):
    Connection = _Connection


def celery_url(url: str) -> str:
    """The same Redis in the spelling of Celery's transport, which has its own for Unix sockets and Sentinels, and takes
    `rediss` for a plain connection unless TLS is spelled out."""
    if (named := sentinel.named_by(url)) is not None:
        who = f"{quote(named.username or '', '')}:{quote(named.password or '', '')}@" if named.password else ""
        shown = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in named.hosts)
        return ";".join(f"sentinel://{who}{host}/{named.database}" for host in shown)
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "unix":
        who = parts.netloc
        if "password" in query:
            who = f"{quote(query.get('username', parts.username or ''), '')}:{quote(query['password'], '')}@"
        return f"redis+socket://{who}{parts.path}?virtual_host={query.get('db', '0')}"
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in query:
        return f"{url}{'&' if parts.query else '?'}ssl_cert_reqs=required"
    return url


def _through_sentinel(url: str) -> dict[str, Any]:
    named = sentinel.named_by(url)
    return {} if named is None else {"master_name": named.master, "sentinel_kwargs": sentinel_options(named)}


def celery_app(redis_url: str) -> Celery:
    """The application on that Redis, without tasks."""
    app = Celery("rockchipllama", broker=celery_url(redis_url), set_as_current=False, amqp=_Amqp)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        # However long Redis is away: a worker that gave up would only be started again, and load its model anew.
        broker_connection_max_retries=None,
        broker_transport_options={
            **_through_sentinel(redis_url),
            "global_keyprefix": keys.PREFIX,
            "socket_timeout": 30,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            "socket_keepalive": True,
            # A connection that broke without a word is found out within twice as long, sooner than a board's watchdog
            # takes the worker for stuck that hears no calls on it.
            "health_check_interval": 10,
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
