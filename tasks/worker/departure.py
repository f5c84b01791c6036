"""How a worker goes: how long the job in its hands may go on, and who has that job next."""

from __future__ import annotations

import threading
from collections.abc import Callable

import redis

from tasks import keys
from tasks.jobs import Phase
from tasks.worker.claiming import Claiming
from tasks.worker.job_run import JobRun
from tasks.worker.read_ahead import free_worker

STOPPED = "the worker was stopped while it worked on this"


class Departure:
    """Its methods are what the worker is told. They may be called from any thread."""

    def __init__(
        self,
        client: redis.Redis,
        model: str,
        worker: str,
        board: str,
        claiming: Claiming,
        runs: Callable[[], tuple[JobRun, ...]],
        over: threading.Event,
        grace: float,
    ) -> None:
        """`runs` tells the jobs in hand, and `grace` how many seconds they get at a stop."""
        self.over = over
        """That grace is over: the worker waits for nothing any more."""
        self._client = client
        self._model = model
        self._worker = worker
        self._board = board
        self._claiming = claiming
        self._runs = runs
        self._grace = grace

    def finish(self, seconds: float) -> None:
        """It is to stop, and the job in hand may go on for so long: its model gives way to another one."""
        self._claiming.stopping = True
        self._grace = max(seconds, self._grace)

    def stop(self) -> None:
        """It is to stop, at the latest when its grace is over."""
        self._claiming.stopping = True
        timer = threading.Timer(self._grace, self._stop_run)
        timer.daemon = True
        timer.start()

    def hand_over(self) -> None:
        """Another board goes on with the job in hand: nothing is gained by the grace of a stop."""
        self._claiming.stopping = True
        self._stop_run()

    def move(self) -> None:
        """This board is drained: another one that is free reads the job in hand, then this one hands it over, at the latest
        when the grace of its stop is over."""
        self._claiming.stopping = True
        runs = self._runs()
        alone = len(runs) == 1 and runs[0].phase is not Phase.LOADING
        free = free_worker(self._client, self._model, self._board) if alone else None
        if free is None:
            self.hand_over()
            return
        worker, board = free
        runs[0].goes_to = board
        if not self._client.publish(keys.control(worker), f"read-ahead {runs[0].claim.job} {self._worker}"):
            self.hand_over()

    def was_read(self) -> None:
        """Its job was read elsewhere, or is not going to be."""
        if self._claiming.stopping:  # else it was said to a predecessor, whose board serves again
            self._stop_run()

    def _stop_run(self) -> None:
        self.over.set()
        for run in self._runs():
            run.cancel("stop")
            if run.phase is Phase.LOADING:
                self._claiming.give_back(run, STOPPED)  # nothing else can end a load early
