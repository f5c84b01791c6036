"""A worker's pulse: breathes into the roster, renews the lease of the job in hand, and ends a process that is stuck."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

import redis

from tasks import keys
from tasks.claims import Renewal, renew
from tasks.connection import UNREACHABLE, Outages
from tasks.presence import BREATH, Presence, breathe
from tasks.worker.job_run import JobRun

log = logging.getLogger("rockchipllama.worker")

FIRST_RENEWAL = 0.1
RENEWAL = 1.0
"""Seconds from a claim to its first renewal, and at most between two; each tells clients how far the job is."""

OTHERS_FIRST = 0.005
"""Seconds in which a worker that is free takes a job that has just been accepted."""


class Heartbeat:
    """One thread beside the engine's. It must not stop while C code runs, so the engine releases Python's lock."""

    def __init__(
        self,
        client: redis.Redis,
        lease: float,
        presence: Callable[[], Presence],
        with_each: Callable[[], None],
        parking_is_stuck: Callable[[], bool] = lambda: False,
    ) -> None:
        """`with_each` is called with each breath, and raises what the client raises. `parking_is_stuck` tells whether the engine
        hangs while it parks a conversation."""
        self._client = client
        self._lease = lease
        self._presence = presence
        self._with_each = with_each
        self._parking_is_stuck = parking_is_stuck
        self._runs: tuple[JobRun, ...] = ()
        self._redis = Outages(log, "the worker")
        self._wake = threading.Event()
        self._breath_due = self._renewal_due = 0.0  # monotonic seconds
        self._closed = False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def hold(self, runs: tuple[JobRun, ...]) -> None:
        """From now on renew the leases of these runs."""
        self._runs = runs
        if runs:
            # The first renewal tells how far a run is that takes its time; a short one has ended by then.
            self._renewal_due = time.monotonic() + FIRST_RENEWAL
            self._wake.set()

    def renew_soon(self) -> None:
        """A chat waits, for which the run may have to make room: ask, once another worker could have taken it."""
        self._renewal_due = min(self._renewal_due, time.monotonic() + OTHERS_FIRST)
        self._wake.set()

    def changed(self) -> None:
        """The worker's state changed: breathe now."""
        self._breath_due = 0.0
        self._wake.set()

    def close(self) -> None:
        """Stop. Twice is safe."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=5)

    def _beat(self) -> None:
        while not self._closed:
            self._wake.clear()
            now = time.monotonic()
            if self._parking_is_stuck():
                log.error("the engine hangs while it parks a conversation; restarting it")
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                if now >= self._breath_due:
                    self._breath_due = now + BREATH
                    breathe(self._client, self._presence())
                    self._with_each()
                runs = self._runs
                if runs and now >= self._renewal_due:
                    self._renewal_due = now + min(RENEWAL, self._lease / 3)
                    for run in runs:
                        self._renew(run, runs)
                self._redis.found()
            except UNREACHABLE as error:
                self._redis.lost(error)
            except Exception:
                # A defect of ours; but without its pulse this worker would soon count as dead.
                log.exception("the heartbeat stumbled, and goes on")
            next_due = self._breath_due if not self._runs else min(self._breath_due, self._renewal_due)
            self._wake.wait(max(0.001, next_due - time.monotonic()))

    def _renew(self, run: JobRun, runs: tuple[JobRun, ...]) -> None:
        limit = run.stalled
        if limit is not None:
            # A thread cannot end C code. The parent reports the dead child, and starts another.
            log.error(
                "job %s made no progress in %s for %.0f s; restarting the engine", run.claim.job, run.phase, limit
            )
            os.kill(os.getpid(), signal.SIGKILL)
        if run.blocks and self._client.zcard(keys.waiting(run.claim.model)):
            log.warning(
                "job %s was given up and its prefill cannot be aborted, while others wait; restarting the engine",
                run.claim.job,
            )
            os.kill(os.getpid(), signal.SIGKILL)
        match renew(
            self._client, run.claim, self._lease, run.phase.value, run.done, run.can_be_paused and not run.cancelled
        ):
            case Renewal.CANCELLED:
                run.cancel("cancelled")
            case Renewal.PAST_DEADLINE:
                run.cancel("deadline")
            case Renewal.PAUSED:
                for each in runs:  # they share the engine, and leave it together
                    each.cancel("pause")
            case Renewal.LOST:
                # The record is another's now; whatever this run still does, nobody will read.
                run.cancel("lost")
            case Renewal.RENEWED:
                pass
