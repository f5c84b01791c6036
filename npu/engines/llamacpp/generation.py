"""One run of llama-server: a stream of token ids, made exact.

The server streams text, and holds back a token that ends inside a character until the character is whole: of the tokens in
between it never tells the ids. What was held back is then worked out from its bytes, which nearly always leaves one way. Where
it does not, or where the answer ends inside a character, the run goes back to the last token it is sure of and takes the next
ones singly, which the server reports in full. Nobody has seen what is dropped there, and what replaces it is drawn anew.
"""

from __future__ import annotations

import codecs
import http.client
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import islice
from typing import Any

from npu.engine import End, Piece, Prompt, Sampling, Stats
from npu.engines.llamacpp.parking import LlamaCppParking
from npu.engines.llamacpp.server import Address, Call
from npu.errors import EngineFailed
from npu.grammar import write_choice
from npu.matcher import Matcher
from npu.one_run import OneRun
from npu.vocabulary import Vocabulary

_SAMPLERS = ("penalties", "top_k", "typ_p", "top_p", "min_p", "temperature")

_FIELDS = ("content", "tokens", "stop", "stop_type", "tokens_predicted", "timings", "completion_probabilities")
"""What of the last event is of use; the rest would carry the whole prompt back."""

_CHANCES = 200
"""How many of the likeliest tokens are looked through for one before all are."""
_FORCED = 1e4
"""What is added to the logit of a token that is to win."""


class LlamaCppGeneration(OneRun):
    """One run, iterated once."""

    def __init__(
        self,
        address: Address,
        vocabulary: Vocabulary,
        context_length: int,
        prompt: Prompt,
        sampling: Sampling,
        on_prefill: Callable[[int], None] | None,
        last_words: Callable[[], str | None] = lambda: None,
        memory_mb: Callable[[], float] = lambda: 0.0,
        matcher: Matcher | None = None,
        parking: LlamaCppParking | None = None,
    ) -> None:
        """`last_words` says how the server ended, or None while it runs, and `memory_mb` what it holds. `matcher` follows what
        the answer is held to, and `parking` keeps what the prompt displaces."""
        super().__init__()
        self._address = address
        self._vocabulary = vocabulary
        self._asked = prompt
        self._prompt = list(prompt.tokens)
        self._parking = parking
        self._parked = 0
        """Tokens of the prompt that had been parked, and were loaded."""
        self._parking_ms = 0.0
        self._max_tokens = prompt.max_tokens
        self._settings = _settings(sampling, context_length)
        self._logprobs = sampling.logprobs
        self._matcher = matcher
        self._may_begin = matcher is not None and not prompt.said and matcher.grammar.startswith("%llguidance")
        """Whether llama.cpp can be given the grammar, while nothing was said."""
        self._misfit = False
        """Whether the token last seen did not fit, so that the next one is drawn from those that do."""
        self._seed = random.getrandbits(31) if sampling.seed is None else sampling.seed
        self._on_prefill = on_prefill
        self._last_words = last_words
        self._memory_mb = memory_mb
        self._said: list[int] = []
        self._read = 0
        """Tokens of the prompt that the server has read, or had in its cache."""
        self._lock = threading.Lock()
        self._call: Call | None = None
        self._aborted = False
        self._cached = 0
        self._prefill_ms: float | None = None
        self._decode_ms = 0.0
        self._clock: _Clock | None = None

    @property
    def tokens(self) -> list[int]:
        """The prompt as far as it was read, and what was said behind it."""
        return self._prompt[: self._read] + self._said

    def abort(self) -> None:
        """Break the connection; the server stops at its next token, or its next slice of the prompt."""
        with self._lock:
            self._aborted = True
            if self._call is not None:
                self._call.cancel()

    def _run(self) -> Iterator[Piece]:
        end: End | None = None
        try:
            if self._parking is not None and not self._aborted:
                self._parked, self._parking_ms = self._parking.begin(self._asked)
            while end is None:
                end = yield from self._stream()
                if end is None:
                    end = yield from self._singly()
        except GeneratorExit:  # Nobody iterates to the end.
            end = End.ABORTED
            raise
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            if not self._aborted:
                words = self._last_words() or f"The connection to llama.cpp broke: {error or type(error).__name__}."
                raise EngineFailed(words) from error
            end = End.ABORTED
        finally:
            if self._call is not None:
                self._call.close()
            self._finish(end)

    def _stream(self) -> Generator[Piece, None, End | None]:
        """Stream until the end, which is returned, or until something was held back that cannot be worked out: None."""
        call = self._request(self._max_tokens - len(self._said), stream=True)
        clock = self._clock = _Clock()
        seen = 0
        silent: list[
            Piece
        ] = []  # Tokens without text: the one that ends the answer may be among them, and is no piece.
        for event in call.events():
            if "prompt_progress" in event:
                self._progress(event["prompt_progress"])
                continue
            self._read = len(self._prompt)
            count = event["tokens_predicted"]
            if event["stop"]:
                self._account(event.get("timings"))
                if count > seen:
                    break  # It ended inside a character.
                ended = event["stop_type"] == "eos"
                if not (yield from self._pieces(silent[:-1] if ended else silent)):
                    return None
                if ended and self._matcher is not None and not self._matcher.may_end:
                    self._misfit = True
                    return None
                return End.EOS if ended or self._is_complete else End.LENGTH
            clock.token()
            token = event["tokens"][-1]
            new: tuple[Piece, ...] | None = None
            if count == seen + 1 and (self._logprobs is None or "completion_probabilities" in event):
                new = (self._piece(token, event),)
            elif self._logprobs is None and (ids := self._held_back(event["content"], token, count - seen - 1)):
                new = tuple(map(self._piece, ids))
            if new is None:
                self._account(None)
                break
            seen = count
            silent.extend(new)
            if self._vocabulary.bytes_of(token) and token not in self._vocabulary.end_tokens:
                fits = yield from self._pieces(silent)
                silent = []
                if not fits or self._is_complete:
                    self._account(None)
                    break
        else:
            raise EngineFailed("llama.cpp ended its answer without saying why.")
        call.cancel()
        call.close()
        yield from self._pieces(silent)
        return End.EOS if self._is_complete else None

    def _singly(self) -> Generator[Piece, None, End | None]:
        """Take token by token until the text ends with a whole character. Returns the end, or None to go on streaming."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while len(self._said) < self._max_tokens:
            piece = self._next()
            if piece is None:
                return End.EOS
            if not (yield from self._pieces([piece])):
                continue
            if self._is_complete:
                return End.EOS
            decoder.decode(piece.data)
            if not decoder.getstate()[0]:
                return None
        return End.LENGTH

    def _next(self) -> Piece | None:
        """Draw one token, from those that fit where the last one did not; None is the end."""
        settings: dict[str, Any] = {}
        if (chosen := self._misfit) and self._matcher is not None:
            tokens = self._matcher.allowed().nonzero()[0].tolist()
            settings["grammar"] = write_choice(tokens)
        self._misfit = False
        self._clock = _Clock()
        answer = self._request(1, stream=False, settings=settings).result()
        self._account(answer.get("timings"))
        if answer["stop_type"] != "eos":
            piece = self._piece(answer["tokens"][0], answer)
            if chosen and piece.token not in tokens:
                raise EngineFailed(f"llama.cpp drew the token {piece.token}, which it was told not to draw.")
            return piece
        if self._matcher is None or self._matcher.may_end:
            return None
        if chosen:
            raise EngineFailed("llama.cpp ended an answer where it was told not to end it.")
        self._misfit = True
        return self._next()

    def _pieces(self, pieces: list[Piece]) -> Generator[Piece, None, bool]:
        """Hand over what fits; whether all did."""
        for piece in pieces:
            if self._matcher is not None and not self._matcher.accept(piece.token):
                self._misfit = True
                return False
            self._said.append(piece.token)
            yield piece
        return True

    @property
    def _is_complete(self) -> bool:
        return self._matcher is not None and self._matcher.is_complete

    def _piece(self, token: int, answer: dict[str, Any] | None = None) -> Piece:
        data = self._vocabulary.bytes_of(token)
        if self._logprobs is None or answer is None:
            return Piece(token, data)
        told = (answer.get("completion_probabilities") or [None])[-1]
        logprob, top = (told["logprob"], told["top_logprobs"]) if told is not None else self._chances_of(token)
        return Piece(token, data, logprob, tuple((each["id"], each["logprob"]) for each in islice(top, self._logprobs)))

    def _chances_of(self, token: int) -> tuple[float, list[dict[str, Any]]]:
        """The log probability of what may come next: of `token`, and of all that are likelier and some more.

        The server does not tell it of a token that ends inside a character, but of the place it stands at: any other token
        that is made to stand there brings it.
        """
        for count in (_CHANCES, len(self._vocabulary)):
            forced = {"logit_bias": [[self._vocabulary.letter, _FORCED]], "n_probs": count, "temperature": 0.0}
            answer = self._request(1, stream=False, settings=forced).result()
            top = answer["completion_probabilities"][0]["top_logprobs"]
            found = next((each["logprob"] for each in top if each["id"] == token), None)
            if found is not None:
                return found, top
        raise EngineFailed(f"llama.cpp does not tell the chance of token {token}.")

    def _held_back(self, content: str, token: int, count: int) -> tuple[int, ...] | None:
        """The `count` tokens held back and `token` after them, when `content` leaves one way only."""
        data, last = content.encode("utf-8", "surrogatepass"), self._vocabulary.bytes_of(token)
        if "\ufffd" in content or not last or not data.endswith(last):
            return None
        ways = list(islice(self._vocabulary.ways(data[: -len(last)], count), 2))
        return (*ways[0], token) if len(ways) == 1 else None

    def _request(self, max_tokens: int, *, stream: bool, settings: Mapping[str, Any] | None = None) -> Call:
        body: dict[str, Any] = {
            **self._settings,
            "prompt": self._prompt + self._said,
            "n_predict": max_tokens,
            # Each request starts its own generator: with one seed for all, each would draw the same numbers.
            # 0xFFFFFFFF would mean "any" to llama.cpp.
            "seed": (self._seed + len(self._said)) % 0xFFFFFFFF,
            "stream": stream,
            "return_progress": stream,
            "response_fields": _FIELDS,
            **(settings or {}),
        }
        if settings is None and self._may_begin and not self._said and self._matcher is not None:
            body["grammar"] = self._matcher.grammar
        call = Call(self._address, "/completion", body)
        with self._lock:
            self._call = call
            if self._aborted:
                call.cancel()
        return call

    def _progress(self, progress: dict[str, Any]) -> None:
        if self._said:
            return
        self._cached = progress["cache"]
        self._read = max(self._read, progress["processed"])
        if self._on_prefill is not None and progress["processed"]:
            self._on_prefill(progress["processed"])

    def _account(self, timings: dict[str, Any] | None) -> None:
        """Add what one request took: as the server says, else as seen from here."""
        if self._clock is None:
            return
        prefill, decode = (timings["prompt_ms"], timings["predicted_ms"]) if timings else self._clock.times()
        self._clock = None
        if self._prefill_ms is None:
            self._prefill_ms, self._decode_ms = prefill, decode
            self._cached = timings["cache_n"] if timings else self._cached
        else:
            self._decode_ms += prefill + decode

    def _finish(self, end: End | None) -> None:
        self._account(None)
        self._end = end
        self._stats = Stats(
            prompt_tokens=len(self._prompt),
            cached_tokens=self._cached,
            prefill_ms=(self._prefill_ms or 0.0) + self._parking_ms,
            generated_tokens=len(self._said),
            decode_ms=self._decode_ms,
            memory_mb=self._memory_mb(),
            parked_tokens=min(self._parked, self._cached),
        )
        if self._parking is not None and self._read:
            read_ms = self._prefill_ms if self._read == len(self._prompt) else None
            self._parking.end(self._asked, self.tokens, self._stats, read_ms)


class _Clock:
    """Times one request from outside, for when the server does not live to tell."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._first: float | None = None

    def token(self) -> None:
        if self._first is None:
            self._first = time.monotonic()

    def times(self) -> tuple[float, float]:
        """Milliseconds before the first token, and after it."""
        now = time.monotonic()
        first = self._first or now
        return (first - self._begin) * 1000, (now - first) * 1000


def _settings(sampling: Sampling, context_length: int) -> dict[str, Any]:
    """Every setting llama-server has, said outright, so that none of its defaults leaks in."""
    return {
        "return_tokens": True,
        "cache_prompt": True,
        "samplers": _SAMPLERS,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": context_length if sampling.repeat_last_n == -1 else sampling.repeat_last_n,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "mirostat": sampling.mirostat,
        "mirostat_tau": sampling.mirostat_tau,
        "mirostat_eta": sampling.mirostat_eta,
        "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
        "ignore_eos": sampling.ignore_eos,
        "dynatemp_range": 0.0,
        "top_n_sigma": -1.0,
        "xtc_probability": 0.0,
        "dry_multiplier": 0.0,
        "adaptive_target": -1.0,
        "min_keep": 0,
        "n_probs": 0 if sampling.logprobs is None else max(1, sampling.logprobs),
        "post_sampling_probs": False,
        "n_keep": 0,
        "n_indent": 0,
        "n_cache_reuse": 0,
        "stop": [],
    }
