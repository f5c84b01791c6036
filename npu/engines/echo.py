"""An engine that answers without hardware: it repeats the last user turn, one byte a token."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from npu.chat_template import ChatTemplate
from npu.context_length import AUTO, STEPS, Wanted
from npu.engine import Ability, End, Piece, Prompt, Sampling, Stats
from npu.engines import Facts, Option, Setup, option
from npu.engines.echo_reading import EMBEDDING_LENGTH, EchoEmbedding, EchoScore
from npu.errors import AdapterMissing, ContextTooLong, EngineFailed, PromptRefused
from npu.matcher import Matcher, Matchers
from npu.model import Model
from npu.one_run import OneRun
from npu.sampling import check_sampling
from npu.template_search import find_template

VERSION = "echo 1"
CONTEXT_LENGTH = 8192
MEMORY_BYTES = 1 << 20

BOS, EOS, SYSTEM, USER, ASSISTANT, END = range(256, 262)
MARKERS = {
    "<|bos|>": BOS,
    "<|eos|>": EOS,
    "<|system|>": SYSTEM,
    "<|user|>": USER,
    "<|assistant|>": ASSISTANT,
    "<|end|>": END,
}
VOCABULARY_SIZE = 262
_MARKER = re.compile("(" + "|".join(map(re.escape, MARKERS)) + ")")

TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}<|system|>
{%- elif message.role == 'assistant' -%}<|assistant|>
{%- else -%}<|user|>{%- endif -%}
{{- message.content or '' -}}<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""

_SOONEST = (EOS, *b'"}]:,0')
"""What brings a text that is held to a form nearest to its end, in this order; else the last byte that may come next."""

_PREFILL_SLICE = 64
"""Tokens between two reports of prefill progress."""

_MADE_UP = 0.02
"""Seconds of delay that a run makes up for. After a longer one it goes on at its pace: what is late does not come in a lump."""


def _context_length(model: Model, asked: Wanted | None) -> int:
    wanted = asked or model.context_length or CONTEXT_LENGTH
    # It keeps no cache, so the longest context fits everywhere.
    return STEPS[-1] if wanted == AUTO else wanted


class EchoTokenizer:
    """Byte-level: the ids 0 to 255 are bytes, six more are markers, which add nothing to a text."""

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The UTF-8 bytes of `text`. Raises `PromptRefused` on text that has no UTF-8 (a lone surrogate)."""
        tokens = [BOS] if add_special else []
        try:
            for place, part in enumerate(_MARKER.split(text) if parse_special else [text]):
                if place % 2:
                    tokens.append(MARKERS[part])
                else:
                    tokens.extend(part.encode())
        except UnicodeEncodeError as error:
            raise PromptRefused("The text is not valid Unicode: it holds half of a surrogate pair.") from error
        return tokens

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes among `tokens`. Raises `PromptRefused` on an id outside the vocabulary."""
        for token in tokens:
            if not 0 <= token < VOCABULARY_SIZE:
                raise PromptRefused(
                    f"Token {token} is outside the vocabulary, whose ids go from 0 to {VOCABULARY_SIZE - 1}."
                )
        return bytes(token for token in tokens if token < 256)

    @property
    def ending(self) -> Sequence[int]:
        """A text has no special end."""
        return ()

    @property
    def digest(self) -> str:
        """There is one vocabulary of bytes."""
        return "echo"


class EchoWords:
    """What the echo's tokens stand for."""

    end_tokens = frozenset({EOS})

    def __len__(self) -> int:
        return VOCABULARY_SIZE

    def bytes_of(self, token: int) -> bytes:
        """What `token` adds to a text."""
        return bytes((token,)) if token < 256 else b""


class EchoEngine:
    """The echo. Sampling is checked, and changes nothing but the end (`ignore_eos`), the form and the log probabilities."""

    ABILITIES = frozenset(Ability)
    ADAPTERS = False
    CACHES_PROMPTS = False
    OPTIONS = {  # noqa: RUF012 - a constant
        "tokens_per_second": Option(0.0, 0, 1e6, "how fast it answers; 0 is as fast as it can"),
        "prefill_tokens_per_second": Option(0.0, 0, 1e9, "how fast it reads the prompt; 0 takes no time"),
        "load_seconds": Option(0.0, 0, 3600, "how long it takes to load"),
        "jitter": Option(0.0, 0, 1, "how much the time of each token varies, the same way in every run"),
    }

    def __init__(self, model: Model, context_length: Wanted | None = None) -> None:
        self._model = model
        self.context_length = _context_length(model, context_length)
        self.version = VERSION
        self.embedding_length = EMBEDDING_LENGTH
        self.tokenizer = EchoTokenizer()
        self._matchers = Matchers(EchoWords(), self.tokenizer)
        self._remembered: tuple[int, ...] = ()
        self._closed = False
        time.sleep(option(model, self.OPTIONS, "load_seconds"))

    @staticmethod
    def open(model: Model, setup: Setup) -> EchoEngine:
        """Ready at once, or after the manifest's `load_seconds`. It needs neither a directory nor threads."""
        return EchoEngine(model, setup.context_length)

    @staticmethod
    def open_tokenizer(model: Model, setup: Setup) -> EchoTokenizer:
        """The same everywhere: it needs no engine."""
        return EchoTokenizer()

    @staticmethod
    def describe(model: Model, setup: Setup) -> Facts:
        """Its context and what it is."""
        return Facts(
            context_length=_context_length(model, setup.context_length),
            version=VERSION,
            chat=True,
            template=EchoEngine.chat_template(model),
            memory_bytes=MEMORY_BYTES,
            family=model.family or "echo",
            embedding_length=EMBEDDING_LENGTH,
            notes=("It repeats what it is told; sampling values are checked but change nothing.", *model.notes),
        )

    @staticmethod
    def chat_template(model: Model) -> ChatTemplate:
        """Its own, unless the folder holds another."""
        return find_template(model, None) or ChatTemplate(
            TEMPLATE, bos_token="<|bos|>", eos_token="<|eos|>", options=model.template_options
        )

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> EchoGeneration:
        """Prepare one run. Raises `SamplingRefused`, `ContextTooLong`, `PromptRefused`; `EngineFailed` once closed."""
        check_sampling(sampling, VOCABULARY_SIZE)
        self._check(prompt.tokens, prompt.max_tokens)
        if prompt.adapter is not None:
            raise AdapterMissing(self._model.id, prompt.adapter)
        matcher = None
        if sampling.constraint is not None:
            matcher = self._matchers.match(sampling.constraint, prompt.tokens[len(prompt.tokens) - prompt.said :])
        return EchoGeneration(self, prompt, sampling, matcher, on_prefill)

    def embed(self, tokens: Sequence[int]) -> EchoEmbedding:
        """Prepare one vector. Raises `ContextTooLong`, `PromptRefused`; `EngineFailed` once closed."""
        self._check(tokens, None)
        return EchoEmbedding(tokens, self.setting("prefill_tokens_per_second"))

    def score(self, tokens: Sequence[int], yes: int, no: int) -> EchoScore:
        """Prepare one score. Raises `ContextTooLong`, `PromptRefused`; `EngineFailed` once closed."""
        self._check(tokens, 1)
        return EchoScore(tokens, self.setting("prefill_tokens_per_second"))

    def _check(self, tokens: Sequence[int], max_tokens: int | None) -> None:
        if self._closed:
            raise EngineFailed("This engine was closed. Open it anew.")
        if not tokens:
            raise PromptRefused("The prompt is empty. Send at least one token.")
        if len(tokens) + (max_tokens or 0) > self.context_length:
            raise ContextTooLong(len(tokens), max_tokens, self.context_length)
        self.tokenizer.decode(tokens)

    def close(self) -> None:
        """Twice is safe."""
        self._closed = True

    def reuse(self, tokens: tuple[int, ...]) -> int:
        """How many of `tokens` the last run left in the cache; the last one is always read again."""
        same = 0
        for mine, theirs in zip(tokens[:-1], self._remembered, strict=False):
            if mine != theirs:
                break
            same += 1
        return same

    def remember(self, tokens: tuple[int, ...]) -> None:
        """Keep what a run left in the cache."""
        self._remembered = tokens

    def setting(self, name: str) -> float:
        """An option of the manifest."""
        return float(option(self._model, self.OPTIONS, name))


class EchoGeneration(OneRun):
    """One run of the echo, paced against the clock's deadlines so that many short waits do not add up, and long ones stay."""

    def __init__(
        self,
        engine: EchoEngine,
        prompt: Prompt,
        sampling: Sampling,
        matcher: Matcher | None,
        on_prefill: Callable[[int], None] | None,
    ) -> None:
        super().__init__()
        self._engine = engine
        self._prompt = tuple(prompt.tokens)
        self._max_tokens = prompt.max_tokens
        self._sampling = sampling
        self._matcher = matcher
        self._on_prefill = on_prefill
        self._aborted = threading.Event()

    def abort(self) -> None:
        """Wakes the run wherever it waits."""
        self._aborted.set()

    def _run(self) -> Iterator[Piece]:
        begin = time.monotonic()
        if self._aborted.is_set():
            self._finish(End.ABORTED, 0, begin, begin, 0)
            return
        cached = self._engine.reuse(self._prompt)
        read = self._prefill(cached, begin)
        prefilled = time.monotonic()
        said: list[int] = []
        if read < len(self._prompt):
            self._engine.remember(self._prompt[:read])
            self._finish(End.ABORTED, cached, begin, prefilled, 0)
            return
        end = End.ABORTED  # Also what is true when nobody iterates to the end.
        try:
            rate, jitter = self._engine.setting("tokens_per_second"), self._engine.setting("jitter")
            chance = random.Random(0)
            due = prefilled
            for byte in self._fitting(self._answer()):
                if rate:
                    due = max(due, time.monotonic() - _MADE_UP) + (1 + jitter * chance.uniform(-1, 1)) / rate
                if self._wait_until(due if rate else 0):
                    return
                if byte == EOS:
                    end = End.EOS
                    return
                said.append(byte)
                yield self._piece(byte)
                if len(said) == self._max_tokens:
                    end = End.LENGTH
                    return
        finally:
            self._engine.remember((*self._prompt, *said))
            self._finish(end, cached, begin, prefilled, len(said))

    def _prefill(self, cached: int, begin: float) -> int:
        """Read the prompt in slices; give how much of it was read before an abort."""
        rate = self._engine.setting("prefill_tokens_per_second")
        read = cached
        while read < len(self._prompt):
            upto = min(read + _PREFILL_SLICE, len(self._prompt))
            if self._wait_until(begin + (upto - cached) / rate if rate else 0):
                return read
            read = upto
            if self._on_prefill is not None:
                self._on_prefill(read)
        return read

    def _wait_until(self, due: float) -> bool:
        """Wait for a moment of the monotonic clock; give whether the run was aborted."""
        return self._aborted.wait(max(0.0, due - time.monotonic())) if due else self._aborted.is_set()

    def _last_turn(self) -> tuple[int, ...]:
        if USER not in self._prompt:
            return tuple(token for token in self._prompt if token < 256)
        start = len(self._prompt) - self._prompt[::-1].index(USER)
        turn = self._prompt[start:]
        return turn[: next((place for place, token in enumerate(turn) if token >= 256), len(turn))]

    def _continued(self) -> int:
        """How much of the answer stands behind the assistant's marker: it was said already."""
        if ASSISTANT not in self._prompt or USER not in self._prompt:
            return 0
        after = self._prompt[::-1].index(ASSISTANT)
        return (
            after
            if after < self._prompt[::-1].index(USER) and END not in self._prompt[len(self._prompt) - after :]
            else 0
        )

    def _answer(self) -> Iterator[int]:
        turn, said = self._last_turn(), self._continued()
        yield from turn[said:]
        while self._sampling.ignore_eos:
            # An answer that had come round already goes on in the middle of a round.
            endless = turn or (ord(" "),)
            at = max(0, said - len(turn)) % len(endless)
            said = 0
            yield from endless[at:]
        yield EOS

    def _fitting(self, answer: Iterator[int]) -> Iterator[int]:
        """The answer, as far as it fits what it is held to; from there on whatever ends it soonest."""
        matcher = self._matcher
        if matcher is None:
            yield from answer
            return
        said = self._continued()
        if self._prompt[len(self._prompt) - said :] != self._last_turn()[:said]:
            answer = iter(())  # an earlier run had left it already
        while not matcher.is_complete:
            allowed = matcher.allowed()
            byte = next(answer, EOS)
            if not allowed[byte]:
                answer = iter(())
                byte = next((byte for byte in _SOONEST if allowed[byte]), int(allowed.nonzero()[0][-1]))
            if byte == EOS:
                break
            matcher.follow(byte)
            yield byte
        yield EOS

    def _piece(self, byte: int) -> Piece:
        """Nothing else could have been said, so its chance is 1."""
        top = self._sampling.logprobs
        if top is None:
            return Piece(byte, bytes((byte,)))
        return Piece(byte, bytes((byte,)), 0.0, ((byte, 0.0),)[:top])

    def _finish(self, end: End, cached: int, begin: float, prefilled: float, said: int) -> None:
        self._stats = Stats(
            prompt_tokens=len(self._prompt),
            cached_tokens=cached,
            prefill_ms=(prefilled - begin) * 1000,
            generated_tokens=said,
            decode_ms=(time.monotonic() - prefilled) * 1000,
        )
        self._end = end
