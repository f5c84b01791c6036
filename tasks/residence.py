"""Where models are: which boards could load each, and where each is loaded."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tasks.card import Card
from tasks.presence import Presence, Resident, unusable
from tasks.roster import ModelStatus, Snapshot

LOADED = ("loaded", "busy")
"""The states of a worker that has its model in memory."""
_RANKS = {"loading": 1, "loaded": 2, "busy": 3}


def available(snapshot: Snapshot) -> list[dict[str, Any]]:
    """What is shown of each model that a board has, by id: where it is, and where it could be, or why its files cannot be
    used."""
    found = {status.card.id: _available(status, snapshot) for status in snapshot.models}
    for breath in snapshot.breaths:
        for name, names, why in unusable(breath):
            model = found.setdefault(name, _unusable(name, names))
            if breath.board not in (place["board"] for place in model["boards"]):
                model["boards"].append(_place_unusable(breath.board, why))
                model["boards"].sort(key=lambda place: str(place["board"]))
    return [found[name] for name in sorted(found)]


def _unusable(name: str, names: Sequence[str]) -> dict[str, Any]:
    return {
        "object": "model",
        "id": name,
        "names": list(names),
        "context_length": None,
        "quantization": None,
        "size_bytes": None,
        "loaded": False,
        "boards": [],
    }


def _place_unusable(board: str, why: str) -> dict[str, Any]:
    unknown = dict.fromkeys(("context_length", "quantization", "size_bytes", "memory_bytes"))
    return {"board": board, "state": "unusable", **unknown, "fits": False, "beside": False, "why": why}


def _available(status: ModelStatus, snapshot: Snapshot) -> dict[str, Any]:
    cards = sorted((card for card in snapshot.cards if card.id == status.card.id), key=lambda card: card.board)
    boards = {breath.board: breath for breath in snapshot.breaths}
    return {
        "object": "model",
        "id": status.card.id,
        "names": list(status.card.names),
        "context_length": status.card.context_length,
        "quantization": status.card.quantization or None,
        "size_bytes": status.card.size_bytes,
        "loaded": status.loaded,
        "boards": [_place(card, boards.get(card.board), state_on(snapshot, card.id, card.board)) for card in cards],
    }


def _place(card: Card, board: Presence | None, state: str | None) -> dict[str, Any]:
    fits, why = _fits(card, board)
    beside = fits and board is not None and (state in LOADED or card.memory_bytes <= board.room)
    if fits and not beside and board is not None:
        why = _pinned_out(card, board)
    return {
        "board": card.board,
        "state": "away" if board is None else state or "unloaded",
        "context_length": card.context_length,
        "quantization": card.quantization or None,
        "size_bytes": card.size_bytes,
        "memory_bytes": card.memory_bytes or None,
        "fits": fits,
        "beside": beside,
        "why": why,
    }


def _pinned_out(card: Card, board: Presence) -> str | None:
    """Which pinned models keep this one out, where the others could make no room for it."""
    pinned = sorted(name for name, resident in board.residents.items() if resident.pinned and name != card.id)
    others = sum(resident.memory for resident in board.residents.values() if not resident.pinned)
    if not pinned or card.memory_bytes <= board.room + others:
        return None
    return f"What is pinned there leaves no room: {', '.join(pinned)}."


def why_unserved(status: ModelStatus, snapshot: Snapshot) -> str:
    """Why no board serves a model that none has for jobs now, as a sentence without its beginning."""
    having = {card.board for card in snapshot.cards if card.id == status.card.id}
    drained = sorted(breath.board for breath in snapshot.breaths if breath.drained and breath.board in having)
    if drained:
        return f"the board '{drained[0]}' that has it is drained, and serves nothing until it is resumed."
    return f"the board '{status.card.board}' that has it is not there."


def _fits(card: Card, board: Presence | None) -> tuple[bool | None, str | None]:
    """Whether the board could load the model, and why not; None where it does not tell."""
    if board is None:
        return False, f"The board '{card.board}' is not there."
    if board.drained:
        return False, f"The board '{card.board}' is drained and serves nothing."
    if not (card.memory_bytes and board.budget):
        return None, f"The board '{card.board}' runs a version that does not tell."
    if card.memory_bytes > board.budget:
        return False, (
            f"It needs about {card.memory_bytes >> 20} MiB with its context, and models may have "
            f"{board.budget >> 20} MiB of this board."
        )
    return True, None


def loaded(snapshot: Snapshot, model: str | None = None, board: str | None = None) -> list[dict[str, Any]]:
    """What is shown of each model that has a worker on a board, by board and id; of that model and board alone where one is
    named. Moments are in Unix seconds by the clock of this process."""
    return [
        _loaded(name, where, snapshot)
        for where in sorted(snapshot.breaths, key=lambda breath: breath.board)
        for name in _residents(where, snapshot)
        if model in (None, name) and board in (None, where.board)
    ]


def _residents(board: Presence, snapshot: Snapshot) -> Iterator[str]:
    """Also what the board has not told of yet, whose workers breathe already."""
    yield from sorted(
        {
            *board.residents,
            *(worker.model for worker in snapshot.workers if worker.model and worker.board == board.board),
        }
    )


def _loaded(model: str, board: Presence, snapshot: Snapshot) -> dict[str, Any]:
    worker = worker_on(snapshot, model, board.board)
    resident = board.residents.get(model, Resident())
    state = state_on(snapshot, model, board.board)
    now = time.time() - (time.monotonic() - snapshot.at)
    told = now - snapshot.ages.get(board.name, 0.0)
    since = None
    if worker is not None and worker.loaded_for is not None:
        since = round(now - snapshot.ages.get(worker.name, 0.0) - worker.loaded_for)
    resting = state == "loaded"
    stays = board.stays.get(model)
    return {
        "object": "model.loaded",
        "id": model,
        "board": board.board,
        "state": state,
        "since": since,
        "memory_bytes": resident.memory or None,
        "busy": state == "busy",
        "idle_seconds": round(resident.idle, 1) if resting and resident.idle is not None else None,
        "until": round(told + stays) if resting and stays is not None else None,
        "pinned": resident.pinned,
        "problem": (worker.problem or None) if worker is not None else None,
    }


def worker_on(snapshot: Snapshot, model: str, board: str) -> Presence | None:
    """The living worker of a model on a board; of several the one that `by_board` takes."""
    return by_board(each for each in snapshot.workers if each.model == model).get(board)


def by_board(workers: Iterable[Presence]) -> dict[str, Presence]:
    """Of a model's workers one for each board. Where it has several, that is one that is at work, else one that has the model
    loaded, else one that loads it."""
    rising = sorted(workers, key=lambda worker: (_RANKS.get(worker.state, 0), worker.name))
    return {worker.board: worker for worker in rising}


def state_on(snapshot: Snapshot, model: str, board: str) -> str | None:
    """How a model is on a board: `starting` (its worker is), `idle` (it is not in memory), `loading`, `failed` (it could not be
    loaded), `loaded`, `busy`; None where it has no worker."""
    worker = worker_on(snapshot, model, board)
    if worker is None:
        has = any(model in breath.residents for breath in snapshot.breaths if breath.board == board)
        return "starting" if has else None
    return "failed" if worker.state == "idle" and worker.problem else worker.state
