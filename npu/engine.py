"""The contract of an engine: what hardware is told, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeVar, runtime_checkable

from npu.constraint import Constraint

Outcome = TypeVar("Outcome", covariant=True)


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user says, for a runtime that has template and tokenizer to itself."""

    text: str
    thinking: bool = True
    """Whether its template lets the model think, if it can."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids ready to run; nothing below this point renders a template.

    `max_tokens` is settled (at least 1), and `len(tokens) + max_tokens` fits into the context. `adapter` is the name of
    the model's LoRA adapter that is to speak; None is the model alone. The last `said` of the tokens are the beginning of the
    answer, which goes on behind them: what it is held to holds for them as well.

    `owner` is whose it is; what is kept of it beyond the engine's cache is never used for another's. `returns`: somebody waits
    for it, and it may come back longer, as conversations do, so it is worth to be kept.

    Instead of tokens there is a `turn` where only the runtime knows how to make them (`HiddenTokenizer`). Then nobody knows
    how many they are.
    """

    tokens: Sequence[int]
    max_tokens: int
    adapter: str | None = None
    turn: Turn | None = None
    said: int = 0
    owner: str = ""
    returns: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, every value settled. The defaults are neutral: each switches its filter off.

    `temperature` 0 is greedy. `top_k` 0 and `top_p`, `typical_p` 1 mean no limit. `repeat_last_n` counts tokens
    (0 none, -1 the whole context). `seed` None lets the engine choose one. `mirostat` is 0 (off), 1 or 2.
    `logit_bias` maps a token id to what is added to its logit. `constraint` is what the answer is held to, None nothing.
    `logprobs` asks for each piece's log probability and those of so many likeliest tokens; None is without any.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    constraint: Constraint | None = None
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token: its id, and the bytes it adds to the text.

    The bytes may be empty and may end inside a UTF-8 character. `logprob` is the natural logarithm of the model's own chance
    for it, before any sampling field; `top` are the likeliest tokens at its place with theirs, the likeliest first. Both are
    there where `Sampling.logprobs` asks for them.
    """

    token: int
    data: bytes
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Ability(StrEnum):
    """What a model may be asked for."""

    TEXT = "text"
    """To continue a prompt; a chat, where it has a template for one."""
    EMBEDDING = "embedding"
    """The vector of a text."""
    RERANK = "rerank"
    """How likely a prompt is answered with yes, rather than no."""


class Pooling(StrEnum):
    """How the rows of the last hidden layer, one for each token, become the vector of a text."""

    LAST = "last"
    """The row of the last token, which has seen all the others."""
    MEAN = "mean"
    """The mean of all rows."""


class End(StrEnum):
    """Why a generation ended."""

    EOS = "eos"
    LENGTH = "length"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Stats:
    """What one generation cost, by the engine's own clock. Times in milliseconds, the rest counts tokens.

    `prompt_tokens` is the whole prompt; `cached_tokens` of them were reused and not prefilled again, and `parked_tokens` of
    those had been displaced from the cache and were loaded again.
    """

    prompt_tokens: int
    cached_tokens: int
    prefill_ms: float
    generated_tokens: int
    decode_ms: float
    memory_mb: float = 0.0
    """Millions of bytes that the runtime says it held at the most; 0 where it does not tell."""
    parked_tokens: int = 0


class Abortable(Protocol):
    """Whatever an engine is busy with."""

    def abort(self) -> None:
        """Stop soon. From any thread, at any time, and twice."""


class Reading(Protocol[Outcome]):
    """One text that an engine reads to its end without saying anything."""

    def result(self) -> Outcome | None:
        """Read it, once: what comes of it, or None when an abort came first. Raises `EngineFailed`, `PromptRefused`."""

    def abort(self) -> None:
        """Stop soon: between two slices of the text, if it has several. From any thread, at any time, and twice."""

    @property
    def stats(self) -> Stats:
        """What it cost; there once `result` has returned."""


class Generation(Protocol):
    """One run of an engine, iterated once: each piece as it is made.

    Iteration ends when the engine is done *and* every piece has been handed over. Raises `EngineFailed` or
    `PromptRefused` from iteration, and `SamplingRefused` where a constraint became too much to follow. `end` and `stats`
    may be read after iteration has ended, not before.
    """

    def __iter__(self) -> Iterator[Piece]: ...

    def abort(self) -> None:
        """Stop soon: between two tokens, and inside prefill where the engine can. From any thread, at any time.

        Before the run begins, the run will not begin. After the end, and a second time, it does nothing.
        It touches this run only, never the next.
        """

    @property
    def end(self) -> End: ...

    @property
    def stats(self) -> Stats: ...


class Tokenizer(Protocol):
    """A model's own tokenizer. Usable from any thread, and while the engine generates."""

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The ids of `text`. `add_special` puts the model's BOS in front where its vocabulary wants one;
        `parse_special` reads control tokens written in the text (`<|im_start|>`) as such. Raises `EngineFailed`."""

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes of `tokens`, which may end inside a UTF-8 character. Raises `PromptRefused` on an id outside the
        vocabulary."""

    @property
    def ending(self) -> Sequence[int]:
        """What the model's files put behind a text that is read and not continued; often nothing."""

    @property
    def digest(self) -> str:
        """The same for the same vocabulary, wherever it lies: token ids mean the same to both."""


class TextEngine(Protocol):
    """One loaded model. Runs one generation at a time; its owner sees to that."""

    context_length: int
    """Tokens the context holds, prompt and answer together."""

    version: str
    """Name and version of the software that runs the model, for the card."""

    tokenizer: Tokenizer

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> Generation:
        """Prepare one run; it begins with the first iteration. `on_prefill` is told, where the engine knows, how many
        tokens of the prompt are done. Raises `SamplingRefused`, `ContextTooLong`, `AdapterMissing`."""

    def close(self) -> None:
        """Free everything. Twice is safe."""


@runtime_checkable
class LockStepEngine(TextEngine, Protocol):
    """An engine that can answer several prompts by one run, a token of each at a time."""

    slots: int
    """Prompts that fit into one run; 1 of a model that was set up without."""

    def fitting(self, prompts: Sequence[Prompt]) -> int:
        """How many of them, from the first on, one run should take at most, and at least 1: no more than there are slots, and
        than are read about as fast as a slice of one prompt, for nothing can end a run before it has read them."""

    def generate_together(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[Generation]:
        """Prepare one run for `prompts`, as many as `slots` at most and all with one adapter; one generation for each.

        It begins with the first iteration of any of them, and what the others say meanwhile is kept for them. All of them
        are to be iterated, one after another or from threads of their own; each may be aborted by itself, and the engine is
        free when the last one has ended. A failure is every generation's. Raises `SamplingRefused`, `ContextTooLong`,
        `AdapterMissing`, `PromptRefused`."""


@runtime_checkable
class ParkingEngine(Protocol):
    """An engine that keeps in memory what others displaced from its cache."""

    parks: bool
    """Whether it does: not where that does not work, or is switched off."""
    parked_bytes: int
    """What that takes now."""

    def park(self) -> float:
        """Keep what is in the cache already now, where that is worth it, so that nobody waits for it who displaces it. Nothing
        runs meanwhile. In how many seconds to try again, since it is paused; 0 where that would do nothing. Raises
        `EngineFailed`."""

    def unpark(self) -> None:
        """Give this memory back; such prompts are read anew. From any thread."""

    def pause_parking(self, seconds: float) -> None:
        """Keep nothing more for so long, while others take the memory that is free. From any thread."""


@runtime_checkable
class EmbeddingEngine(Protocol):
    """An engine whose model can embed."""

    embedding_length: int
    """Numbers in each vector."""

    def embed(self, tokens: Sequence[int]) -> Reading[Sequence[float]]:
        """Prepare the vector of one text, neither cut nor normalized. Raises `ContextTooLong`, `PromptRefused`;
        `EngineFailed` once closed."""


@runtime_checkable
class RerankEngine(Protocol):
    """An engine whose model can rerank."""

    def score(self, tokens: Sequence[int], yes: int, no: int) -> Reading[float]:
        """Prepare the probability, from 0 to 1, that the token `yes` goes on a prompt and not the token `no`.

        Raises `ContextTooLong`, `PromptRefused`; `EngineFailed` once closed."""
