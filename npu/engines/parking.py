"""Conversations that another prompt displaces from an engine's cache: what was read of them is kept in memory, and loaded when
they go on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from npu.engines import Option
from npu.errors import EngineFailed
from npu.hardware import read_memory
from npu.memory_file import MemoryFile

log = logging.getLogger("rockchipllama.engines")

MEGABYTE = 1 << 20
PARKING_MB = Option(
    1024,
    0,
    65536,
    "the most memory for conversations that others displaced from the cache, where loading them was measured to be faster than "
    "reading; 0 parks none",
)
"""The option `parking_mb` of every engine that parks."""
WORTH_MS = 100.0
"""What is read in less is not worth a file."""
AWAITED = 10.0
"""How many times as long as writing a conversation reading it again must take, where somebody waits for what displaces it and it
has not gone on so far: they wait for sure, while many a first question is the last one."""
FREE_SHARE = 0.25
"""Of the machine's memory that stays free for others, at least."""


class Whose(NamedTuple):
    """Whose conversation it is, and who speaks in it: another adapter makes other keys and values of the same tokens."""

    owner: str = ""
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Costs:
    """What parking takes, as last measured: milliseconds for each token, and for each conversation `once`."""

    bytes: int
    """Of memory that a token takes."""
    write: float = 0.0
    load: float = 0.0
    once: float = 0.0


class Files(Protocol):
    """What an engine does with files of its cache."""

    @property
    def read_ms(self) -> float:
        """Milliseconds to read a token, as last measured; 0 while nobody knows."""

    def write(self, file: MemoryFile, tokens: Sequence[int], adapter: str | None) -> int:
        """Write what the cache holds of `tokens`; how many that are. Raises `EngineFailed`."""

    def load(self, file: MemoryFile) -> bool:
        """Have the next run begin with what is in it; False when the runtime did not take it."""

    def release(self) -> None:
        """Let go of what was loaded last, if that is held beside the cache. Raises `EngineFailed`."""


@dataclass(frozen=True, slots=True, eq=False)
class Parked:
    """What was read of one conversation."""

    whose: Whose
    tokens: Sequence[int]
    prompt: int
    """How many of them were asked, and not answered."""
    file: MemoryFile
    size: int
    """Bytes it had when it was written."""


class Parking:
    """The conversations of one loaded model that are parked, the longest unused first."""

    def __init__(self, files: Files, most: int, costs: Costs) -> None:
        """At most `most` bytes."""
        self._files = files
        self._most = most
        self._costs = costs
        self._parked: list[Parked] = []
        self._loaded: Parked | None = None
        self._broken = False
        self._forgiven = False
        """It had failed with another runtime, and nothing was written since."""
        self._lost: MemoryFile | None = None
        """What could not be written: somebody may still be at it, and would find another file by its number."""
        self._wanted = 0
        """How often memory was wanted by others: what was begun to be written before that is not kept either."""
        self._paused_until = 0.0
        """In monotonic seconds."""
        self._lock = threading.Lock()
        """Held while the list is changed: another thread may want its memory back."""

    @property
    def works(self) -> bool:
        """Whether it has not failed so far."""
        return not self._broken

    @property
    def pause_left(self) -> float:
        """Seconds for which it still parks nothing."""
        return max(0.0, self._paused_until - time.monotonic())

    @property
    def size(self) -> int:
        """Bytes that are parked."""
        with self._lock:
            return sum(parked.size for parked in self._parked)

    def keep(self, whose: Whose, tokens: Sequence[int], prompt: int, shared: int, *, awaited: bool = False) -> bool:
        """Park `tokens`, of which all but the first `shared` are about to leave the cache, where that is worth it; whether the
        runtime was asked to write. The first `prompt` of them were asked. `awaited`: somebody waits for what displaces them."""
        wanted, length = self._wanted, len(tokens)
        best = max((common(parked.tokens, tokens) for parked in self._of(whose)), default=0)
        costs = self._costs
        gain = (length - max(shared, best)) * self._files.read_ms
        cost = writing = costs.once + length * costs.write
        if best <= shared:  # else it has gone on, and what is parked of it is loaded in any case
            cost = max(writing * (AWAITED if awaited else 1.0), writing + length * costs.load, WORTH_MS)
        if self._broken or self.pause_left or best >= length or gain < cost:
            return False
        if not self._make_room(length * costs.bytes):
            return False
        try:
            file = MemoryFile()
        except OSError as error:
            self._give_up(f"the kernel gives no memory for it: {error}")
            return False
        begun = time.monotonic()
        try:
            written = self._files.write(file, tokens, whose.adapter)
        except EngineFailed as error:
            self._lost = file
            self._give_up(str(error))
            return True
        if not file.size or not written:
            file.close()
            self._give_up("the runtime wrote nothing")
            return True
        self._forgiven = False
        # A whole conversation tells more than the few tokens of a trial.
        self._costs = replace(costs, write=max(0.0, (time.monotonic() - begun) * 1000 - costs.once) / length)
        with self._lock:
            if self._wanted != wanted:  # its memory was wanted meanwhile
                file.close()
                return True
            # Earlier turns of this conversation are in this one, too.
            for parked in [parked for parked in self._parked if parked.whose == whose]:
                if goes_on(parked.prompt, common(parked.tokens, tokens)):
                    self._drop(parked)
            self._parked.append(Parked(whose, tuple(tokens[:written]), prompt, file, file.size))
        return True

    def find(self, whose: Whose, tokens: Sequence[int], cached: int) -> Parked | None:
        """What is parked that a prompt of `tokens` begins with, by more than the `cached` ones and worth to be loaded."""
        found = max(self._of(whose), key=lambda parked: common(parked.tokens, tokens[:-1]), default=None)
        if found is None or self._broken:
            return None
        gain = (common(found.tokens, tokens[:-1]) - cached) * self._files.read_ms
        return found if gain > len(found.tokens) * self._costs.load else None

    def load(self, parked: Parked) -> bool:
        """Have the next run find it; False when the runtime does not take it, and the prompt is read as ever."""
        self.release()
        with self._lock:
            if parked not in self._parked:
                return False  # its memory was wanted
            self._parked.remove(parked)
            self._parked.append(parked)
            self._loaded = parked
        begun = time.monotonic()
        if parked.file.size == parked.size and self._files.load(parked.file):
            self._costs = replace(self._costs, load=(time.monotonic() - begun) * 1000 / len(parked.tokens))
            return True
        with self._lock:
            self._loaded = None
            if parked in self._parked:
                self._drop(parked)
            else:  # its memory was wanted meanwhile
                parked.file.close()
        self._give_up("the runtime did not load what it had written")
        return False

    def release(self) -> None:
        """Have the runtime forget what it has loaded, beside what is in its cache. Raises `EngineFailed` when it does not."""
        with self._lock:
            loaded, self._loaded = self._loaded, None
            if loaded is not None and loaded not in self._parked:
                loaded.file.close()
        if loaded is not None:
            self._files.release()

    def has_loaded(self, parked: Parked | None) -> bool:
        """Whether that is what the runtime has loaded."""
        return parked is not None and self._loaded is parked

    def judge(self, expected: int, cached: int) -> None:
        """The runtime says that `cached` tokens of a prompt were not read, of which it had `expected` in a file."""
        if cached < expected // 2:
            self._give_up(f"of {expected} tokens that were loaded the runtime has read {expected - cached} again")

    def forgive(self) -> None:
        """Another runtime has begun: try once more what failed with the one before, which may have died meanwhile. One that
        fails right after that is asked no more, as it may well die of it."""
        if self._broken and not self._forgiven:
            self._broken, self._forgiven = False, True
            if self._lost is not None:  # whoever was at it is gone
                self._lost.close()
                self._lost = None

    def empty(self) -> None:
        """Give all its memory back, but for what the runtime has loaded. From any thread."""
        with self._lock:
            self._wanted += 1
            for parked in tuple(self._parked):
                self._drop(parked)

    def pause(self, seconds: float) -> None:
        """Park nothing more for so long; what is parked stays. From any thread."""
        with self._lock:
            self._wanted += 1
            self._paused_until = time.monotonic() + seconds

    def close(self) -> None:
        """Give all of it back: the model is gone."""
        with self._lock:
            self._wanted += 1
            for parked in {*self._parked, *((self._loaded,) if self._loaded is not None else ())}:
                parked.file.close()
            if self._lost is not None:
                self._lost.close()
            self._parked, self._loaded, self._broken = [], None, True

    def _of(self, whose: Whose) -> list[Parked]:
        with self._lock:
            return [parked for parked in self._parked if parked.whose == whose]

    def _make_room(self, size: int) -> bool:
        """Drop what was unused the longest until so many bytes fit; False when they cannot."""
        memory = read_memory()
        with self._lock:
            used = sum(parked.size for parked in self._parked)
            most = min(self._most, used + memory.available - int(memory.total * FREE_SHARE))
            idle = [parked for parked in self._parked if parked is not self._loaded]
            if used + size - sum(parked.size for parked in idle) > most:
                return False
            while used + size > most:
                parked = idle.pop(0)
                used -= parked.size
                self._drop(parked)
        return True

    def _drop(self, parked: Parked) -> None:
        self._parked.remove(parked)
        if parked is not self._loaded:
            parked.file.close()

    def _give_up(self, why: str) -> None:
        if not self._broken:
            log.warning("conversations are not parked any more until the engine is started anew: %s", why)
        self._broken = True
        self.empty()


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens the two begin with."""
    length = min(len(one), len(other))
    if list(one[:length]) == list(other[:length]):  # as most often, and much faster
        return length
    return next(place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


def goes_on(prompt: int, shared: int) -> bool:
    """Whether what begins with `shared` tokens of a conversation goes on with it, whose last prompt had so many: all but its
    end, where templates put what is for one answer alone. An answer may come back otherwise, without its thoughts."""
    return shared >= prompt - min(16, prompt // 10)
