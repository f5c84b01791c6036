"""Parking for llama.cpp, whose server writes the state of its one slot to a file and takes it back."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from npu.engine import Prompt, Stats
from npu.engines.llamacpp.server import Address, Call
from npu.engines.parking import Costs, Parking, Whose, common, goes_on
from npu.errors import EngineFailed, NpuError
from npu.memory_file import MemoryFile

SECONDS = 30.0
"""The longest that the server may take to write or load a conversation."""
MEASURABLE = 16
"""Tokens from which on a prompt tells how fast it was read."""


def folder_of_files() -> str:
    """Where the server finds the files of this process, by their number."""
    return f"/proc/{os.getpid()}/fd/"


class LlamaCppFiles:
    """See `npu.engines.parking.Files`. What was loaded is in the server's cache, and needs no release."""

    def __init__(self, address: Callable[[], Address]) -> None:
        """`address` is the server's, which may be another one after a restart."""
        self._address = address
        self.read_ms = 0.0

    def write(self, file: MemoryFile, tokens: Sequence[int], adapter: str | None) -> int:
        try:
            return min(len(tokens), int(self._ask("save", file)["n_saved"]))
        except (OSError, ValueError, KeyError, http.client.HTTPException, NpuError) as error:
            raise EngineFailed(f"llama.cpp wrote nothing: {error}") from error

    def load(self, file: MemoryFile) -> bool:
        try:
            return int(self._ask("restore", file)["n_restored"]) > 0
        except (OSError, ValueError, KeyError, http.client.HTTPException, NpuError):
            return False

    def release(self) -> None:
        pass

    def _ask(self, action: str, file: MemoryFile) -> dict[str, Any]:
        return Call(self._address(), f"/slots/0?action={action}", {"filename": file.path.name}, SECONDS).result()


class _Held(NamedTuple):
    """What the server's cache holds."""

    whose: Whose
    tokens: list[int]
    prompt: int
    """How many of them were asked."""
    returns: bool


class LlamaCppParking:
    """What one engine parks, and what its server's cache holds."""

    def __init__(self, address: Callable[[], Address], most: int, token_bytes: int) -> None:
        """At most `most` bytes; a token takes `token_bytes`. What the rest takes the first conversations tell."""
        self._files = LlamaCppFiles(address)
        self._held: _Held | None = None
        self._loaded = 0
        self.parking = Parking(self._files, most, Costs(token_bytes))

    def begin(self, prompt: Prompt) -> tuple[int, float]:
        """Before the server reads a prompt: park what it displaces and load what it begins with, where that is worth it. How
        many tokens were loaded, and the milliseconds all of it took."""
        begun, worked = time.monotonic(), False
        whose, tokens = Whose(prompt.owner, prompt.adapter), list(prompt.tokens)
        held, self._held, self._loaded = self._held, None, 0
        shared = common(held.tokens, tokens) if held is not None else 0
        if held is not None and held.returns and not goes_on(held.prompt, shared):
            worked = self.parking.keep(held.whose, held.tokens, held.prompt, shared, awaited=prompt.returns)
        found = self.parking.find(whose, tokens, shared)
        if found is not None:
            worked = True
            if self.parking.load(found):
                self._loaded = common(found.tokens, tokens[:-1]) - shared
            self.parking.release()
        return self._loaded, (time.monotonic() - begun) * 1000 if worked else 0.0

    def park(self) -> float:
        """Park what the server's cache holds before anything displaces it. See `ParkingEngine`."""
        held = self._held
        if held is None or not held.returns:
            return 0.0
        self.parking.keep(held.whose, held.tokens, held.prompt, 0)
        return self.parking.pause_left

    def end(self, prompt: Prompt, tokens: list[int], stats: Stats, read_ms: float | None) -> None:
        """The server has read and said `tokens`, the prompt's in `read_ms`; None where it was aborted before it had read them."""
        asked = min(len(prompt.tokens) - prompt.said, len(tokens))
        self._held = _Held(Whose(prompt.owner, prompt.adapter), tokens, asked, prompt.returns)
        fresh = stats.prompt_tokens - stats.cached_tokens
        if fresh >= MEASURABLE and read_ms:
            self._files.read_ms = read_ms / fresh
        if self._loaded:
            self.parking.judge(self._loaded, stats.cached_tokens)

    def forget(self) -> None:
        """Another server has begun, whose cache is empty."""
        self._held = None
        self.parking.forgive()
