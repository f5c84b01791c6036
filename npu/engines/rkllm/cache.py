"""What a handle's key-value cache holds, as far as we know for sure, and how the next prompt is fitted onto it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import Enum, auto

from npu.engines.parking import Parking, Whose, common, goes_on
from npu.engines.rkllm.prompt_cache import PromptCache
from npu.errors import EngineFailed
from npu.rkllm.abi import Answer, Mode, Run, Tokens
from npu.rkllm.handle import Handle


class Next(Enum):
    """What the runtime does with the prompt of the next run without history."""

    COMPARED = auto()
    """It compares it with what is cached, from the start."""
    APPENDED = auto()
    """It puts it behind what is cached."""
    UNKNOWN = auto()


class Cache:
    """The tokens in the cache of one handle.

    There are two ways to go on from what is cached. Where the runtime compares prompts by itself, the whole prompt is sent
    and nothing need be known here. Elsewhere (`keep_history`, and after a pause) only what is new is sent, and then what is
    cached must be known exactly, token by token, and agree with the size the runtime reports; at the least doubt it is
    cleared.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._can = handle.abi.CAPABILITIES
        self.reuse: bool | None = None
        """Whether the runtime skips a prefix it has cached; None until that was seen."""
        self.file: PromptCache | None = None
        """What is loaded for prompts that begin as the manifest says most do."""
        self.parking: Parking | None = None
        """Where conversations are kept that others displace."""
        self.loaded = 0
        """Tokens of the prompt that was entered last which had been parked, and were loaded for it."""
        self._in_file = 0
        """How many it has in all of what was loaded, those that are cached as well among them."""
        self.files_ms = 0.0
        """What that took, and what it took to park the conversation before it."""
        self._tokens: list[int] = []
        self._prompt = 0
        """How many of them were asked, and not answered."""
        self._beside: dict[int, list[int]] = {}
        """What the further slots hold, where they were given anything worth keeping."""
        self._next = Next.COMPARED
        self._after_pause: Next | None = None
        self._whose = Whose()
        """Who speaks."""
        self._returns = False
        """Whether what is read now may come back longer."""
        self._parks: Whose | None = None
        """Whose the cached tokens are, where they are to be parked when others displace them."""

    @property
    def appends(self) -> bool:
        """Whether the next run without history takes only what is new."""
        return self._next is Next.APPENDED

    def after_pause(self) -> Next:
        """What becomes of a prompt after a pause; UNKNOWN where no run can be paused, or none holds still.

        Nobody has documented it, so it is tried out once, with two tokens, which empties the cache. Raises `EngineFailed`.
        """
        if self._after_pause is None:
            can = self._can
            pauses = can.logits and can.cache_size and Answer.PAUSE in can.answers
            self._after_pause = self._try_pauses() if pauses else Next.UNKNOWN
        return self._after_pause

    def speak_with(self, adapter: str | None, owner: str = "", returns: bool = False) -> None:
        """Make ready for runs with this adapter, None being the model alone, in a conversation of that owner which may come
        back. Raises `EngineFailed` as `clear` does."""
        self.loaded, self._in_file, self.files_ms = 0, 0, 0.0
        if adapter != self._whose.adapter:
            self._park(0, awaited=returns)
            self.clear()
        self._whose, self._returns = Whose(owner, adapter), returns

    def enter(self, tokens: Sequence[int]) -> tuple[bool, int]:
        """Make ready for a prompt that the runtime will answer: whether to keep history, and how many of its first tokens
        are cached and must not be sent."""
        self._beside = {}
        one = self._handle.loaded.slots == 1  # what fills up the other slots would stay, too
        if self.reuse is False and self._can.keep_history and self._can.cache_size and one:
            return True, self.enter_history(tokens)
        if self._next is not Next.COMPARED:
            self.clear()  # another way of counting: what an earlier run kept is not to be found by this one
        self._fit_files(tokens)
        return False, 0

    def shared(self, tokens: Sequence[int], slot: int = 0) -> int:
        """How many of `tokens` a slot begins with, as far as we know. The last one never counts: it is read again."""
        known = self._beside.get(slot, []) if slot else self._tokens
        size = self._handle.cache_size(slot) if known else 0
        if size is not None and size < len(known) - 1:
            return 0  # not even its own prompt: it never read it, or has shifted its window
        same = 0
        for ours, theirs in zip(known[:size], tokens[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        return same

    def begins(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, which were entered last, need not be read: those that are shared, or were loaded."""
        return max(self.shared(tokens), self._in_file)

    def enter_pausing(self, tokens: Sequence[int]) -> int:
        """Make ready for runs that keep no history and are paused: how many of `tokens` are cached. The last one never
        counts. They must be sent all the same, unless `appends`."""
        if self.appends and self._goes_on_with(tokens):
            return len(self._tokens)
        if self._next is not Next.COMPARED:
            self.clear()
        self._fit_files(tokens)
        return self.shared(tokens) if self.reuse else 0

    def enter_history(self, tokens: Sequence[int]) -> int:
        """Make ready for runs that keep history: how many of `tokens` are cached. The last one never counts."""
        if not self._goes_on_with(tokens):
            self.clear()
        self._next = Next.UNKNOWN
        return len(self._tokens)

    def holds(self, tokens: Sequence[int], answer: Sequence[int] = (), *, slot: int = 0) -> None:
        """A run has ended, or begins: a slot begins with `tokens`, and may go on with its answer."""
        if slot:
            self._beside[slot] = [*tokens, *answer]
        else:
            self._tokens, self._prompt = [*tokens, *answer], len(tokens)
            self._parks = self._whose if self._returns else None

    def ended(self, paused: bool, stopped: bool) -> None:
        """A run without history has ended that was to be paused; `stopped`: somebody wanted its end."""
        if self._after_pause is Next.APPENDED:
            # One that was stopped may not even have begun, and then the pause before it holds.
            self._next = Next.APPENDED if paused else Next.UNKNOWN if stopped else Next.COMPARED

    def is_exact(self) -> bool | None:
        """Whether the cache is as long as what is known of it; None where the runtime cannot tell. It may have kept a token
        it said, too."""
        size = self._handle.cache_size()
        return None if size is None else size == len(self._tokens)

    def grew(self, tokens: Sequence[int]) -> None:
        """A step has added `tokens`. Raises `EngineFailed` when the runtime counts otherwise."""
        self._tokens += tokens
        self._next = Next.UNKNOWN
        self.check("Send shorter texts, which are read in one go.")

    def check(self, mend: str) -> None:
        """Raises `EngineFailed`, with what to do, when the runtime counts otherwise than we do."""
        if self.is_exact() is False:
            raise EngineFailed(
                f"After a step the RKLLM runtime's cache holds {self._handle.cache_size()} tokens instead of "
                f"{len(self._tokens)}: what it gives cannot be relied on. {mend}"
            )

    def clear(self) -> None:
        """Forget everything. Raises `EngineFailed` when the runtime does not."""
        self._tokens = []
        self._beside = {}
        self._next = Next.COMPARED
        if self.file is not None:
            self.file.fit((), 0)
        if self.parking is not None:
            self.parking.release()
        if not self._handle.clear() or self._handle.cache_size() not in (None, 0):
            raise EngineFailed("The RKLLM runtime did not clear its cache. The model is loaded anew.")

    def _fit_files(self, tokens: Sequence[int]) -> None:
        """Keep what `tokens` displace, and load what they begin with, where that is worth it."""
        if self.parking is None:
            if self.file is not None:
                self.file.fit(() if self._whose.adapter is not None else tokens, self.shared(tokens))
            return
        begun = time.monotonic()
        worked = self._park(self.shared(tokens), awaited=self._returns)
        cached = self.shared(tokens)  # a runtime that is paused for it has forgotten everything
        known = self.file.length(tokens) if self.file is not None and self._whose.adapter is None else 0
        found = self.parking.find(self._whose, tokens, max(cached, known))
        if not self.parking.has_loaded(found):
            self.parking.release()
        if self.file is not None:
            self.file.fit(() if found is not None or self._whose.adapter is not None else tokens, cached)
        if found is not None and self.parking.load(found):
            self._in_file = common(found.tokens, tokens[:-1])
            self.loaded, worked = self._in_file - cached, True
        if worked:
            self.files_ms = (time.monotonic() - begun) * 1000

    def park(self) -> float:
        """Park what is cached before anything displaces it, where it stays cached. See `ParkingEngine`. Raises
        `EngineFailed`."""
        if self.parking is None or not self._can.per_run_max_tokens:  # see `write_file`
            return 0.0
        self._park(0)
        return self.parking.pause_left if self._parks is not None else 0.0

    def _park(self, shared: int, *, awaited: bool = False) -> bool:
        """Park what is cached but for the first `shared` tokens, if it is to be; whether that was tried. `awaited`: somebody
        waits for what displaces it."""
        whose, length = self._parks, len(self._tokens)
        if self.parking is None or whose is None or not self.reuse or self._next is not Next.COMPARED:
            return False
        if goes_on(self._prompt, shared) or self.parking.pause_left:
            return False
        size = self._handle.cache_size()
        if size is not None and size < length - 1:
            return False  # its window was shifted, or it never read all of it
        return self.parking.keep(whose, self._tokens, self._prompt, shared, awaited=awaited)

    def _goes_on_with(self, tokens: Sequence[int]) -> bool:
        """Whether everything cached is known, and `tokens` begin with it and go on.

        It is where the runtime counts as many tokens, or one less: the last it said may not be cached. Any other size is
        another content: tokens said after an abort, or what a window that was shifted over them has left.
        """
        length = len(self._tokens)
        size = self._handle.cache_size() if length else 0
        known = self._tokens[:size] if size in (length - 1, length) else []
        self._tokens = known
        return 0 < len(known) < len(tokens) and known == list(tokens[: len(known)])

    def _try_pauses(self) -> Next:
        self.clear()
        sizes = []
        for token in (0, 1):
            run = Run(inputs=[Tokens([token])], mode=Mode.LOGITS)
            list(self._handle.start(run, limit=1, take=lambda _: None, pause=True))
            sizes.append(self._handle.cache_size())
        self.clear()
        return {(1, 2): Next.APPENDED, (1, 1): Next.COMPARED}.get((sizes[0], sizes[1]), Next.UNKNOWN)  # type: ignore[arg-type]
