"""Which models exist, what they can do, and who serves them now."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any, cast

import msgspec
import redis
import redis.asyncio

from tasks import keys
from tasks.card import CARD_VERSION, Card
from tasks.connection import text, unavailable_as_refusal
from tasks.errors import QueueUnavailable, UnknownModel
from tasks.lua import Script
from tasks.presence import ALIVE, Presence, read_breath
from tasks.readings import Readings
from tasks.standing import Gate, read_gate
from tasks.version import differences

log = logging.getLogger("rockchipllama.roster")

BEHIND = "@background"
"""Ends a model's name where its jobs are to go behind interactive ones; for clients that can choose a model and nothing else."""

_ROSTER = Script(
    """
-- KEYS cards presence gates drained
-- -> {now, cards, presence, waiting, gates, drained}, the four in the middle as field value ...
local cards = redis.call('HGETALL', KEYS[1])
local counted, counts = {}, {}
for i = 1, #cards, 2 do
  local model = string.match(cards[i], '^[^/]*')
  if not counted[model] then
    counted[model] = true
    counts[#counts + 1] = model
    counts[#counts + 1] = redis.call('ZCARD', 'rl:waiting:' .. model)
  end
end
return {now(), cards, redis.call('HGETALL', KEYS[2]), counts, redis.call('HGETALL', KEYS[3]),
  redis.call('HKEYS', KEYS[4])}
""",
    flags="no-writes",
)
_KEYS = [keys.CARDS, keys.PRESENCE, keys.GATES, keys.DRAINED]


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the service sees it now."""

    card: Card
    served: bool
    """A worker of it is alive, on a board that is not drained."""
    loaded: bool
    loading: bool
    waiting: int
    gate: Gate = Gate.OPEN
    boards: tuple[str, ...] = ()
    """Living boards that have it, and serve."""
    stays: float | None = None
    """For how many seconds it will stay loaded if nobody asks for it; None is for ever, or that it is not loaded."""
    no_room: str = ""
    """Where it fits once others can be unloaded: what a board says of that."""
    adapter: str | None = None
    """The one of its adapters that was asked for with it."""
    background: bool = False
    """It was asked for with `BEHIND`: its jobs go behind interactive ones."""

    @property
    def name(self) -> str:
        """Its id, with the adapter's name behind it."""
        return self.card.id if self.adapter is None else f"{self.card.id}:{self.adapter}"

    @property
    def capabilities(self) -> list[str]:
        """What it may be asked for, as clients call it: `completion`, `chat`, `tools`, `thinking`, `embedding`, `rerank`."""
        card = self.card
        can = {"completion": card.completion, "chat": card.chat, "tools": card.tools, "thinking": card.thinking}
        text = [name for name in can if can[name]]
        others = [each for each in card.abilities if each != "text"] if self.adapter is None else []
        return (text if "text" in card.abilities else []) + others

    def adapted(self) -> tuple[ModelStatus, ...]:
        """The model with each of its adapters."""
        return tuple(msgspec.structs.replace(self, adapter=adapter) for adapter in self.card.adapters)


class Snapshot(msgspec.Struct, frozen=True):
    """The whole roster at one moment; `at` by this process' monotonic clock."""

    at: float
    models: tuple[ModelStatus, ...]
    workers: tuple[Presence, ...]
    boards: tuple[str, ...]
    """Living ones that serve."""
    refusals: tuple[Presence, ...] = ()
    """The breaths of boards that have files they cannot use."""
    problems: tuple[str, ...] = ()
    """A sentence for each card and breath that was skipped, and for each board of another release than this."""
    breaths: tuple[Presence, ...] = ()
    """Those of the boards."""
    cards: tuple[Card, ...] = ()
    """Of every model on every board, those that are away as well."""
    ages: dict[str, float] = {}
    """Seconds since each of those who are alive breathed, by their names."""

    def refused(self, name: str) -> tuple[str, str] | None:
        """A living board that has files of that name, and why it cannot use them."""
        return next(((its.board, why) for its in self.refusals if (why := its.refused.get(name.lower()))), None)


def announce(client: redis.Redis, card: Card) -> None:
    """Make a model known, or change its card. Written only when it differs: it goes to the append-only file."""
    field = f"{card.id}/{card.board}"
    encoded = msgspec.json.encode(card)
    if client.hget(keys.CARDS, field) != encoded:
        client.hset(keys.CARDS, field, encoded)


def withdraw(client: redis.Redis, board: str, models: set[str]) -> None:
    """Forget the cards of `board` for models other than `models`: it does not have them any more."""
    for raw in cast("list[bytes]", client.hkeys(keys.CARDS)):
        model, _, owner = raw.decode().partition("/")
        if owner == board and model not in models:
            client.hdel(keys.CARDS, raw)


_card_decoder = msgspec.json.Decoder(Card)


def read_roster(client: redis.Redis) -> Snapshot:
    """The roster now. A card or breath that cannot be read is skipped, and named."""
    return _snapshot(_ROSTER.run(client, _KEYS))


async def read_roster_async(client: redis.asyncio.Redis) -> Snapshot:
    """The same on an event loop."""
    return _snapshot(await _ROSTER.arun(client, _KEYS))


def _pairs(flat: list[Any]) -> list[tuple[str, Any]]:
    return [(text(flat[index]), flat[index + 1]) for index in range(0, len(flat), 2)]


def _snapshot(reply: object) -> Snapshot:
    now, cards, told, waiting, kept, asked = cast("list[Any]", reply)
    alive: list[Presence] = []
    ages: dict[str, float] = {}
    problems: list[str] = []
    for name, raw in _pairs(told):
        if name.startswith("api:"):
            continue  # it serves no model; `tasks.readers` listens to it
        seen = int(bytes(raw).partition(b":")[0])
        if now - seen <= ALIVE * 1000:
            try:
                alive.append(read_breath(bytes(raw)))
                ages[name] = (now - seen) / 1000
            except msgspec.DecodeError as error:
                problems.append(f"the presence of {name} cannot be read: {error}")
    # Who is to be drained takes nothing new, also while it has not obeyed yet.
    drained = set(map(text, asked))
    breaths = tuple(
        msgspec.structs.replace(breath, drained=breath.drained or breath.board in drained)
        for breath in alive
        if breath.model is None
    )
    drained |= {breath.board for breath in breaths if breath.drained}
    boards = tuple(sorted(breath.board for breath in breaths if not breath.drained))
    others = differences({breath.board: breath.version for breath in breaths})
    problems += others.values()
    counts = {model: int(count) for model, count in _pairs(waiting)}
    gates = {model: read_gate(gate) for model, gate in _pairs(kept)}
    found: dict[str, list[Card]] = {}
    for field, raw in _pairs(cards):
        try:
            card = _card_decoder.decode(raw)
        except msgspec.DecodeError as error:
            problems.append(f"the card {field} cannot be read: {error}")
            continue
        if card.version > CARD_VERSION:
            problems.append(
                f"the card {field} was written by a newer version of rockchipllama (format {card.version}, this one "
                f"reads up to {CARD_VERSION}), so its model is not offered here; upgrade this machine"
            )
            continue
        found.setdefault(card.id, []).append(card)
    serving = [breath for breath in alive if breath.board not in drained]
    models = []
    for model, its_cards in sorted(found.items()):
        states = [breath.state for breath in serving if breath.model == model]
        here = tuple(card.board for card in its_cards if card.board in boards)
        card = next((card for card in its_cards if card.board in here), its_cards[0])
        notes = (*card.notes, *(others[board] for board in here if board in others))
        models.append(
            ModelStatus(
                card=msgspec.structs.replace(card, notes=notes),
                served=bool(states),
                loaded=any(state in ("loaded", "busy") for state in states),
                loading="loading" in states,
                waiting=counts.get(model, 0),
                gate=gates.get(model, Gate.OPEN),
                boards=here,
                stays=_stays(model, serving, ages),
                no_room=next((its.no_room[model] for its in breaths if model in its.no_room), ""),
            )
        )
    workers = tuple(breath for breath in alive if breath.model is not None)
    refusals = tuple(breath for breath in alive if breath.refused)
    every = tuple(chain.from_iterable(found.values()))
    return Snapshot(time.monotonic(), tuple(models), workers, boards, refusals, tuple(problems), breaths, every, ages)


def _stays(model: str, serving: list[Presence], ages: dict[str, float]) -> float | None:
    """Of the boards that have it loaded, the one where it stays longest counts."""
    loaded = {breath.board for breath in serving if breath.model == model and breath.state in ("loaded", "busy")}
    boards = [breath for breath in serving if breath.model is None and breath.board in loaded]
    if not boards or any(model not in breath.stays for breath in boards):
        return None
    return max(0.0, *(breath.stays[model] - ages[breath.name] for breath in boards))


class Roster:
    """The roster as an API process knows it: refreshed each second, never a round trip on a request's way."""

    def __init__(self, client: redis.asyncio.Redis, aliases: dict[str, str], default_model: str | None) -> None:
        self._client = client
        self._aliases = {name.lower(): target for name, target in aliases.items()}
        self._default = default_model
        self._snapshot = Snapshot(0.0, (), (), ())
        self._readings = Readings()
        self._names: dict[str, ModelStatus] = {}
        self._clashes: set[str] = set()
        self._dangling: set[str] = set()
        """Aliases that were told to mean nothing."""
        self._problems: tuple[str, ...] = ()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Roster:
        try:
            await self.refresh()
        except QueueUnavailable as error:
            log.warning("the roster could not be read, and is empty for now: %s", error.detail)
        self._task = asyncio.create_task(self._keep_fresh(), name="roster")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await self.refresh()
            except QueueUnavailable as error:
                log.debug("the roster is %.0f s old: %s", time.monotonic() - self._snapshot.at, error.detail)
            except Exception:
                log.exception("the roster could not be read")  # the old one serves until the next try

    async def refresh(self) -> None:
        """Read it anew. Raises `QueueUnavailable`."""
        reading = self._readings.begin()
        with unavailable_as_refusal():
            snapshot = await read_roster_async(self._client)
        if not self._readings.keeps(reading):
            return
        self._snapshot = snapshot
        for problem in self._snapshot.problems:
            if problem not in self._problems:
                log.warning("%s", problem)
        self._problems = self._snapshot.problems
        self._names = self._index(self._snapshot.models)

    def models(self) -> list[ModelStatus]:
        """Every model that is known, by id."""
        return list(self._snapshot.models)

    def workers(self, model: str) -> list[Presence]:
        """The workers of a model that are alive, by its id."""
        return [breath for breath in self._snapshot.workers if breath.model == model]

    @property
    def snapshot(self) -> Snapshot:
        """The newest reading."""
        return self._snapshot

    def resolve(self, name: str | None) -> ModelStatus:
        """The model a client means, from memory; none and empty mean the default one. Raises `UnknownModel`."""
        found = self._lookup(name)
        if found is None:
            wanted = name or self._default or ""
            near = difflib.get_close_matches(wanted.lower()[:100], self._names, n=1, cutoff=0.5)
            known = [status.card.id for status in self._snapshot.models]
            raise UnknownModel(wanted, near[0] if near else None, self._snapshot.refused(wanted), known)
        return found

    async def find(self, name: str | None) -> ModelStatus:
        """The same, but looks again before it says no. Raises `UnknownModel`, and `QueueUnavailable` while Redis is away."""
        found = self._lookup(name)
        if found is not None and found.served:
            return found
        await self.refresh()
        return self.resolve(name)

    def _lookup(self, name: str | None) -> ModelStatus | None:
        base, behind, tag = (name or "").lower().rpartition(BEHIND)
        if not behind or tag not in ("", ":latest"):
            return self._named(name)
        found = self._named(base)
        return msgspec.structs.replace(found, background=True) if found is not None else None

    def _named(self, name: str | None) -> ModelStatus | None:
        if not name:
            # A default that is not there is told by the board; the next best model answers, as it is the one that is loaded.
            if self._default is not None and (found := self._named(self._default)) is not None:
                return found
            there = {status.card.id for status in self._snapshot.models}
            return min(
                self._snapshot.models,
                # Who names none means no model that somebody has made of another, with a role to play.
                key=lambda status: (
                    not status.card.chats,
                    status.card.base in there,
                    not status.served,
                    status.card.engine == "echo",
                ),
                default=None,
            )
        lowered = name.lower()
        return self._names.get(lowered) or self._names.get(lowered.removesuffix(":latest"))

    def _index(self, models: tuple[ModelStatus, ...]) -> dict[str, ModelStatus]:
        """Names to models: exact ids win over aliases, those over further names, those over names with an adapter behind
        them; the first of two claimants keeps a name."""
        names = {status.card.id: status for status in models}
        for alias, target in self._aliases.items():
            status = _meant(models, target.lower())
            if status is not None:
                names.setdefault(alias, status)
            elif self._snapshot.boards and alias not in self._dangling:
                self._dangling.add(alias)
                log.warning("the alias '%s' means '%s', and no board has a model of that name", alias, target)
        for status in models:
            for further in status.card.names:
                self._claim(names, further, status)
        for name, status in tuple(names.items()):
            if status.adapter is None:
                for adapted in status.adapted():
                    self._claim(names, f"{name}:{adapted.adapter}", adapted)
        return names

    def _claim(self, names: dict[str, ModelStatus], name: str, status: ModelStatus) -> None:
        holder = names.setdefault(name.lower(), status)
        if holder.name != status.name and name not in self._clashes:
            self._clashes.add(name)
            log.warning(
                "the name '%s' is claimed by %s and %s; it means %s", name, holder.name, status.name, holder.name
            )


def _meant(models: tuple[ModelStatus, ...], name: str) -> ModelStatus | None:
    """What an alias stands for: an id or a further name, also with an adapter behind it."""

    def called(wanted: str) -> Iterator[ModelStatus]:
        yield from (status for status in models if status.card.id == wanted)
        yield from (status for status in models if wanted in map(str.lower, status.card.names))

    base, _, adapter = name.rpartition(":")
    adapted = (its for status in called(base) for its in status.adapted() if its.adapter == adapter)
    return next(chain(called(name), adapted), None)
