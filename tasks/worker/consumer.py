"""How a worker's parent comes back to a Redis that answers and yet takes nothing, such as a full one.

Celery begins anew at once when a command fails, and writes two lines each time: some twenty times a second for as long as
the memory is full, on a board whose cores others need. A Redis that is away is another matter: there the connection waits
(`tasks/broker.py`).
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import celery.worker.consumer
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer.consumer import CONNECTION_ERROR  # type: ignore[attr-defined]  # its types lack it
from celery.worker.state import maybe_shutdown

from tasks.connection import Outages

log = logging.getLogger("rockchipllama.worker")

PAUSES = (0.0, 1.0, 2.0, 4.0)
"""Seconds before each new beginning; the last for all that follow. Well below the time after which the board's watchdog
takes a worker for stuck that could take calls and does not."""

AGAIN = 600.0
"""Seconds after which the transport may say the same again."""


class Consumer(celery.worker.consumer.Consumer):
    """Celery's own, with growing pauses, and a word only at the beginning and at the end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        logging.getLogger("kombu.transport.redis").addFilter(Rarely())
        self._redis = Outages(log, "the worker's parent")
        logging.getLogger(celery.worker.consumer.consumer.__name__).addFilter(InWords(self._redis))
        self._failures = 0

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """It began anew, and failed before it could wait for calls."""
        self._redis.lost(exc)
        self._pause()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """It waited for calls, and failed. Celery says so."""
        with warnings.catch_warnings():
            # It recommends to end what was begun when Redis goes; here an answer goes on through an outage.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        self._pause()

    def on_ready(self) -> None:
        """It waits for calls."""
        super().on_ready()
        self._failures = 0
        self._redis.found()

    def _pause(self) -> None:
        over = time.monotonic() + PAUSES[min(self._failures, len(PAUSES) - 1)]
        self._failures += 1
        while time.monotonic() < over:
            maybe_shutdown()
            time.sleep(0.05)


class InWords(logging.Filter):
    """Says once what Celery says at each try to connect, in two lines for programmers."""

    def __init__(self, redis: Outages) -> None:
        super().__init__()
        self._redis = redis

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is something else."""
        if record.msg != CONNECTION_ERROR or not isinstance(record.args, tuple):
            return True
        self._redis.lost(record.args[1])
        return False


class Rarely(logging.Filter):
    """Lets the same message pass once in a while: the transport tells each second, with its traceback, what it cannot note."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it was not told lately."""
        now = time.monotonic()
        if now - self._passed.get(record.msg, -AGAIN) < AGAIN:
            return False
        self._passed[record.msg] = now
        return True
