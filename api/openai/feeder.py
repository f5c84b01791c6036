"""Feeds one batch: its lines become jobs, a few at a time, and what becomes of these becomes lines of its files.

A line is answered once. Before its job is accepted, the batch remembers that the line is on its way, and as which job; when
its answer is on the disk, one step counts it and says how much of the files is good. Whoever goes on after a crash drops what
was written behind that, and reads the outcome of every job on its way, which may have ended long ago.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from api.errors import Problem, of_error, of_failed
from api.openai.batch_input import Item, Line, Names, Wrong, read_item, read_lines
from api.openai.batch_output import Outcome, answered, not_run, refused
from api.openai.endpoints import ENDPOINTS
from api.relay import Relay
from api.settings import ApiSettings
from api.storage import Storage
from tasks.batch import BatchOrder, BatchState, Hold, LineProblem, Step
from tasks.connection import UNREACHABLE
from tasks.errors import JobNotFound, ModelDown, QueueDraining, QueueFull, QueueUnavailable, Refused, StorageFull
from tasks.events import Failed, FailureCode, Finished, FinishReason, Unreadable, fold
from tasks.files import FileBook, StoredFile
from tasks.jobs import Lane, new_job_id
from tasks.reader import Forgotten
from tasks.roster import ModelStatus, Roster

log = logging.getLogger("rockchipllama.batch")

MOST_LINES = 100_000
MOST_PROBLEMS = 100
"""Of the problems of an input so many are shown."""
LEAST_AHEAD, AHEAD, MOST_AHEAD = 16, 8, 128
"""Items that are on their way at once: so many for each worker, within these bounds."""
COMMIT = 1.0
"""Seconds for which answers are collected before they are written, since SD cards wear."""
COMMIT_BYTES = 4_000_000
AGAIN = 2.0
"""Seconds until what could not be accepted is tried again."""
KEPT = 30 * 24 * 3600
"""Seconds for which a batch's files are kept unless its client says."""

_encode = msgspec.json.encode


class Feeder:
    """One batch, fed by this process for as long as it holds it."""

    def __init__(
        self,
        order: BatchOrder,
        hold: Hold,
        *,
        relay: Relay,
        roster: Roster,
        files: FileBook,
        storage: Storage,
        settings: ApiSettings,
        lease: float,
    ) -> None:
        self._order = order
        self._hold = hold
        self._relay = relay
        self._roster = roster
        self._files = files
        self._storage = storage
        self._settings = settings
        self._lease = lease
        self._endpoint = ENDPOINTS[order.endpoint]
        self._written = hold.progress.written
        self._refused = hold.progress.refused
        self._ending: BatchState | None = BatchState.CANCELLED if hold.progress.cancel else None
        """How the batch ends before all of it is done: cancelled, or expired."""
        self._left = hold.progress.left
        self._stepped = 0.0
        self._running: dict[int, asyncio.Task[Outcome]] = {}
        self._jobs: dict[int, str] = {}
        self._outcomes: list[Outcome] = []

    async def run(self) -> None:
        """Bring it to its end. Raises `FeederReplaced`, `QueueUnavailable`, and `OSError` when its files cannot be read or
        written; it can be gone on with then, here or elsewhere."""
        try:
            total: int | None = self._hold.progress.total
            if not total and self._ending is None:
                total = await self._validate()
                if total is None:
                    return
            await self._hold_on()
            if total:
                await self._feed()
            await self._finish()
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def leave(self) -> None:
        """Let somebody else go on at once."""
        await self._hold.step(Step(leave=True))

    async def _step(self, step: Step) -> None:
        cancelled, self._left = await self._hold.step(step)
        self._stepped = asyncio.get_running_loop().time()
        if self._ending is None and (cancelled or self._left <= 0):
            self._ending = BatchState.CANCELLED if cancelled else BatchState.EXPIRED

    async def _hold_on(self) -> None:
        """Hold the batch for another lease."""
        await self._step(Step())

    async def _keep(self) -> None:
        """Hold the batch for longer, when it is time to."""
        if self._since_step() > self._lease / 3:
            await self._hold_on()

    def _since_step(self) -> float:
        return asyncio.get_running_loop().time() - self._stepped

    def _time_left(self) -> float:
        """Seconds until the batch expires."""
        return self._left - self._since_step()

    # The input, before anything of it is run

    async def _validate(self) -> int | None:
        """Its lines; None when they are wrong, and the batch has failed, 0 when it came to its end before they were known."""
        problems: list[LineProblem] = []
        total = 0
        names = Names()
        await self._hold_on()
        await self._roster.refresh()  # it is empty for a moment after a start without Redis
        try:
            async for line in self._lines(0, 0):
                total += 1
                try:
                    if total > MOST_LINES:
                        raise Wrong("too_many_tasks", f"A batch has at most {MOST_LINES} requests; split the file.")
                    item = read_item(line, self._order.endpoint, self._endpoint, self._settings)
                    names.add(item.custom_id)
                    self._roster.resolve(item.body.model)
                except Wrong as error:
                    problems.append(error.problem(line.number))
                except Refused as error:
                    problems.append(LineProblem("model_not_found", str(error), line.number, "body.model"))
                if len(problems) >= MOST_PROBLEMS or total > MOST_LINES:
                    break
                await self._keep()
                if self._ending is not None:
                    return 0
                await asyncio.sleep(0)  # chats are answered by this process as well
        except FileNotFoundError:
            problems.append(LineProblem("file_not_found", "The input file is not there any more."))
        else:
            if not total:
                problems.append(LineProblem("empty_file", "The input file has no requests: one JSON object a line."))
        if problems:
            found = _encode(problems).decode()
            await self._step(Step(put={**self._moment(BatchState.FAILED), "problems": found}, over=True))
            return None
        await self._step(Step(put={**self._moment(BatchState.IN_PROGRESS), "total": total}))
        return total

    def _lines(self, start: int, number: int) -> AsyncIterator[Line]:
        return read_lines(self._storage, self._order.input_file, self._settings.max_body, start, number)

    def _moment(self, state: BatchState) -> dict[str, str | int]:
        return {"state": state.value, f"at:{state.value}": int(time.time())}

    # Its lines, until none is left

    async def _feed(self) -> None:
        try:
            await self._feed_lines()
        except FileNotFoundError:
            if self._ending is None:
                raise
            # Nothing more is to be run anyway, so the end does not wait for the input.
            self._jobs = {number: job for number, (job, _) in self._hold.items.items()}
            await self._cancel_jobs()

    async def _feed_lines(self) -> None:
        progress = self._hold.progress
        for number, (job, start) in self._hold.items.items():
            line = await anext(self._lines(start, number - 1))
            self._begin(line, job)
        lines = self._lines(progress.offset, progress.fed)
        more = True
        cancelling = wrote = False
        loop = asyncio.get_running_loop()
        committed = loop.time()
        while True:
            if self._ending is not None and not cancelling:
                cancelling = True
                await self._cancel_jobs()
            # Some at a time, so that not each item costs a step of its own.
            # Before any answer could be written, those that wait for it count: a full disk would let in line after line.
            under_way = len(self._running) + (0 if wrote else len(self._outcomes))
            if more and under_way <= self._ahead() * 3 // 4:
                more = await self._begin_some(lines, self._ahead() - under_way)
            if not self._running and not self._outcomes:
                if more:
                    continue
                return
            if self._running:
                await asyncio.wait(
                    self._running.values(), timeout=min(COMMIT, self._lease / 3), return_when=asyncio.FIRST_COMPLETED
                )
            for number in [number for number, task in self._running.items() if task.done()]:
                self._outcomes.append(self._running.pop(number).result())
                del self._jobs[number]
            size = sum(len(outcome.data) for outcome in self._outcomes)
            late = loop.time() - committed > COMMIT
            if self._outcomes and (late or size > COMMIT_BYTES or not self._running):
                await self._commit()
                wrote, committed = True, loop.time()
            await self._keep()

    def _ahead(self) -> int:
        workers = sum(len(self._roster.workers(status.card.id)) for status in self._roster.models())
        return min(MOST_AHEAD, max(LEAST_AHEAD, AHEAD * workers))

    async def _begin_some(self, lines: AsyncIterator[Line], room: int) -> bool:
        """Take so many lines, if there are; whether there may be more."""
        taken: list[tuple[Line, str]] = []
        while len(taken) < room:
            line = await anext(lines, None)
            if line is None:
                break
            taken.append((line, new_job_id()))
        if taken:
            last = taken[-1][0]
            begun = {str(line.number): f"{job} {line.start}" for line, job in taken}
            await self._step(Step(begun=begun, put={"fed": last.number, "offset": last.end}))
        for line, job in taken:
            self._begin(line, job)
        return len(taken) == room

    def _begin(self, line: Line, job: str) -> None:
        self._jobs[line.number] = job
        self._running[line.number] = asyncio.create_task(self._answer(line, job), name=f"batch item {job}")

    async def _cancel_jobs(self) -> None:
        for job in self._jobs.values():
            try:
                await self._relay.store.cancel(job, "its batch ends")
            except JobNotFound:
                continue  # it is not accepted yet; whoever is at that looks again

    async def _commit(self) -> None:
        """Write the outcomes to the files, and then that they are written."""
        outcomes, self._outcomes = self._outcomes, []
        written = b"".join(outcome.data for outcome in outcomes if outcome.answered)
        errors = b"".join(outcome.data for outcome in outcomes if not outcome.answered)
        if written:
            await self._storage.append(self._order.output_file, self._written, written, self._hold_on)
        if errors:
            await self._storage.append(self._order.error_file, self._refused, errors, self._hold_on)
        self._written += len(written)
        self._refused += len(errors)
        completed = sum(outcome.answered for outcome in outcomes)
        usages = [outcome.usage for outcome in outcomes if outcome.usage is not None]
        await self._step(
            Step(
                put={"written": self._written, "refused": self._refused},
                add={
                    "completed": completed,
                    "failed": len(outcomes) - completed,
                    "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
                    "cached_tokens": sum(usage.cached_tokens for usage in usages),
                    "completion_tokens": sum(usage.completion_tokens for usage in usages),
                    "reasoning_tokens": sum(usage.reasoning_tokens for usage in usages),
                },
                done=[str(outcome.line) for outcome in outcomes],
                forget=[outcome.job for outcome in outcomes],
            )
        )

    async def _finish(self) -> None:
        ending = self._ending or BatchState.COMPLETED
        if self._ending is None:
            await self._step(Step(put=self._moment(BatchState.FINALIZING)))
        for file_id, what, size in (
            (self._order.output_file, "output", self._written),
            (self._order.error_file, "error", self._refused),
        ):
            if size:
                await self._storage.seal(file_id, size, self._hold_on)
                await self._files.add(
                    StoredFile(
                        id=file_id,
                        owner=self._order.owner,
                        filename=f"{self._order.id}_{what}.jsonl",
                        purpose="batch_output",
                        size=size,
                        created=int(time.time()),
                        expires_after=self._order.output_expires_after or KEPT,
                    )
                )
        await self._step(Step(put=self._moment(ending), over=True))
        log.info("a batch has ended: %s", ending.value, extra={"batch": self._order.id})

    # One line

    async def _answer(self, line: Line, job: str) -> Outcome:
        try:
            item = read_item(line, self._order.endpoint, self._endpoint, self._settings)
        except Wrong as error:
            # It was good when the input was checked: the settings have changed since.
            return refused(line.number, job, "", Problem(400, error.code, str(error), error.param))
        while True:
            if self._ending is not None:
                before = line.number in self._hold.items and await self._said_before(line, job, item)
                return before or not_run(line.number, job, item.custom_id, self._ending)
            try:
                status = await self._relay.submit(
                    *(item.body.model, item.request, job),
                    lane=Lane.BATCH,
                    owner=self._order.owner,
                    deadline=max(1.0, self._time_left()),
                    ttl=max(3600.0, self._time_left()),
                    on_disk=False,  # the batch remembers that it is on its way
                )
                if self._ending is not None:  # it came to its end meanwhile, which cancelled what it knew of
                    await self._relay.store.cancel(job, "its batch ends")
                events = await self._relay.outcome(job)
            except (ModelDown, QueueFull, QueueDraining, StorageFull, QueueUnavailable, *UNREACHABLE) as error:
                log.debug("a batch item waits: %s", error, extra={"job": job})
            except (Forgotten, JobNotFound) as error:
                log.warning("a batch item begins anew: %s", error, extra={"job": job})
            except Unreadable as error:
                failed = Failed(FailureCode.UNREADABLE, str(error))
                return refused(line.number, job, item.custom_id, of_failed(failed, job))
            except Refused as error:
                return refused(line.number, job, item.custom_id, of_error(error))
            else:
                return self._said(line, job, item.custom_id, item.body, status, events)
            await asyncio.sleep(AGAIN)

    async def _said_before(self, line: Line, job: str, item: Item) -> Outcome | None:
        """What became of a line that whoever fed before had begun, now that its batch ends; None when it was not accepted."""
        try:
            status = self._roster.resolve(item.body.model)
            await self._relay.store.cancel(job, "its batch ends")
            return self._said(line, job, item.custom_id, item.body, status, await self._relay.outcome(job))
        except (Refused, JobNotFound, Forgotten, Unreadable):
            return None

    def _said(self, line: Line, job: str, custom_id: str, body: Any, status: ModelStatus, events: list[Any]) -> Outcome:
        reply = fold(events)
        match reply.end:
            case Finished(reason=FinishReason.CANCELLED) if self._ending is not None:
                return not_run(line.number, job, custom_id, self._ending)
            case Failed(code=FailureCode.DEADLINE) if self._time_left() <= 1:
                return not_run(line.number, job, custom_id, self._ending)
            case Finished(reason=FinishReason.CANCELLED):
                return refused(
                    line.number, job, custom_id, Problem(409, "job_cancelled", "The job was cancelled.", job=job)
                )
            case Finished() as end:
                answer = self._endpoint.whole(self._endpoint.rendering(body, job, status).head, events, end)
                return answered(line.number, job, custom_id, answer, status, events, end)
            case Failed() as failed:
                return refused(line.number, job, custom_id, of_failed(failed, job))
            case None:
                raise AssertionError("an outcome has an end")
