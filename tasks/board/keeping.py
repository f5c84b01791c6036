"""How long loaded models stay that nobody asks for: for ever, or until their time is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import msgspec
import redis

from tasks import keys
from tasks.presence import Presence
from tasks.roster import read_roster
from tasks.standing import Gate


@dataclass
class _Rest:
    """Since when a model has had nothing to do and nobody has asked for it, in seconds of the clock, and how many calls had been
    answered by then."""

    since: float
    answered: int | None


class Keeping:
    """Knows what is asked of each model of one board. `over` is called every few seconds, by one thread; the rest by any.

    A model that is unloaded though a job has just come for it loses nothing: the worker hands back what it cannot end, and
    jobs that nobody serves have their model loaded again (`tasks/board/demand.py`).
    """

    def __init__(
        self,
        client: redis.Redis,
        board: str,
        default: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        always: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        """`default` tells seconds, as is what is asked; below 0 is for ever. `always` tells the models that stay for ever
        whatever is asked."""
        self._client = client
        self._board = board
        self._default = default
        self._clock = clock
        self._always = always
        self._asked: dict[str, float] = {}
        self._rests: dict[str, _Rest] = {}
        self._lock = threading.Lock()

    def ask(self, model: str, seconds: float) -> None:
        """From now on the model stays so long after its last job, or after this."""
        with self._lock:
            self._asked[model] = seconds
            self._begin_anew(model)

    def asked(self) -> dict[str, float]:
        """What was asked of models that are loaded, in seconds."""
        with self._lock:
            return dict(self._asked)

    def wanted(self, model: str) -> None:
        """Somebody wants it loaded: it has its time from now on."""
        with self._lock:
            self._begin_anew(model)

    def is_over(self, model: str) -> bool:
        """Whether the time of a model is over, by what `over` has seen of it and what was asked since."""
        with self._lock:
            rest = self._rests.get(model)
            return rest is not None and self._spent(model, rest)

    def forget(self, model: str) -> None:
        """It is unloaded: what was asked of it was asked until then."""
        with self._lock:
            self._asked.pop(model, None)
            self._rests.pop(model, None)

    def stays(self) -> dict[str, float]:
        """For how many seconds each model will stay if nobody asks for it; those that stay for ever are left out."""
        now = self._clock()
        with self._lock:
            return {
                model: max(0.0, rest.since + self._limit(model) - now)
                for model, rest in self._rests.items()
                if self._limit(model) >= 0
            }

    def idle(self) -> dict[str, float]:
        """For how many seconds each model has had nothing to do; about 0 for one that is busy."""
        now = self._clock()
        with self._lock:
            return {model: now - rest.since for model, rest in self._rests.items()}

    def over(self, models: Collection[str]) -> list[str]:
        """Those of `models`, which have a worker here, whose time is over. Raises what the client raises."""
        workers, waited_for = self._roster()
        found = []
        for model in models:
            worker = workers.get(model)
            busy = self._busy(model, worker, waited_for)
            with self._lock:
                rest = self._rests.get(model)
                answered = worker.answered if worker is not None else None
                if rest is None or busy or rest.answered != answered:
                    self._rests[model] = _Rest(self._clock(), answered)
                    busy = busy or self._limit(model) > 0
                if not busy and self._spent(model, self._rests[model]):
                    found.append(model)
        with self._lock:
            for model in self._rests.keys() - set(models):
                del self._rests[model]
        return found

    def resting(self, models: Collection[str]) -> list[str]:
        """Those of `models` that have nothing to do, the one that has had nothing for the longest time first.

        Raises what the client raises.
        """
        workers, waited_for = self._roster()
        idle = [model for model in models if not self._busy(model, workers.get(model), waited_for)]
        with self._lock:
            rests = dict(self._rests)

        def since(model: str) -> float:
            rest, worker = rests.get(model), workers[model]
            return rest.since if rest is not None and rest.answered == worker.answered else self._clock()

        return sorted(idle, key=since)

    def answering(self, models: Collection[str]) -> list[str]:
        """Those of `models` that are loaded and may go on with jobs, in their order, the pinned ones left out.

        Raises what the client raises.
        """
        workers, _ = self._roster()
        pinned = self.pinned()
        states = {model: workers[model].state for model in models if model in workers and model not in pinned}
        return [model for model, state in states.items() if state in ("loaded", "busy")]

    def pinned(self) -> set[str]:
        """Models that their manifest or a request has stay for ever. The default for all of them pins none."""
        with self._lock:
            return {model for model, seconds in self._asked.items() if seconds < 0} | set(self._always())

    def _busy(self, model: str, worker: Presence | None, waited_for: Collection[str]) -> bool:
        return (
            worker is None
            or worker.state != "loaded"
            or model in waited_for
            or bool(self._client.zcard(keys.running(model)))
        )

    def _begin_anew(self, model: str) -> None:
        if (rest := self._rests.get(model)) is not None:
            rest.since = self._clock()

    def _spent(self, model: str, rest: _Rest) -> bool:
        return 0 <= self._limit(model) <= self._clock() - rest.since

    def _limit(self, model: str) -> float:
        return -1.0 if model in self._always() else self._asked.get(model, self._default())

    def _roster(self) -> tuple[dict[str, Presence], set[str]]:
        """The workers of this board by their models, and the models that jobs wait for which may begin."""
        snapshot = read_roster(self._client)
        workers: dict[str, Presence] = {}
        for breath in snapshot.workers:
            if breath.board == self._board and breath.model:
                known, its = workers.get(breath.model), _at_rest(breath)
                workers[breath.model] = its if known is None else _together(known, its)
        return workers, {
            status.card.id for status in snapshot.models if status.waiting and status.gate is not Gate.PAUSED
        }


def _at_rest(worker: Presence) -> Presence:
    """A worker whose model could not be loaded, or whose engine broke, as one that has nothing to do."""
    failed = worker.state == "idle" and worker.tries
    return msgspec.structs.replace(worker, state="loaded") if failed else worker


def _together(one: Presence, other: Presence) -> Presence:
    """Two workers of a model as one, which has something to do if one of them has."""
    state = other.state if one.state == "loaded" else one.state
    return msgspec.structs.replace(one, state=state, answered=(one.answered or 0) + (other.answered or 0))
