"""Conversations that another prompt displaces from the cache: what was read of them is kept in memory, and loaded when they
go on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from npu.engines import option
from npu.engines.rkllm_cache import Whose, common, goes_on
from npu.engines.rkllm_cache_file import write_file
from npu.engines.rkllm_options import OPTIONS
from npu.errors import EngineFailed
from npu.hardware import read_memory
from npu.memory_file import MemoryFile
from npu.model import Model
from npu.self_test import SelfTest

if TYPE_CHECKING:
    from npu.engines.rkllm import RkllmEngine

log = logging.getLogger("rockchipllama.rkllm")

MEGABYTE = 1 << 20
WORTH_MS = 100.0
"""What is read in less is not worth a file."""
FREE_SHARE = 0.25
"""Of the machine's memory that stays free for others, at least."""


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

    def __init__(self, engine: RkllmEngine, most: int, test: SelfTest) -> None:
        """At most `most` bytes, by what the self-test has measured."""
        assert test.park_ms is not None and test.unpark_ms is not None and test.parked_bytes is not None
        self._engine = engine
        self._most = most
        self._park_ms, self._unpark_ms = test.park_ms, test.unpark_ms
        """Milliseconds for a token, as last measured."""
        self._token_bytes = test.parked_bytes
        self._read_ms = 1000 / test.prefill_tps if test.prefill_tps else 0.0
        self._say_ms = 1000 / test.decode_tps if test.decode_tps else 0.0
        self._parked: list[Parked] = []
        self._loaded: Parked | None = None
        self._broken = False
        self._lock = threading.Lock()
        """Held while the list is changed: another thread may want its memory back."""

    @property
    def size(self) -> int:
        """Bytes that are parked."""
        with self._lock:
            return sum(parked.size for parked in self._parked)

    def keep(self, whose: Whose, tokens: Sequence[int], prompt: int, shared: int) -> bool:
        """Park `tokens`, of which all but the first `shared` are about to leave the cache, where that is worth it; whether the
        runtime was asked to write. The first `prompt` of them were asked."""
        length = len(tokens)
        best = max((common(parked.tokens, tokens) for parked in self._of(whose)), default=0)
        # What is parked of it already is loaded in any case.
        gain = (length - max(shared, best)) * self._time_of_a_token()
        cost = self._say_ms + length * (self._park_ms + (0.0 if best > shared else self._unpark_ms))
        if self._broken or best >= length or gain < max(cost, WORTH_MS if best <= shared else 0.0):
            return False
        if not self._make_room(length * self._token_bytes):
            return False
        try:
            file = MemoryFile()
        except OSError as error:
            self._give_up(f"the kernel gives no memory for it: {error}")
            return False
        begun = time.monotonic()
        try:
            write_file(self._engine, file.path, tokens, whose.adapter)
        except EngineFailed as error:
            file.close()
            self._engine.cache.clear()
            self._give_up(str(error))
            return True
        if not file.size:
            file.close()
            self._give_up("the runtime wrote nothing")
            return True
        # The self-test's few tokens tell less than a whole conversation.
        self._park_ms = max(0.0, (time.monotonic() - begun) * 1000 - self._say_ms) / length
        with self._lock:
            # Earlier turns of this conversation are in this one, too.
            for parked in [parked for parked in self._parked if parked.whose == whose]:
                if goes_on(parked.prompt, common(parked.tokens, tokens)):
                    self._drop(parked)
            self._parked.append(Parked(whose, tuple(tokens), prompt, file, file.size))
        return True

    def find(self, whose: Whose, tokens: Sequence[int], cached: int) -> Parked | None:
        """What is parked that a prompt of `tokens` begins with, by more than the `cached` ones and worth to be loaded."""
        found = max(self._of(whose), key=lambda parked: common(parked.tokens, tokens[:-1]), default=None)
        if found is None or self._broken:
            return None
        gain = (common(found.tokens, tokens[:-1]) - cached) * self._time_of_a_token()
        return found if gain > len(found.tokens) * self._unpark_ms else None

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
        if parked.file.size == parked.size and self._engine.handle.load_prompt_cache(parked.file.path):
            self._unpark_ms = (time.monotonic() - begun) * 1000 / len(parked.tokens)
            return True
        with self._lock:
            self._loaded = None
            self._drop(parked)
        self._give_up("the runtime did not load what it had written")
        return False

    def release(self) -> None:
        """Have the runtime forget what it has loaded. Raises `EngineFailed` when it does not."""
        with self._lock:
            loaded, self._loaded = self._loaded, None
            if loaded is not None and loaded not in self._parked:
                loaded.file.close()
        if loaded is not None and not self._engine.handle.release_prompt_cache():
            raise EngineFailed("The RKLLM runtime did not release a prompt cache. The model is loaded anew.")

    def has_loaded(self, parked: Parked | None) -> bool:
        """Whether that is what the runtime has loaded."""
        return parked is not None and self._loaded is parked

    def judge(self, expected: int, cached: int) -> None:
        """The runtime says that `cached` tokens of a prompt were not read, of which it had `expected` in a file."""
        if cached < expected // 2:
            self._give_up(f"of {expected} tokens that were loaded the runtime has read {expected - cached} again")

    def empty(self) -> None:
        """Give all its memory back, but for what the runtime has loaded. From any thread."""
        with self._lock:
            for parked in tuple(self._parked):
                self._drop(parked)

    def close(self) -> None:
        """Give all of it back: the model is gone."""
        with self._lock:
            for parked in {*self._parked, *((self._loaded,) if self._loaded is not None else ())}:
                parked.file.close()
            self._parked, self._loaded, self._broken = [], None, True

    def _of(self, whose: Whose) -> list[Parked]:
        with self._lock:
            return [parked for parked in self._parked if parked.whose == whose]

    def _time_of_a_token(self) -> float:
        speed = self._engine.prefill_speed
        return 1000 / speed if speed else self._read_ms

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
            log.warning("conversations are not parked any more until the model is loaded anew: %s", why)
        self._broken = True
        self.empty()


def open_parking(engine: RkllmEngine, model: Model, test: SelfTest | None) -> Parking | None:
    """A place for conversations; None where the self-test did not show that it helps, or the manifest wants none."""
    most = most_parked(model)
    return Parking(engine, most, test) if most and test is not None and test.parks else None


def most_parked(model: Model) -> int:
    """Bytes that a model may park at most; 0 is nothing."""
    return int(option(model, OPTIONS, "parking_mb")) * MEGABYTE
