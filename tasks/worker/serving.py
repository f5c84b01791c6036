"""What a worker's child does with a call: claim the next job, run it, end it."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial

import redis

from npu.engine import LockStepEngine
from npu.errors import EngineFailed, ModelRefused
from npu.model import Model
from tasks import keys
from tasks.at_work import at_work
from tasks.claims import Claim
from tasks.connection import OUTAGE_PATIENCE, UNREACHABLE
from tasks.events import Failed, FailureCode, Finished
from tasks.jobs import Phase
from tasks.live_settings import LiveSettings, follow
from tasks.presence import Presence, leave
from tasks.prompting.failures import failure
from tasks.prompting.setup import setup_of
from tasks.settings import TaskSettings
from tasks.stream import ClaimLost, EventWriter, RecordCut
from tasks.tracing import Tracing
from tasks.worker.begun import CannotContinue
from tasks.worker.beside import Beside
from tasks.worker.cancellation import ControlListener
from tasks.worker.claiming import Claiming
from tasks.worker.departure import STOPPED, Departure
from tasks.worker.execution import execute
from tasks.worker.heartbeat import Heartbeat
from tasks.worker.job_run import JobRun, log_end
from tasks.worker.leisure import Leisure
from tasks.worker.pacing import Pacing, is_hot
from tasks.worker.read_ahead import ReadAhead
from tasks.worker.settings import WorkerSettings
from tasks.worker.slot import Slot
from tasks.worker.spans import JobSpans
from tasks.worker.speeds import Speeds
from tasks.worker.together import Table

log = logging.getLogger("rockchipllama.jobs")

JOBS_PER_CALL = 8
SECONDS_PER_CALL = 10.0
"""Jobs served in a row on one call: so many, and more while they are so short that they all take less than that. Bounded, so
that Celery's parent gets its acknowledgement and watchers their news."""

NEXT = 1.0
"""Seconds that it takes further calls by itself behind a job, past Celery's parent."""

PAUSED = "a chat came first"
FORGOTTEN = "the job queue came back without the last moments of this answer"
AWAY = "the job queue was away for so long that the worker gave this up"


class _Broken(Exception):
    """The engine broke under a job, and was closed: the job may be tried again, here or elsewhere."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Serving:
    """Everything a child holds for its life. Made after the fork; one job at a time."""

    def __init__(
        self,
        client: redis.Redis,
        model: Model,
        worker: str,
        board: str,
        tasks_settings: TaskSettings,
        settings: WorkerSettings,
    ) -> None:
        self._client = client
        self._model = model
        self._worker = worker
        self._board = board
        self._settings = settings
        self._data_dir = tasks_settings.data_dir
        self._live = LiveSettings(tasks_settings)
        self._lease = tasks_settings.lease
        self._record_limit = tasks_settings.record_limit
        endpoint = tasks_settings.otlp_endpoint
        self._tracing = Tracing(endpoint, "worker") if endpoint is not None else None
        self._spans = JobSpans(self._tracing, board) if self._tracing is not None else None
        self._speeds = Speeds()
        self._pacing = Pacing()
        self._slot = Slot(model, setup_of(tasks_settings, settings.threads, settings.memory_domain, settings.instance))
        self._runs: tuple[JobRun, ...] = ()
        """The job in hand, and those that share its run."""
        self._beside: list[Beside] = []
        """The threads of those."""
        self._hands = threading.Lock()
        self._answered = 0
        self._call_in_hand = False
        self._ahead: ReadAhead | None = None
        """The job that another board was at, and that was read here last."""
        self._leisure = Leisure(self._slot, broke=lambda: self._heartbeat.changed())
        leaving = threading.Event()
        self._claiming = Claiming(
            *(client, model.id, worker, board, self._lease, self._live, self._pacing, leaving),
            parks=lambda: self._slot.parks,
        )
        self._departure = Departure(
            *(client, model.id, worker, board, self._claiming, lambda: self._runs, leaving), grace=settings.worker_grace
        )
        self._started = time.time()
        self._heartbeat = Heartbeat(
            client, self._lease, self._presence, self._follow, parking_is_stuck=lambda: self._leisure.stuck
        )
        self._control = ControlListener(
            client,
            worker,
            on_load=self._load,
            on_cancel=self._cancel,
            on_chat=self._chat_waits,
            on_finish=self._departure.finish,
            on_stop=self._departure.stop,
            on_hand_over=self._departure.hand_over,
            on_was_read=self._departure.was_read,
            on_unpark=self._unpark,
            on_pause_parking=self._slot.pause_parking,
            on_move=self._departure.move,
            on_read_ahead=self._read_ahead,
        )

    def close(self) -> None:
        """Close the engine and let go of Redis. Twice is safe."""
        self._departure.over.set()
        self._claiming.close()
        self._heartbeat.close()
        self._control.close()
        if self._ahead is not None:
            self._ahead.end()
        self._leisure.end()
        self._slot.close()
        if self._tracing is not None:
            self._tracing.close()

    def serve(self, call: str) -> str:
        """Claim and run what waits, and what comes within `NEXT` seconds behind it, for a while at most. What became of each, for
        people who watch.

        Going back to Celery between two jobs would leave the engine idle for twice as long. Calls that are left over by
        this find nothing, or whoever came meanwhile.
        """
        self._call_in_hand = True
        try:
            outcomes: list[str] = []
            over = time.monotonic() + SECONDS_PER_CALL
            claim = self._claiming.next(call)
            while claim is not None:
                outcomes.append(self._serve_one(claim, call))
                now = time.monotonic()
                goes_on = len(outcomes) < JOBS_PER_CALL or now < over
                claim = self._claiming.next(call) if goes_on else None
                if claim is None:
                    self._rest()
                    claim = self._claiming.awaited(call, now + NEXT) if goes_on else None
            return "; ".join(outcomes) or "nothing waits"
        finally:
            self._answered += 1
            self._call_in_hand = False

    def _rest(self) -> None:
        with self._hands:
            if not self._claiming.stopping and (self._ahead is None or self._ahead.over):
                self._leisure.begin()

    def _serve_one(self, claim: Claim, call: str) -> str:
        """Run a job, and those that share its run."""
        self._beside = []
        begun = time.monotonic()
        with at_work(self._data_dir):
            try:
                outcome = self._serve_claim(JobRun(claim, self._settings, self._record_limit), call)
            finally:
                for thread in self._beside:  # whatever became of this one: the engine is theirs until they have ended
                    thread.join()
                self._pacing.served(claim.lane, time.monotonic() - begun)
        return "; ".join([outcome, *(thread.outcome for thread in self._beside)])

    def _serve_claim(self, run: JobRun, call: str) -> str:
        outcome = self._serve_recorded(run, call)
        if self._spans is not None:
            self._spans.tell(run, outcome.partition(" ")[2])
        return outcome

    def _serve_recorded(self, run: JobRun, call: str) -> str:
        claim = run.claim
        try:
            with EventWriter(
                self._client,
                claim.job,
                claim.model,
                claim.token,
                claim.seq,
                lambda: run.cancel("cancelled"),
                patience=OUTAGE_PATIENCE,
            ) as run.writer:
                self._take(run)
                try:
                    return self._work(run, call)
                finally:
                    self._let_go(run)
        except UNREACHABLE as error:
            log.error("a job could not be recorded, Redis stayed away: %s", error, extra={"job": claim.job})
            return self._claiming.give_back(run, AWAY)

    def _take(self, run: JobRun) -> None:
        with self._hands:
            self._runs = (*self._runs, run)
            self._heartbeat.hold(self._runs)
        if self._claiming.stopping:
            run.cancel("stop")  # it was claimed in this very moment, and is for somebody who stays

    def _let_go(self, run: JobRun) -> None:
        with self._hands:
            self._runs = tuple(each for each in self._runs if each is not run)
            self._heartbeat.hold(self._runs)

    def _work(self, run: JobRun, call: str) -> str:
        claim = run.claim
        try:
            last = self._answer(run, call)
            if run.reason == "stop":
                moved = f"its board was drained, and '{run.goes_to}' goes on with it"
                return self._claiming.give_back(run, moved if run.goes_to else STOPPED)
            if run.reason == "pause":
                return self._claiming.give_back(run, PAUSED, paused_after=run.totals.prefill_ms)
            if run.read_again:
                run.writer.note(again=str(claim.again + run.read_again))
            run.writer.end(last)
        except _Broken as broken:
            return self._claiming.give_back(
                run, broken.failed.message.rstrip("."), crashed=True, code=broken.failed.code
            )
        except RecordCut as error:
            log.error("%s", error, extra={"job": claim.job, "model": claim.model})
            # Its clients have read what is not on record any more, and would read another answer behind it.
            return self._claiming.give_back(run, FORGOTTEN, final=True)
        except ClaimLost as error:
            outcome = f"lost: {error}" if run.reason in (None, "lost") else "cancelled"
            log.info("job %s", outcome, extra={"job": claim.job, "model": claim.model})
            return f"{claim.job} {outcome}"
        if isinstance(last, Finished) and not claim.sent and last.timings.together == 1:
            self._speeds.note(run.totals)
        return log_end(run, last)

    def _answer(self, run: JobRun, call: str) -> Finished | Failed:
        """Run the job to its last event, which is not yet written."""
        try:
            if self._ahead is not None:
                self._ahead.end()
            self._leisure.end()
            if run.cancelled:  # claimed in the moment of a stop
                return run.last_event()
            begun, was_loaded = time.monotonic(), self._slot.loaded  # either may have broken the engine
            # Who shares a run has its engine already, and must not load another where that one has just broken.
            engine = run.seat.engine if run.seat is not None else self._slot.engine(self._heartbeat.changed)
            if not was_loaded and run.seat is None:
                run.load_ms = (time.monotonic() - begun) * 1000
                self._heartbeat.changed()
            if run.cancelled:
                return run.last_event()
            run.enter(Phase.PREFILL)
            if run.seat is None and self._slot.lock_step is not None:
                self._share(run, self._slot.lock_step, call)
            return run.last_event(execute(self._client, self._slot.preparer, run.seat or engine, run))
        except ClaimLost:
            raise
        except CannotContinue as error:
            return Failed(FailureCode.ENGINE_LOST, str(error))
        except Exception as error:
            if error is run.writer.failure:
                raise  # not the engine's: the record could not be written
            if isinstance(error, EngineFailed):
                # Also when this run was to end anyway: the next job must not get what broke.
                self._slot.close(run.seat.engine if run.seat is not None else None)
                self._heartbeat.changed()
            if run.cancelled:
                return run.last_event()
            failed = failure(error)
            if isinstance(error, EngineFailed) and run.phase is not Phase.LOADING:
                log.warning("the engine broke: %s", error, extra={"job": run.claim.job, "model": run.claim.model})
                raise _Broken(failed) from error
            log.log(
                logging.WARNING if failed.code != "internal" else logging.ERROR,
                "job failed",
                exc_info=failed.code == "internal",
                extra={"job": run.claim.job, "model": run.claim.model, "code": failed.code.value},
            )
            return failed
        finally:
            if run.seat is not None:
                run.seat.close()

    def _share(self, run: JobRun, engine: LockStepEngine, call: str) -> None:
        """Let other jobs go on beside this one, each in a thread of its own, if there are any that may share its run."""
        claims = self._claiming.beside(run.claim, engine.slots - 1, call)
        if not claims:
            return
        table = Table(engine)
        run.seat = table.seat(lambda: run.cancelled)
        others = [JobRun(claim, self._settings, self._record_limit) for claim in claims]
        for other in others:
            other.seat = table.seat(partial(getattr, other, "cancelled"))
        for place, other in enumerate(others):
            thread = Beside(self._serve_claim, other, call)
            try:
                thread.start()
            except RuntimeError:  # no thread is to be had: nobody waits for those that have none
                for left in others[place:]:
                    if left.seat is not None:
                        left.seat.close()
                raise
            self._beside.append(thread)

    def _load(self) -> None:
        """Load the model ahead of the first job, beside the thread that listens."""
        threading.Thread(target=self._load_now, name="load", daemon=True).start()

    def _load_now(self) -> None:
        try:
            self._slot.engine(self._heartbeat.changed)
        except (ModelRefused, EngineFailed) as error:
            log.error("%s could not be loaded: %s", self._model.id, error)
        except Exception:
            log.exception("%s could not be loaded", self._model.id)
        finally:
            self._heartbeat.changed()

    def _cancel(self, job: str, claim: str) -> None:
        for run in self._runs:
            if (run.claim.job, run.claim.token) == (job, claim):
                run.cancel("cancelled")

    def _chat_waits(self, job: str, claim: str) -> None:
        if any((run.claim.job, run.claim.token) == (job, claim) for run in self._runs):
            self._heartbeat.renew_soon()

    def _unpark(self) -> None:
        """Another model of this board needs the memory."""
        self._slot.unpark()
        self._heartbeat.changed()

    def _read_ahead(self, job: str, worker: str) -> None:
        """Another worker is about to hand over that job, and waits until it was read here, or is not going to be."""
        with self._hands:
            free = not self._runs and not self._claiming.stopping and self._slot.loaded
            free = free and (self._ahead is None or self._ahead.over)
            if free:
                # That waits for what is being parked, which nobody must who holds this lock.
                self._ahead = ReadAhead(self._client, self._slot, self._leisure, job, lambda: self._was_read(worker))
        if not free:
            self._was_read(worker)

    def _was_read(self, worker: str) -> None:
        try:
            self._client.publish(keys.control(worker), "was-read")
        except UNREACHABLE as error:
            log.info("%s was not told to hand over its job, and does so when its grace is over: %s", worker, error)

    def _follow(self) -> None:
        """Obey what is kept of settings for the whole service, and the heat of this board; have loads counted."""
        follow(self._client, self._live)
        self._pacing.look(is_hot(self._client, self._board), self._runs, self._speeds.decode)
        self._pacing.tell(self._client, self._model.id, self._board)
        self._slot.events.report(self._client)

    def _presence(self) -> Presence:
        if self._slot.loading:
            state = "loading"
        elif not self._slot.loaded:
            state = "idle"
        else:
            state = "busy" if self._runs else "loaded"
        return Presence(
            name=self._worker,
            board=self._board,
            model=self._model.id,
            state=state,
            prefill_tps=self._speeds.prefill,
            decode_tps=self._speeds.decode,
            parked=self._slot.parked,
            answered=None if self._call_in_hand else self._answered,
            tries=self._slot.tries,
            problem=self._slot.problem,
            loaded_for=time.monotonic() - self._slot.loaded_at if self._slot.loaded else None,
            started=self._started,
        )

    def leave(self) -> None:
        """Take the worker off the roster."""
        leave(self._client, self._worker)
