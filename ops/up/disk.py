"""Watches the disk below the embedded Valkey: a full one stops new jobs, and none that was accepted.

Valkey refuses every write once its file could not be written, which would leave accepted jobs without an end. So new jobs are
refused while there is still room for the others; and when writing fails all the same, Valkey goes on in memory alone until
it can write its files anew.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ops.up import store
from tasks import keys

log = logging.getLogger("rockchipllama.up")

LOOK = 5.0
"""Seconds between two looks; a worker waits longer than that for a Redis that takes nothing."""
LOOK_CLOSELY = 1.0
"""The same while no job is accepted."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries to write files again, after some that failed."""


class DiskWatch:
    """A thread that looks how much room there is, and whether Valkey could write."""

    def __init__(self, folder: Path, sock: Path, reserve: int, say: Callable[[str], None]) -> None:
        """`reserve` is in bytes: with less free, no job is accepted."""
        self._folder = folder
        self._sock = sock
        self._reserve = reserve
        self._say = say
        self._in_memory = False
        """Valkey does not write, or not yet all that it knows."""
        self._pause = LOOK_CLOSELY
        self._try_at = 0.0
        self._refusing: bool | None = None
        """None at first: an earlier run may have left word."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="disk", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more. Twice is safe."""
        self._over.set()

    def _look_on(self) -> None:
        while not self._over.wait(LOOK_CLOSELY if self._refusing or self._in_memory else LOOK):
            try:
                self.look()
            except OSError as error:
                log.debug("the embedded Valkey could not be asked: %s", error)  # its own end is said elsewhere

    def look(self) -> None:
        """See to what there is. Raises `OSError` when Valkey does not answer."""
        found = dict(line.split(":", 1) for line in store.ask(self._sock, "INFO", "persistence").split() if ":" in line)
        total, _, free = shutil.disk_usage(self._folder)
        writes, failed = found["aof_enabled"] == "1", found["aof_last_write_status"] != "ok"
        if writes and failed:
            store.ask(self._sock, "CONFIG", "SET", "appendonly", "no")
            self._try_at = time.monotonic() + self._pause
            self._pause = min(LONGEST_PAUSE, self._pause * 2)
            if not self._in_memory:
                self._say(
                    f"The queue's files in {self._folder} could not be written ({_free(free, total)}). What was accepted goes "
                    "on in memory, and would be forgotten if Valkey ended now; new requests are refused. Make room."
                )
            self._in_memory = True
        elif not writes and free >= self._reserve and time.monotonic() >= self._try_at:
            self._try_at = time.monotonic() + self._pause
            self._pause = min(LONGEST_PAUSE, self._pause * 2)
            store.ask(self._sock, "CONFIG", "SET", "appendonly", "yes")
        elif writes and self._in_memory:
            under_way = found["aof_rewrite_in_progress"] == "1" or found["aof_rewrite_scheduled"] == "1"
            self._in_memory = under_way or found["aof_last_bgrewrite_status"] != "ok"
        self._refuse(free, total)

    def _refuse(self, free: int, total: int) -> None:
        if self._in_memory:
            why = f"could not be written to ({_free(free, total)})"
        elif free < self._reserve:
            why = f"has {_free(free, total)}; {_megabytes(self._reserve)} are left to requests accepted before"
        else:
            if self._refusing is not False:
                store.ask(self._sock, "DEL", keys.REFUSAL)
            if self._refusing:
                self._say(f"There is room for the queue's files again ({_free(free, total)}); requests are accepted.")
            self._refusing, self._pause = False, LOOK_CLOSELY
            return
        lasts = str(int(4 * LOOK * 1000))
        store.ask(self._sock, "SET", keys.REFUSAL, f"The disk of the job queue {why}.", "PX", lasts)
        if not self._refusing and not self._in_memory:
            self._say(
                f"The disk with the queue's files {why}: new requests are refused. Make room below {self._folder}."
            )
        self._refusing = True


def _free(free: int, total: int) -> str:
    return f"{_megabytes(free)} of {_megabytes(total)} free"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
