"""Listens for what a worker is told beside its calls: to load its model, to cancel the job in hand, to stop soon or to
hand that job over, to give back the memory of what is parked or to park nothing for a while; that a chat waits, and that another
worker is about to hand over a job."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import redis

from tasks import keys
from tasks.connection import UNREACHABLE, Outages

log = logging.getLogger("rockchipllama.worker")

AGAIN = 0.5
"""Seconds before it listens anew after a failure."""


class ControlListener:
    """One thread on the worker's control channel. A lost message costs delay only: appends and renewals tell it again."""

    def __init__(
        self,
        client: redis.Redis,
        worker: str,
        *,
        on_load: Callable[[], None],
        on_cancel: Callable[[str, str], None],
        on_chat: Callable[[str, str], None],
        on_finish: Callable[[float], None],
        on_stop: Callable[[], None],
        on_hand_over: Callable[[], None],
        on_was_read: Callable[[], None],
        on_unpark: Callable[[], None],
        on_pause_parking: Callable[[float], None],
        on_move: Callable[[], None],
        on_read_ahead: Callable[[str, str], None],
    ) -> None:
        self._client = client
        self._channel = keys.control(worker)
        self._on_load = on_load
        self._on_cancel = on_cancel
        self._on_chat = on_chat
        self._on_finish = on_finish
        self._on_stop = on_stop
        self._on_hand_over = on_hand_over
        self._on_was_read = on_was_read
        self._on_unpark = on_unpark
        self._on_pause_parking = on_pause_parking
        self._on_move = on_move
        self._on_read_ahead = on_read_ahead
        self._redis = Outages(log, "the control channel")
        self._closed = False
        self._thread = threading.Thread(target=self._listen, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Twice is safe."""
        self._closed = True
        self._thread.join(timeout=5)

    def _listen(self) -> None:
        while not self._closed:
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
                    channel.subscribe(self._channel)
                    self._redis.found()
                    while not self._closed:
                        message = channel.get_message(timeout=1.0)
                        if message is not None:
                            self._obey(bytes(message["data"]).decode())
            except UNREACHABLE as error:
                self._redis.lost(error)
                time.sleep(AGAIN)
            except Exception:
                # A defect of ours; but deaf, this worker could neither be cancelled nor stopped.
                log.exception("the control channel broke, listening anew")
                time.sleep(AGAIN)

    def _obey(self, message: str) -> None:
        match message.split():
            case ["cancel", job, claim]:
                self._on_cancel(job, claim)
            case ["chat", job, claim]:
                self._on_chat(job, claim)
            case ["load"]:
                self._on_load()
            case ["finish", seconds] if seconds.isdecimal():
                self._on_finish(float(seconds))
            case ["stop"]:
                self._on_stop()
            case ["hand-over"]:
                self._on_hand_over()
            case ["was-read"]:
                self._on_was_read()
            case ["unpark"]:
                self._on_unpark()
            case ["pause-parking", seconds] if seconds.isdecimal():
                self._on_pause_parking(float(seconds))
            case ["move"]:
                self._on_move()
            case ["read-ahead", job, worker]:
                self._on_read_ahead(job, worker)
            case _:
                log.warning("ignored an unknown word on the control channel")
