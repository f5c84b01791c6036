"""Whether a model fits into the memory of this board, and which others have to go first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from npu.errors import OutOfMemory
from npu.hardware import Memory
from npu.memory_domains import DOMAIN_BYTES, choose_domain
from npu.model import Model
from tasks.board.keeping import Keeping
from tasks.board.settings import BoardSettings
from tasks.board.workers import Workers
from tasks.instances import model_of
from tasks.prompting.setup import memory_of, model_memory
from tasks.settings import TaskSettings

SPARE = 5
"""The part of the memory left to the system that models leave free, one in so many: the rest may be in use already."""


class NoRoomYet(OutOfMemory):
    """Raised when a model will fit, once others that have something to do now, or were loaded just now, can be unloaded."""


class MakingRoom(NoRoomYet):
    """Raised when a model will fit in a moment: others are being unloaded for it."""


class Room:
    """The memory that models may have here, by what the kernel says is free and by what each was estimated at."""

    def __init__(
        self, settings: TaskSettings, board_settings: BoardSettings, workers: Workers, keeping: Keeping
    ) -> None:
        self._settings = settings
        self._least_stay = board_settings.least_stay
        self._single_model = board_settings.single_model
        self._workers = workers
        self._keeping = keeping

    def fits(self, needed: int, domains: Sequence[int] = (), once_more: str | None = None, given_back: int = 0) -> bool:
        """Whether so many bytes are free for one more model, or `once_more` for that one, also in one of the `domains` of the
        NPU's memory where it needs one, and it may be here beside others that are; or would be with so many `given_back`."""
        memory = memory_of(self._settings)
        if self._taken(once_more) or needed > self._free(replace(memory, available=memory.available + given_back)):
            return False
        return not domains or choose_domain(needed, domains, self._workers.places(leaving=True).values()) is not None

    def domain(self, model: Model, needed: int, domains: Sequence[int], number: int = 1) -> int | None:
        """The domain for it; None where it needs none, or fits in none of them. The one that it may be leaving is its own."""
        places = self._workers.places(leaving=True)
        return choose_domain(
            needed, domains, [place for name, place in places.items() if name != model.id or number > 1]
        )

    def budget(self, machine: Memory | None = None) -> tuple[int, int]:
        """Bytes that models may have here together, and those that one more could have now; by what was read of the `machine`
        just now, if it was."""
        memory = memory_of(self._settings, machine)
        room = 0 if self._taken() else max(0, self._free(memory))
        return model_memory(memory.total, self._settings), room

    def in_the_way(
        self, model: Model, needed: int, domains: Sequence[int] = (), giving_way: Collection[str] = ()
    ) -> list[str]:
        """The models to unload before `model` fits, the longest unused first, then busy ones that are `giving_way`; none where
        those that leave will do.

        Raises `OutOfMemory` with the figures when it cannot fit, whatever else is unloaded, and `NoRoomYet` when it fits only
        without models that are busy or were loaded just now. A pinned model never goes. Where one model is loaded at a time, all
        others are in the way. Raises what the client raises.
        """
        # First what leaves: gone in between it counts twice, which the next look mends. Counted by neither, it would refuse.
        leaving = self._workers.held_by_leaving()
        short = needed - leaving - self._free(memory_of(self._settings))
        places = self._workers.places(leaving=False)
        pinned = self._keeping.pinned()
        loose = {name: size for name, size in self._workers.sizes().items() if name not in pinned}
        alone = self._single_model

        def enough(gone: Collection[str]) -> bool:
            others = [place for name, place in places.items() if model_of(name) not in gone]
            return short <= sum(loose[name] for name in gone) and (
                not domains or choose_domain(needed, domains, others) is not None
            )

        if not enough(loose) or (alone and loose.keys() != self._workers.sizes().keys()):
            raise self.refusal(model, needed, domains)
        settled = self._workers.sizes(longer_than=self._least_stay)
        found: list[str] = []
        resting = self._keeping.resting([name for name in loose if name in settled])
        for name in (*resting, *(name for name in giving_way if name in loose and name in settled)):
            if enough(found) and not alone:
                break
            found.append(name)
        if alone and len(found) < len(loose):
            raise NoRoomYet(
                f"This board has one model at a time, and '{model.id}' comes once {', '.join(sorted(loose))} can be unloaded."
            )
        if not enough(found):
            raise NoRoomYet(
                f"The model '{model.id}' needs about {needed >> 20} MiB with its context, which this board has once "
                f"others ({', '.join(sorted(loose))}) can be unloaded."
            )
        return found

    def refusal(self, model: Model, needed: int, domains: Sequence[int] = ()) -> OutOfMemory:
        """What to tell people of a model that does not fit."""
        memory = memory_of(self._settings)
        pinned = sorted(self._keeping.pinned() & self._workers.sizes().keys())
        kept = f" Asked to stay for ever: {', '.join(pinned)}." if pinned else ""
        others = self._workers.sizes().keys() | self._workers.leaving()
        if others and self._single_model:
            return OutOfMemory(
                f"This board has one model at a time, and that is {', '.join(sorted(others))}.{kept} Unload it, or load "
                f"'{model.id}' elsewhere."
            )
        if domains and needed <= self._free(memory):
            which = f"domain {domains[0]}" if len(domains) == 1 else "every domain"
            beside = ", ".join(sorted(self._workers.places(leaving=True))) or "it"
            return OutOfMemory(
                f"The model '{model.id}' needs about {needed >> 20} MiB with its context, but a memory domain of the NPU holds "
                f"{DOMAIN_BYTES >> 20} MiB, and there is no such room in {which} beside {beside}.{kept} Unload another model, "
                "set a smaller context_length, or leave out `memory_domain` of the manifests."
            )
        return OutOfMemory(
            f"The model '{model.id}' needs about {needed >> 20} MiB with its context, but of this board's "
            f"{memory.total >> 20} MiB only {max(0, self._free(memory)) >> 20} MiB are free for it.{kept} Unload another "
            "model, or set a smaller context_length."
        )

    def _taken(self, once_more: str | None = None) -> bool:
        """Whether a model is here beside which there may be no other."""
        others = (self._workers.sizes().keys() | self._workers.leaving()) - {once_more}
        return self._single_model and bool(others or self._workers.aside())

    def _free(self, memory: Memory) -> int:
        budget = model_memory(memory.total, self._settings)
        # Of what is left to the system, the system uses a part; some of it stays free however much that is.
        spare = (memory.total - budget) // SPARE
        # What loading models will take is not missing from `available` yet, so the larger claim counts.
        return min(memory.available - spare, budget - self._workers.reserved())
