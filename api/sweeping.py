"""The sweep of models that no living board has: there nobody else would end a job, and its client would wait for ever."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tasks.connection import UNREACHABLE, Outages, connect
from tasks.roster import ModelStatus
from tasks.sweep import SWEEP, Sweeper

log = logging.getLogger("rockchipllama.api")


@contextmanager
def sweeping(url: str, lease: float, models: Callable[[], Sequence[ModelStatus]]) -> Iterator[None]:
    """Sweep while the block lasts, in a thread of its own. `lease` is in seconds; `models` answers from any thread."""
    leaving = threading.Event()
    threading.Thread(target=_keep_sweeping, args=(url, lease, models, leaving), name="sweep", daemon=True).start()
    try:
        yield
    finally:
        # It is not waited for: it may be waiting itself, for a Redis that is away.
        leaving.set()


def _keep_sweeping(
    url: str, lease: float, models: Callable[[], Sequence[ModelStatus]], leaving: threading.Event
) -> None:
    client = connect(url)
    sweeper = Sweeper(client, lease)
    redis = Outages(log, "the sweep")
    while not leaving.wait(SWEEP):
        try:
            statuses = models()
            cared_for = {status.card.id for status in statuses if status.boards}
            # Also for no model at all: so the sweeper learns of outages.
            sweeper.sweep({status.card.id for status in statuses} - cared_for, others=cared_for)
            redis.found()
        except UNREACHABLE as error:
            redis.lost(error)
        except Exception:
            log.exception("a sweep broke off; the next one comes in %.0f s", SWEEP)
    client.close()
