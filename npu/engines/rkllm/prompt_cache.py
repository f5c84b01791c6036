"""A prefix that the runtime has read once, in a file that it loads instead of reading it anew."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from npu.errors import EngineFailed
from npu.rkllm.handle import Handle

log = logging.getLogger("rockchipllama.rkllm")


class PromptCache:
    """The file of one prefix, and whether the runtime has it loaded."""

    def __init__(self, handle: Handle, path: Path, prefix: Sequence[int]) -> None:
        self._handle = handle
        self._path = path
        self._prefix = list(prefix)
        self._loaded = False

    def fit(self, tokens: Sequence[int], cached: int) -> None:
        """Make ready for a prompt, of which `cached` tokens are in the runtime's cache: load the file where that saves
        reading, release it where it is another prompt's."""
        length = self.length(tokens)
        fits = length > 0
        if fits and cached >= length:
            return
        if self._loaded:
            self.release()
        if fits:
            self.load()

    def length(self, tokens: Sequence[int]) -> int:
        """How many of these the file would spare."""
        length = len(self._prefix)
        return length if len(tokens) > length and list(tokens[:length]) == self._prefix else 0

    def load(self) -> bool:
        """Whether the runtime took it; if not, it is told of once and prompts are read as ever."""
        self._loaded = self._handle.load_prompt_cache(self._path)
        if not self._loaded:
            log.warning("the file of the cached system prompt could not be loaded; it is read like any other")
            self._prefix = []
        return self._loaded

    def release(self) -> None:
        """Have the runtime forget it. Raises `EngineFailed` when it does not."""
        self._loaded = False
        if not self._handle.release_prompt_cache():
            raise EngineFailed("The RKLLM runtime did not release a prompt cache. The model is loaded anew.")
