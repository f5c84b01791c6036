"""Drives a simulated runtime through this project's own declarations of its family."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npu.rkllm.abi import (
    Answer,
    Mode,
    NativeSampling,
    Perf,
    Result,
    Run,
    Settings,
    State,
    Text,
    Tokens,
    bind,
    family_of,
)
from npu.simulator import Adapter, SimulatedModel, write_model

VERSIONS = ("1.1.4", "1.2.0", "1.2.1b1", "1.2.3", "1.3.0")
"""One of each family."""
GREEDY = NativeSampling(top_k=1)


def of(text: str) -> str:
    """A question as the runtime's own template renders it."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Heard:
    """One callback."""

    state: State
    results: tuple[Result, ...]
    hidden: list[list[float]]
    logits: list[list[float]]
    thread: int

    @property
    def token(self) -> int:
        return self.results[0].token


class Runtime:
    """A loaded simulated model; leave its context to free it."""

    def __init__(
        self,
        library: Path,
        folder: Path,
        model: SimulatedModel | None = None,
        version: str = "1.2.3",
        weights: Path | None = None,
        **settings: Any,
    ) -> None:
        self.abi = family_of(version)
        self.lib = ctypes.CDLL(str(library))
        bind(self.lib, self.abi)
        self.lib.simulator_tokenize.argtypes = (
            *(ctypes.c_void_p, ctypes.c_char_p),
            *(ctypes.POINTER(ctypes.c_int32), ctypes.c_int),
        )
        self.lib.simulator_cache.argtypes = (
            *(ctypes.c_void_p, ctypes.c_int),
            *(ctypes.POINTER(ctypes.c_int32), ctypes.c_int),
        )
        self.model = model or SimulatedModel()
        self.folder = folder
        self.language = self.model.language()
        self.heard: list[Heard] = []
        self.answer: Callable[[Heard], Answer] = lambda heard: Answer.CONTINUE
        chosen: dict[str, Any] = {"context_length": 1024, "max_tokens": 64, "sampling": GREEDY} | settings
        self.settings = Settings(model=weights or write_model(folder, self.model), **chosen)
        self.loaded = self.abi.init(self.lib, self.settings, self._hear)

    @property
    def status(self) -> int:
        return self.loaded.status

    def _hear(self, state: State, results: tuple[Result, ...], number: int) -> Answer:
        def rows(lent: Any) -> list[list[float]]:
            return [[*lent.copy(at, at + 1)] for at in range(lent.count)] if lent is not None else []

        heard = Heard(
            *(state, results),
            *([row for result in results for row in rows(result.hidden)] if results else [],),
            *(rows(results[0].logits) if results else [],),
            threading.get_ident(),
        )
        self.heard.append(heard)
        return self.answer(heard)

    def run(self, *given: str | Sequence[int] | Text, **options: Any) -> int:
        """One run, whose callbacks are then in `heard`: text as a user's, or token ids."""
        self.heard.clear()
        inputs = [one if isinstance(one, Text) else Text(one) if isinstance(one, str) else Tokens(one) for one in given]
        return self.abi.infer(self.loaded, Run(inputs=inputs, **options))

    def tokens(self, slot: int = 0) -> list[int]:
        """What was said, without the token that ended it."""
        said = [one.results[slot].token for one in self.heard if one.state in (State.NORMAL, State.WAITING)]
        return [token for token in said if token >= 0 and token != self.language.end]

    def text(self, slot: int = 0) -> bytes:
        return b"".join(one.results[slot].text for one in self.heard if one.results)

    def perf(self) -> Perf:
        perf = self.heard[-1].results[0].perf
        assert perf is not None
        return perf

    def cache(self, slot: int = 0) -> list[int]:
        """The ids in the cache."""
        room = (ctypes.c_int32 * 20000)()
        count = self.lib.simulator_cache(self.loaded.handle, slot, room, len(room))
        return room[:count]

    def tokenize(self, text: str) -> list[int]:
        """The library's own reading of a text."""
        room = (ctypes.c_int32 * (len(text.encode()) + 1))()
        return room[: self.lib.simulator_tokenize(self.loaded.handle, text.encode(), room, len(room))]

    def expect(
        self, prompt: str | Sequence[int], count: int = 64, adapter: Adapter | None = None, **options: Any
    ) -> list[int]:
        """The greedy answer to a prompt as a whole."""
        ids = self.language.tokenize(prompt) if isinstance(prompt, str) else prompt
        return self.language.expected_answer(ids, count, adapter, **options)

    def hidden(self, *given: str | Sequence[int], **options: Any) -> list[list[float]]:
        self.run(*given, mode=Mode.HIDDEN, **options)
        return self.heard[0].hidden

    def close(self) -> None:
        if self.loaded.status == 0:
            self.lib.rkllm_destroy(self.loaded.handle)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_child(work: Callable[[], object]) -> tuple[int, str]:
    """Do something that may end the process, in a copy of it: its status (negative: a signal), and all it printed."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            faulthandler.disable()
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            status = 99
            try:
                work()
                status = 0
            except BaseException as error:
                os.write(2, repr(error).encode())
            finally:
                ctypes.CDLL(None).fflush(None)
                os._exit(status)
        _, waited = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(waited), output.read().decode(errors="replace")
