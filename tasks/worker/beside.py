"""The thread that works on a job beside the one in hand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tasks.worker.job_run import JobRun

log = logging.getLogger("rockchipllama.jobs")


class Beside(threading.Thread):
    """Serves a job that shares the run of the one in hand."""

    def __init__(self, serve: Callable[[JobRun, str], str], run: JobRun, call: str) -> None:
        super().__init__(name=f"beside-{run.claim.job}", daemon=True)
        self.outcome = "broke off"
        self._serve = serve
        self._job_run = run
        self._call = call

    def run(self) -> None:
        """Serve it. A defect ends it alone: its lease lapses, and those that wait for it at the table go on."""
        try:
            self.outcome = self._serve(self._job_run, self._call)
        except Exception:
            log.exception("a job that shared a run broke off", extra={"job": self._job_run.claim.job})
        finally:
            if self._job_run.seat is not None:
                self._job_run.seat.close()
