"""Sends the requests of a trace to a running service, as their users would, and notes what became of each."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from ops.bench.served import Served
from ops.bench.trace import Ask, TraceError, before_each
from tasks.jobs import Lane

WORDS = """
    the a and of to in is it on for with as by this that from at one two three question word number name time day night
    year light water stone tree river bird house city garden window music color blue green red white black small large
""".split()  # noqa: SIM905 - read by people
"""What prompts are made of: words that are one token each to nearly every tokenizer."""
PROBE = 256
"""Words of the question by which the length of prompts is learnt."""
PATIENCE = httpx.Timeout(30.0, read=None, pool=None)
"""An answer may wait in the queue for as long as the service lets it, and a question here for a connection."""
BESIDE = 64
"""Files that are open besides."""


class LoadError(Exception):
    """Raised when the service cannot be measured; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """How long a prompt becomes."""

    per_word: float
    """Tokens."""
    alone: float
    """Tokens around a turn with nothing before it: also what a template says where there is no system message."""
    turn: float
    """Around any other turn."""
    system: float
    """Around a system message."""

    def words(self, tokens: int, around: float) -> int:
        """How many make a message of so many tokens; one at least."""
        return max(1, round((tokens - around) / self.per_word))


class Load:
    """One measurement. `told` hears after each request how many have ended."""

    def __init__(
        self,
        url: str,
        key: str | None,
        model: str | None,
        asks: Sequence[Ask],
        *,
        exact: bool = False,
        told: Callable[[int], None] = lambda _: None,
    ) -> None:
        """With `exact` a model goes on past the end of its answer, until that is as long as the trace says (`ignore_eos`), which
        some engines do by a slower way. Raises `TraceError` for a trace that this cannot send."""
        if any(ask.lane is Lane.BATCH for ask in asks):
            raise TraceError("Items of batches cannot be sent one by one: measure them by `batch submit --wait`.")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.at_once = connections(len(asks))
        """Requests that can be open at the same time; further ones wait for one of them to end."""
        limits = httpx.Limits(max_connections=self.at_once, max_keepalive_connections=self.at_once)
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE, limits=limits)
        self._model = model
        self._asks = asks
        self._told = told
        self._talks: dict[str, list[dict[str, str]]] = {}
        self._start = 0.0
        self.ended: list[Served] = []
        """What became of those that have ended so far."""
        self._exact = exact

    async def run(self) -> list[Served]:
        """Send them all. Raises `LoadError` when the service cannot be asked at all."""
        async with self._http:
            try:
                tokenizer = await self._learn()
            except httpx.HTTPError as error:
                raise LoadError(f"The service does not answer ({error or type(error).__name__}).") from error
            over = [asyncio.Event() for _ in self._asks]
            before = before_each(self._asks)
            self._start = time.perf_counter()

            async def one(place: int) -> Served:
                ask, earlier = self._asks[place], before[place]
                if earlier is not None:
                    await over[earlier].wait()
                await asyncio.sleep(max(0.0, ask.at - self._now()))
                served = await self._send(place, ask, tokenizer)
                over[place].set()
                self.ended.append(served)
                self._told(len(self.ended))
                return served

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(place)) for place in range(len(self._asks))]
            return [task.result() for task in tasks]

    def _now(self) -> float:
        return time.perf_counter() - self._start

    async def _learn(self) -> Tokenizer:
        """Ask some times for one token, which loads the model too, and see how long the prompts were."""
        one = _turn(_text("probe", 1))
        short, long = await self._count(one), await self._count(_turn(_text("probe", 1 + PROBE)))
        per_word = (long - short) / PROBE
        if per_word <= 0:
            raise LoadError(f"A longer question has no more tokens: {short} and {long}. Nothing can be measured.")
        turn = system = 0.0
        prefixes = any(ask.prefix is not None for ask in self._asks)
        if prefixes or any(ask.conversation is not None for ask in self._asks):
            turn = await self._count(one, one | {"role": "assistant"}, one) - short - 2 * per_word
        if prefixes:
            system = await self._count(one | {"role": "system"}, one) - turn - 2 * per_word
        return Tokenizer(per_word, short - per_word, turn, system)

    async def _count(self, *messages: dict[str, str]) -> int:
        """The tokens of these as a prompt."""
        body = self._body({"messages": messages, "max_tokens": 1, "stream": False})
        reply = await self._http.post("/v1/chat/completions", json=body)
        if reply.status_code != 200:
            mend = " The commands take it from ROCKCHIPLLAMA_SERVICE_KEY." if reply.status_code == 401 else ""
            raise LoadError(f"The service refuses a question ({reply.status_code}): {_message(reply.content)}{mend}")
        return int(reply.json()["usage"]["prompt_tokens"])

    def _body(self, body: dict[str, Any]) -> dict[str, Any]:
        model = {"model": self._model} if self._model is not None else {}
        return {**model, "temperature": 0, **({"ignore_eos": True} if self._exact else {}), **body}

    async def _send(self, place: int, ask: Ask, tokenizer: Tokenizer) -> Served:
        talk = self._talks.setdefault(ask.conversation, []) if ask.conversation is not None else []
        if ask.prefix is not None and not talk:
            words = tokenizer.words(ask.prefix_tokens, tokenizer.system)
            talk.append({"role": "system", "content": _text(ask.prefix, words)})
        words = tokenizer.words(ask.prompt_tokens, tokenizer.turn if talk else tokenizer.alone)
        talk.append(_turn(_text(f"{ask.user} {place}", words)))
        body = self._body(
            {
                "messages": talk,
                "max_tokens": ask.answer_tokens,
                "user": ask.user,
                "stream": True,
                "stream_options": {"include_usage": True},
                "service_tier": "flex" if ask.lane is Lane.BACKGROUND else "default",
            }
        )
        answer = Answer(self._now())
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as reply:
                if reply.status_code != 200:
                    answer.refused = f"HTTP {reply.status_code} ({_message(await reply.aread())})"
                else:
                    async for line in reply.aiter_lines():
                        answer.read(line, self._now)
        except httpx.HTTPError as error:
            answer.refused = f"broke off ({type(error).__name__})"
        if answer.text:
            talk.append({"role": "assistant", "content": answer.text})
        else:
            talk.pop()  # what was not answered was not said: some templates take no two turns of a user one after the other
        return answer.served(ask, self._now())


def connections(wanted: int) -> int:
    """How many of these can be open at once. Each takes a file, so the limit of open files is raised as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted + BESIDE:
        soft = wanted + BESIDE if hard == unlimited else min(hard, wanted + BESIDE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == unlimited else min(wanted, max(1, soft - BESIDE))


def measure(
    url: str, key: str | None, model: str | None, asks: Sequence[Ask], *, exact: bool
) -> tuple[list[Served], bool]:
    """Send them all, with a bar for who watches; what became of each, and whether Ctrl-C stopped it, which leaves those that
    had ended. Raises `LoadError` and `TraceError`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(asks))
        load = Load(url, key, model, asks, exact=exact, told=lambda count: bar.update(task, completed=count))
        if load.at_once < len(asks):
            print(
                f"At most {load.at_once:,} of them can be open at once, for this user may open no more files (`ulimit -Hn`); "
                "others wait here until one ends, and that counts as the service's wait.",
                file=sys.stderr,
            )
        try:
            return asyncio.run(load.run()), False
        except KeyboardInterrupt:
            if not load.ended:
                raise
            return load.ended, True


@dataclass(slots=True)
class Answer:
    """One answer as it comes."""

    sent: float
    first: float | None = None
    last: float = 0.0
    longest_gap: float = 0.0
    text: str = ""
    pieces: int = 0
    usage: dict[str, Any] | None = None
    done: bool = False
    refused: str = ""

    def read(self, line: str, now: Callable[[], float]) -> None:
        """One line of the stream."""
        if line == "data: [DONE]":
            self.done = True
        if not line.startswith("data: {"):
            return
        chunk = json.loads(line[6:])
        if "error" in chunk:
            self.refused = f"failed ({chunk['error'].get('code') or chunk['error'].get('message')})"
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta", {})
            said = (delta.get("content") or "") + (delta.get("reasoning_content") or "")
            if said:
                at = now()
                if self.first is None:
                    self.first = at
                else:
                    self.longest_gap = max(self.longest_gap, at - self.last)
                self.last = at
                self.pieces += 1
                self.text += delta.get("content") or ""

    def served(self, ask: Ask, ended: float) -> Served:
        """What became of it."""
        usage = self.usage or {}
        details = usage.get("prompt_tokens_details") or {}
        return Served(
            ask=ask,
            sent=self.sent,
            first=self.first,
            ended=ended,
            tokens=usage.get("completion_tokens") or self.pieces,
            prompt_tokens=usage.get("prompt_tokens") or 0,
            cached_tokens=details.get("cached_tokens") or 0,
            longest_gap=self.longest_gap,
            refused=self.refused or ("" if self.done else "broke off"),
        )


def _turn(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _text(name: str, words: int) -> str:
    """The same for the same name, and from the first word on another for another."""
    chance = random.Random(name)
    return " ".join(chance.choice(WORDS) for _ in range(words))


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])[:200]
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")
