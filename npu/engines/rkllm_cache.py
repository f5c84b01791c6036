"""What a handle's key-value cache holds, as far as we know for sure, and how the next prompt is fitted onto it."""

from __future__ import annotations

from collections.abc import Sequence

from npu.errors import EngineFailed
from npu.rkllm.handle import Handle


class Cache:
    """The tokens in the cache of one handle.

    There are two ways to go on from what is cached. Where the runtime compares prompts by itself, the whole prompt is sent
    and nothing need be known here. Elsewhere (`keep_history`) only what is new is sent, and then what is cached must be
    known exactly, token by token, and agree with the size the runtime reports; at the least doubt it is cleared.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._can = handle.abi.CAPABILITIES
        self.reuse: bool | None = None
        """Whether the runtime skips a prefix it has cached; None until that was seen."""
        self._tokens: list[int] = []
        self._history = False
        """Whether the last run kept its history."""

    def enter(self, tokens: Sequence[int]) -> tuple[bool, int]:
        """Make ready for a prompt that the runtime will answer: whether to keep history, and how many of its first tokens
        are cached and must not be sent."""
        if self.reuse is False and self._can.keep_history and self._can.cache_size:
            return True, self.enter_history(tokens)
        if self._history:
            self.clear()  # another way of counting: what an earlier run kept is not to be found by this one
        return False, 0

    def shared(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` the cache begins with, as far as we know. The last one never counts: it is read again."""
        size = self._handle.cache_size() if self._tokens else 0
        same = 0
        for ours, theirs in zip(self._tokens[:size], tokens[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        return same

    def enter_history(self, tokens: Sequence[int]) -> int:
        """Make ready for runs that keep history: how many of `tokens` are cached. The last one never counts."""
        size = self._handle.cache_size() if self._tokens else 0
        known = self._tokens[:size] if size is not None and size <= len(self._tokens) else []
        if not known or len(known) >= len(tokens) or known != list(tokens[: len(known)]):
            self.clear()
            known = []
        self._tokens = known
        self._history = True
        return len(known)

    def holds(self, tokens: Sequence[int], answer: Sequence[int] = ()) -> None:
        """A run has ended: the cache begins with `tokens`, and may go on with its answer."""
        self._tokens = [*tokens, *answer]

    def holds_exactly(self, tokens: Sequence[int]) -> bool:
        """A run has ended: whether the cache holds `tokens` and no more. A runtime that cannot tell may have kept one it
        said, too."""
        self._tokens = list(tokens)
        return self._handle.cache_size() == len(tokens)

    def grew(self, tokens: Sequence[int]) -> None:
        """A step has added `tokens`. Raises `EngineFailed` when the runtime counts otherwise."""
        self._tokens += tokens
        self._history = True
        size = self._handle.cache_size()
        if size not in (None, len(self._tokens)):
            raise EngineFailed(
                f"After a step of {len(tokens)} tokens the RKLLM runtime holds {size} instead of {len(self._tokens)}: its "
                "logits cannot be relied on. Set `host_sampling = 0` in the model's manifest."
            )

    def clear(self) -> None:
        """Forget everything. Raises `EngineFailed` when the runtime does not."""
        self._tokens = []
        self._history = False
        if not self._handle.clear() or self._handle.cache_size() not in (None, 0):
            raise EngineFailed("The RKLLM runtime did not clear its cache. The model is loaded anew.")
