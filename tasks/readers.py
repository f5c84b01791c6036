"""Who reads: the API processes that records name as readers of their jobs, and whether they are still there."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import cast

import redis

from tasks import keys


class Readers:
    """The readers' breaths as one sweeper hears them. It believes nobody gone whom it has not found silent itself, all the
    time for `patience` seconds."""

    def __init__(self, client: redis.Redis, patience: float, pause: float) -> None:
        """Who asks less often than each `pause` seconds was held up, perhaps with all this machine does."""
        self._client = client
        self._patience = patience
        self._pause = pause
        self._heard: dict[str, tuple[bytes | None, float]] = {}
        """Of each reader the last breath, which begins with its time, and when it was new, in monotonic seconds."""
        self._listened = time.monotonic()

    def forgive(self) -> None:
        """Count every silence anew: nobody could be heard."""
        self._heard.clear()

    def gone(self, names: Collection[str]) -> set[str]:
        """Those of `names` that are not there any more; who is not named is forgotten. Raises what the client raises."""
        breaths: list[bytes | None] = []
        if names:
            breaths = cast("list[bytes | None]", self._client.hmget(keys.PRESENCE, list(names)))
        now = time.monotonic()
        if now - self._listened > self._pause:
            self.forgive()
        self._listened = now
        heard = {}
        for name, breath in zip(names, breaths, strict=True):
            before = self._heard.get(name)
            # None: who is silent for some breaths is not kept.
            heard[name] = before if before is not None and breath in (None, before[0]) else (breath, now)
        self._heard = heard
        return {name for name, (_, since) in heard.items() if now - since > self._patience}
