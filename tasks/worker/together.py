"""Several jobs of one worker on one run of its engine: each is worked on by a thread of its own, as if it had the engine to
itself, and where all of them have come to the engine, their prompts go on together.

Nothing of a job is shared but the run: its record, its parsing, its end and its cancellation are its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from npu.engine import Generation, LockStepEngine, Prompt, Sampling


class Seat:
    """The engine as one of the jobs sees it. See `npu.engine.TextEngine`."""

    def __init__(self, table: Table, told_to_end: Callable[[], bool]) -> None:
        """`told_to_end` says whether the job is to end without another run."""
        self.engine = engine = table.engine
        self.context_length = engine.context_length
        self.version = engine.version
        self.tokenizer = engine.tokenizer
        self.together = 1
        """How many prompts its last run answered."""
        self.told_to_end = told_to_end
        self.waits = False
        """For the others: it stands still through no fault of its own."""
        self._table = table
        self._run: Generation | None = None

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> Generation:
        """Prepare a run of this prompt and those of the others, once all of them have come. Raises as the engine does."""
        self.waits = True
        try:
            self._run = self._table.join(self, _Wish(prompt, sampling, on_prefill))
        finally:
            self.waits = False
        return self._run

    def close(self) -> None:
        """The job needs the engine no more. Twice is safe."""
        if self._run is not None:
            self._run.abort()  # one that was cancelled before it began it would hold the others' run open
        self._table.leave(self)


class _Wish:
    """What a job wants of the engine."""

    def __init__(self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.on_prefill = on_prefill

    def goes_with(self, other: _Wish) -> bool:
        """Whether one run can answer both."""
        return self.sampling == other.sampling and self.prompt.adapter == other.prompt.adapter


class Table:
    """Where jobs wait for each other. Who does not fit into a run, or needs another one, gets the next."""

    def __init__(self, engine: LockStepEngine) -> None:
        self.engine = engine
        self._seats: list[Seat] = []
        self._waiting: dict[Seat, _Wish] = {}
        self._running: set[Seat] = set()
        self._given: dict[Seat, Generation | Exception] = {}
        self._changed = threading.Condition()

    def seat(self, told_to_end: Callable[[], bool]) -> Seat:
        """One more, which is waited for from now on, until it is closed."""
        made = Seat(self, told_to_end)
        with self._changed:
            self._seats.append(made)
        return made

    def join(self, seat: Seat, wish: _Wish) -> Generation:
        """See `Seat.generate`."""
        with self._changed:
            self._running.discard(seat)
            self._waiting[seat] = wish
            self._settle()
            while seat not in self._given and not seat.told_to_end():
                self._changed.wait(0.1)  # nobody tells of an end
            self._waiting.pop(seat, None)
            given = self._given.pop(seat, None)
        if isinstance(given, Exception):
            raise given
        # One that is to end is given a run as well, which will not begin.
        return given or self.engine.generate(wish.prompt, wish.sampling, wish.on_prefill)

    def leave(self, seat: Seat) -> None:
        """See `Seat.close`."""
        with self._changed:
            if seat in self._seats:
                self._seats.remove(seat)
            self._running.discard(seat)
            self._waiting.pop(seat, None)
            self._given.pop(seat, None)
            self._settle()

    def _settle(self) -> None:
        """Begin the next run once nobody has one and all who are left wait for one."""
        while self._waiting and not self._running and len(self._waiting) == len(self._seats):
            wish = self._waiting[self._seats[0]]
            group = [each for each in self._seats if self._waiting[each].goes_with(wish)]
            group = group[: self.engine.fitting([self._waiting[each].prompt for each in group])]
            for each, generation in self._prepare(group).items():
                del self._waiting[each]
                self._given[each] = generation
                if not isinstance(generation, Exception):
                    self._running.add(each)
            self._changed.notify_all()
            if not self._running:
                return  # the first was refused, and is on its way out

    def _prepare(self, group: list[Seat]) -> dict[Seat, Generation | Exception]:
        wishes = [self._waiting[each] for each in group]
        if len(group) > 1:
            try:
                made = self.engine.generate_together([wish.prompt for wish in wishes], wishes[0].sampling)
            except Exception:
                pass  # whose fault it is shows alone, a defect as well
            else:
                for each in group:
                    each.together = len(group)
                return dict(zip(group, made, strict=True))
        first, wish = group[0], wishes[0]
        first.together = 1
        try:
            return {first: self.engine.generate(wish.prompt, wish.sampling, wish.on_prefill)}
        except Exception as error:  # a defect, too: it is this job's alone, and the others go on
            return {first: error}
