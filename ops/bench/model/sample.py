"""One measured answer."""

from __future__ import annotations

import itertools
import secrets
import string
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ops.bench.model.checks import Check, Verdict, verdicts
from ops.chat.answer import Answer
from ops.service import Service, ServiceError


class Place(NamedTuple):
    """Which of all answers one is; fields of `Sample`."""

    set: str
    prompt: str
    run: int
    concurrency: int = 1


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked, what came, and what it took. Times in milliseconds; null is what nobody told."""

    set: str
    """`performance`, `reference`, `quality`, `long_context` or `multi_turn`."""
    prompt: str
    run: int
    """From 1."""
    concurrency: int = 1
    """How many were asked at the same time."""
    error: str | None = None
    """Why there is no answer, or none that counts."""
    job: str | None = None
    board: str | None = None
    first_token_ms: float | None = None
    """From the request's first byte to the first text or thought, as the client saw it."""
    total_ms: float | None = None
    """From the request's first byte to the end, as the client saw it."""
    client_tokens_per_s: float | None = None
    """Tokens after the first, by the time from the first text to the last, as the client saw it."""
    prefill_tokens_per_s: float | None = None
    """Tokens read, by the time that the runtime says it took."""
    decode_tokens_per_s: float | None = None
    """Tokens said, likewise."""
    prefill_ms: float | None = None
    """By the runtime's own clock, and so the next."""
    decode_ms: float | None = None
    runtime_first_token_ms: float | None = None
    """Likewise, for reading the prompt and saying one token, which takes as long as each did on the mean."""
    queued_ms: float | None = None
    load_ms: float | None = None
    memory_mb: float | None = None
    """What the runtime held at the most."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Of the prompt, which were not read again."""
    completion_tokens: int | None = None
    finish_reason: str | None = None
    messages: list[dict[str, str]]
    answer: str = ""
    checks: list[Verdict] = []


class Asker:
    """Asks one model, and measures its answers. From any thread."""

    def __init__(self, service: Service, model: str, refused: Sequence[str] = ()) -> None:
        """`refused` are fields of a request that the model cannot honour, and is not sent."""
        self._service = service
        self._model = model
        self._refused = frozenset(refused)
        self._letters = itertools.cycle(string.ascii_lowercase)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the answers that are being made."""
        self._stopped.set()

    def marked(self, text: str) -> str:
        """The text behind a word that begins otherwise than the last prompt's, so that nothing of it is in a cache."""
        return f"{next(self._letters)}{secrets.token_hex(3)}: {text}"

    def count(self, messages: list[dict[str, str]]) -> int:
        """The tokens of a conversation as the model reads it. Raises `ServiceError`."""
        return self._service.count(self._chat(messages))

    def ask(
        self,
        place: Place,
        messages: list[dict[str, str]],
        max_tokens: int,
        *,
        greedy: bool = False,
        checks: Sequence[Check] = (),
    ) -> Sample:
        """Ask for an answer of at most so many tokens: the likeliest one where it is to be `greedy`.

        Otherwise nothing is said of sampling: some engines can only do it the fast way where nobody asks for another.
        """
        asked = self._chat(messages, max_tokens=max_tokens, **({"temperature": 0} if greedy else {}))
        answer = Answer(self._service, asked, lambda _: None)
        seen: list[float] = []
        error: str | None = None
        try:
            for _ in answer:
                seen.append(time.perf_counter())
                if self._stopped.is_set():
                    answer.cancel()
                    error = "the benchmark was stopped"
                    break
        except ServiceError as failed:
            error = str(failed)
        except BaseException:
            answer.cancel()  # Ctrl-C; the service would go on for a while, since connections may come back
            raise
        ended = time.perf_counter()
        if error is None and answer.broke:
            error = f"its connection broke meanwhile: {answer.broke}"
        if error is None and answer.timings is None:
            error = "the service told no timings; is it another one?"
        if error is not None:
            return Sample(messages=messages, error=error, job=answer.job, answer=answer.content, **place._asdict())
        return self._sample(place, answer, messages, seen, ended, list(checks))

    def _chat(self, messages: list[dict[str, str]], **options: float) -> dict[str, Any]:
        given = {name: value for name, value in options.items() if name not in self._refused}
        # Answers are compared between models, and some would spend all of their tokens on thoughts.
        return {"model": self._model, "messages": messages, "think": False, **given}

    def _sample(
        self,
        place: Place,
        answer: Answer,
        messages: list[dict[str, str]],
        seen: Sequence[float],
        ended: float,
        checks: list[Check],
    ) -> Sample:
        times = answer.timings or {}
        assert answer.sent is not None  # there is an answer
        begun = answer.sent
        said = int(times["predicted_n"])
        lasted = seen[-1] - seen[0] if seen else 0.0
        return Sample(
            **place._asdict(),
            job=answer.job,
            board=self._board(answer.job),
            first_token_ms=_ms(seen[0] - begun) if seen else None,
            total_ms=_ms(ended - begun),
            client_tokens_per_s=round((said - 1) / lasted, 3) if lasted > 0 and said > 1 else None,
            prefill_tokens_per_s=times["prompt_per_second"] or None,
            decode_tokens_per_s=times["predicted_per_second"] or None,
            prefill_ms=times["prompt_ms"],
            decode_ms=times["predicted_ms"],
            runtime_first_token_ms=round(times["prompt_ms"] + times["predicted_ms"] / said, 3) if said else None,
            queued_ms=times["queued_ms"],
            load_ms=times["load_ms"],
            memory_mb=times.get("memory_mb"),
            prompt_tokens=times["prompt_n"] + times["cache_n"],
            cached_tokens=times["cache_n"],
            completion_tokens=said,
            finish_reason=answer.finish_reason,
            messages=messages,
            answer=answer.content,
            checks=verdicts(checks, answer.content, answer.finish_reason),
        )

    def _board(self, job: str | None) -> str | None:
        try:
            found = self._service.job(job)["board"] if job is not None else None
        except ServiceError:
            return None  # the key may not look at jobs
        return str(found) if found is not None else None


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def passed_checks(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Of each prompt with checks, the share of runs that passed each of them."""
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        for verdict in sample.checks:
            found[f"{sample.set} {sample.prompt}"][verdict.what].append(verdict.passed)
    return {name: {what: sum(each) / len(each) for what, each in checks.items()} for name, checks in found.items()}
