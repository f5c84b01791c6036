"""A worker's pulse: breathes into the roster, renews the lease of the job in hand, and ends a process that is stuck."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

import redis

from tasks.claims import Renewal, renew
from tasks.connection import UNREACHABLE
from tasks.roster import BREATH, Presence, breathe
from tasks.worker.job_run import JobRun

log = logging.getLogger("rockchipllama.worker")


class Heartbeat:
    """One thread beside the engine's. It must not stop while C code runs, so the engine releases Python's lock."""

    def __init__(self, client: redis.Redis, lease: float, presence: Callable[[], Presence]) -> None:
        self._client = client
        self._lease = lease
        self._presence = presence
        self._run: JobRun | None = None
        self._changed = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def hold(self, run: JobRun | None) -> None:
        """From now on renew the lease of this run, or of none."""
        self._run = run

    def changed(self) -> None:
        """The worker's state changed: breathe now."""
        self._changed.set()

    def close(self) -> None:
        """Stop. Twice is safe."""
        self._closed = True
        self._changed.set()
        self._thread.join(timeout=5)

    def _beat(self) -> None:
        next_breath = next_renewal = 0.0
        while not self._closed:
            now = time.monotonic()
            try:
                if self._changed.is_set() or now >= next_breath:
                    self._changed.clear()
                    breathe(self._client, self._presence())
                    next_breath = now + BREATH
                if now >= next_renewal:
                    next_renewal = now + self._lease / 3
                    if self._run is not None:
                        self._renew(self._run)
            except UNREACHABLE as error:
                log.warning("Redis is away: %s", error)
                next_breath = now + BREATH
            self._changed.wait(max(0.01, min(next_breath, next_renewal) - time.monotonic()))

    def _renew(self, run: JobRun) -> None:
        limit = run.stalled
        if limit is not None:
            # A thread cannot end C code. The parent reports the dead child, and starts another.
            log.error(
                "job %s made no progress in %s for %.0f s; restarting the engine", run.claim.job, run.phase, limit
            )
            os.kill(os.getpid(), signal.SIGKILL)
        match renew(self._client, run.claim, self._lease, run.phase.value, run.done):
            case Renewal.CANCELLED:
                run.cancel("cancelled")
            case Renewal.PAST_DEADLINE:
                run.cancel("deadline")
            case Renewal.LOST:
                # The record is another's now; whatever this run still does, nobody will read.
                run.cancel("lost")
            case Renewal.RENEWED:
                pass
