"""Listens to the events of all jobs, to see when the engine stood still between two of them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import pairwise

from tasks import keys
from tasks.connection import connect
from tasks.events import Finished, Started, TextDelta, decode_events


@dataclass(slots=True)
class Job:
    """When one job's events were heard, seconds by `time.perf_counter`, and what its prompt took."""

    claimed: float = 0.0
    first: float = 0.0
    ended: float = 0.0
    prefill: float = 0.0


class Watch:
    """One subscription to every job's channel, for the length of the block."""

    def __init__(self, redis_url: str) -> None:
        self._client = connect(redis_url)
        self._channel = self._client.pubsub()  # type: ignore[no-untyped-call]
        self._channel.psubscribe(keys.live("*"))
        self._channel.get_message(timeout=5)
        self._jobs: dict[bytes, Job] = {}
        self._over = False
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over = True
        self._thread.join(timeout=5)
        self._channel.close()
        self._client.close()

    def gaps(self) -> tuple[list[float], list[float]]:
        """Milliseconds from each job's end to the next one's first engine step, and those of them up to its claim.

        The end is when the job's last event was written, and the first step is when its first text was written less
        what the engine took for it: the writing, which takes as long in both, cancels out.
        """
        self._over = True
        self._thread.join(timeout=5)
        jobs = sorted((job for job in self._jobs.values() if job.claimed and job.ended and job.first), key=_claimed)
        pairs = list(pairwise(jobs[1:]))  # the first is the one that held the others back
        gaps = [(after.first - after.prefill - before.ended) * 1000 for before, after in pairs]
        return gaps, [(after.claimed - before.ended) * 1000 for before, after in pairs]

    def _listen(self) -> None:
        while not self._over:
            message = self._channel.get_message(timeout=0.5)
            if message is None or message["type"] != "pmessage":
                continue
            now = time.perf_counter()
            payload = message["data"].partition(b":")[2]
            job = self._jobs.setdefault(message["channel"], Job())
            for event in decode_events(payload) if payload else ():
                match event:
                    case Started():
                        job.claimed = now
                    case TextDelta() if not job.first:
                        job.first = now
                    case Finished():
                        job.ended, job.prefill = now, event.timings.prefill_ms / 1000


def _claimed(job: Job) -> float:
    return job.claimed
