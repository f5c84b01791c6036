"""How a worker takes jobs and gives them back, through outages of Redis."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import redis

from tasks.claims import Claim, Later, claim_next, hand_back, new_attempt
from tasks.connection import UNREACHABLE, Outages
from tasks.events import FailureCode
from tasks.live_settings import LiveSettings
from tasks.policy import Ageing
from tasks.queue import send
from tasks.settings import TaskSettings
from tasks.worker.job_run import JobRun
from tasks.worker.pacing import Pacing

log = logging.getLogger("rockchipllama.jobs")

AGAIN = 0.5
"""Seconds between two tries while Redis cannot serve."""
SLICE = 0.1
"""Seconds that a wait for calls may take longer when the worker is stopped."""


class Claiming:
    """For one worker. `next` and `beside` are for the thread that serves."""

    def __init__(
        self,
        client: redis.Redis,
        model: str,
        worker: str,
        board: str,
        lease: float,
        live: LiveSettings[TaskSettings],
        pacing: Pacing,
        leaving: threading.Event,
        parks: Callable[[], bool],
    ) -> None:
        """`leaving` is set when the worker waits for nothing any more; `parks` tells whether its engine does."""
        self._client = client
        self._model = model
        self._worker = worker
        self._board = board
        self._lease = lease
        self._live = live
        self._pacing = pacing
        self._leaving = leaving
        self._parks = parks
        self.stopping = False
        """It takes no job any more."""
        self.redis = Outages(log, "the worker's queue")
        self._look_again: threading.Timer | None = None
        """Where only jobs wait that are not to be taken yet: until the first of them is."""
        self._prefix = ""
        """Of the job that was served last: the engine has it in its cache."""

    def close(self) -> None:
        """Call for nobody any more."""
        if self._look_again is not None:
            self._look_again.cancel()

    def next(self, call: str) -> Claim | None:
        """The next job, through outages of Redis. A claim whose reply an outage swallowed is not made a second time.

        Where only jobs wait that it may not take yet, there is a call when it may take the first of them.
        """
        return self._next(call, 0.0)

    def awaited(self, call: str, until: float) -> Claim | None:
        """The same, but wait for one until that time, by the monotonic clock. The calls to serve are taken here, past Celery."""
        while not self.stopping and (left := until - time.monotonic()) > 0:
            claim = self._next(call, min(left, SLICE))
            if claim is not None:
                return claim
        return None

    def _next(self, call: str, call_within: float) -> Claim | None:
        attempt = new_attempt()
        while not self.stopping:
            try:
                found = claim_next(
                    self._client,
                    self._model,
                    worker=self._worker,
                    board=self._board,
                    child=os.getpid(),
                    call_id=call,
                    lease=self._lease,
                    attempt=attempt,
                    ageing=Ageing(self._live.now.background_wait, self._live.now.batch_wait),
                    prefix=self._prefix,
                    rest=self._pacing.rest,
                    parks=self._parks(),
                    call_within=call_within,
                )
            except UNREACHABLE as error:
                self.redis.lost(error)
                self._leaving.wait(AGAIN)
            else:
                self.redis.found()
                if isinstance(found, Later):
                    self._call_in(found.seconds)
                    return None
                self._prefix = found.prefix if found is not None else self._prefix
                return found
        return None

    def _call_in(self, seconds: float) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
        self._look_again = threading.Timer(seconds, self._call)
        self._look_again.daemon = True
        self._look_again.start()

    def _call(self) -> None:
        try:
            send(self._client, self._model)
        except UNREACHABLE as error:
            log.info("no call was sent for a job that was not taken, the sweep will: %s", error)

    def beside(self, claim: Claim, most: int, call: str) -> list[Claim]:
        found: list[Claim] = []
        try:
            while claim.kin and len(found) < most and not self.stopping:
                other = claim_next(
                    *(self._client, self._model),
                    worker=self._worker,
                    board=self._board,
                    child=os.getpid(),
                    call_id=call,
                    lease=self._lease,
                    beside=claim,
                )
                if not isinstance(other, Claim):
                    break
                found.append(other)
        except UNREACHABLE as error:
            self.redis.lost(error)
        return found

    def give_back(
        self,
        run: JobRun,
        why: str,
        *,
        crashed: bool = False,
        final: bool = False,
        code: FailureCode = FailureCode.ENGINE_LOST,
        paused_after: float | None = None,
    ) -> str:
        """End the claim, once Redis can be told, which is soon enough: this worker can do nothing before that either."""
        claim = run.claim
        while True:
            try:
                became = hand_back(
                    *(self._client, claim.model, claim.job, claim.token, why),
                    crashed=crashed,
                    final=final,
                    code=code,
                    read_again=run.read_again,
                    paused_after=paused_after,
                    goes_to=run.goes_to,
                    decoded=run.totals.decode_ms,
                )
            except UNREACHABLE as error:
                if self._leaving.wait(AGAIN):
                    log.error("a job could not be handed back: %s", error, extra={"job": claim.job})
                    return f"{claim.job} not handed back"
            else:
                facts = {"job": claim.job, "model": claim.model, "now": became.name.lower(), "why": why}
                log.info("job handed back", extra=facts)
                return f"{claim.job} handed back: {why}"
