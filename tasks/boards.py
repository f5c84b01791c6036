"""The boards of the service, each with what it is, what it has, and how fast that has lately been."""

from __future__ import annotations

import time
from typing import Any, cast

import redis
import redis.asyncio

from tasks import keys
from tasks.card import Card
from tasks.connection import text, unavailable_as_refusal
from tasks.errors import BoardLives, BoardUnknown
from tasks.presence import Presence
from tasks.residence import worker_on
from tasks.roster import Snapshot, read_roster_async


class BoardBook:
    """Boards as administrators tell them what to do. Its methods raise `BoardUnknown` and `QueueUnavailable`."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def drain(self, board: str) -> None:
        """Have a living board hand over what it is at, and serve nothing until `resume`, also when it is started anew."""
        with unavailable_as_refusal():
            await self._make_sure_of(board)
            await self._client.hset(keys.DRAINED, board, str(int(time.time())))

    async def resume(self, board: str) -> None:
        """Let it serve again; one that is away, from when it comes back."""
        with unavailable_as_refusal():
            if not await self._client.hdel(keys.DRAINED, board):
                await self._make_sure_of(board)

    async def forget(self, board: str) -> None:
        """Know nothing more of one that has gone for good: neither its models, nor that it was drained. Raises `BoardLives`."""
        with unavailable_as_refusal():
            if board in await self._living():
                raise BoardLives(board)
            cards = cast("list[bytes]", await self._client.hkeys(keys.CARDS))
            its = [card for card in cards if text(card).partition("/")[2] == board]
            known = sum(
                [await self._client.hdel(keys.CARDS, *its) if its else 0, await self._client.hdel(keys.DRAINED, board)]
            )
            if not known:
                raise BoardUnknown(board, sorted({text(card).partition("/")[2] for card in cards}))

    async def _living(self) -> list[str]:
        return sorted(breath.board for breath in (await read_roster_async(self._client)).breaths)

    async def _make_sure_of(self, board: str) -> None:
        living = await self._living()
        if board not in living:
            raise BoardUnknown(board, living)


def overview(snapshot: Snapshot) -> list[dict[str, Any]]:
    """What is shown of each living board, by name. None is what its kernel, or a board of an older version, does not tell."""
    return [_board(breath, snapshot) for breath in sorted(snapshot.breaths, key=lambda breath: breath.board)]


def _board(breath: Presence, snapshot: Snapshot) -> dict[str, Any]:
    machine = breath.machine
    cards = sorted((card for card in snapshot.cards if card.board == breath.board), key=lambda card: card.id)
    return {
        "object": "board",
        "id": breath.board,
        "version": breath.version or None,
        "drained": breath.drained,
        "soc": machine and machine.soc,
        "machine": machine and machine.name,
        "driver": machine and machine.driver,
        "npu_load": machine and machine.npu_load,
        "npu_clock": machine and {"hertz": machine.npu_hertz, "highest": machine.npu_highest},
        "temperature": machine and machine.temperature,
        "temperature_limit": machine and machine.limit,
        "hot": machine and machine.hot,
        "throttled": machine and machine.throttled,
        "memory": machine
        and {"total": machine.memory, "available": machine.memory_available, "swapped": machine.swapped},
        "runtime": breath.runtime
        and {
            "version": breath.runtime.version or None,
            "installed": breath.runtime.installed,
            "unusable": breath.runtime.unusable,
        },
        "models": [_model(card, snapshot) for card in cards],
        "refused": breath.refused,
    }


def _model(card: Card, snapshot: Snapshot) -> dict[str, Any]:
    tested, worker = card.self_test, worker_on(snapshot, card.id, card.board)
    prefill, decode = (worker.prefill_tps, worker.decode_tps) if worker is not None else (None, None)
    return {
        "id": card.id,
        "state": worker.state if worker is not None else "unloaded",
        "engine": card.engine,
        "engine_version": card.engine_version or None,
        "quantization": card.quantization or None,
        "prefill_tps": prefill if prefill is not None or tested is None else tested.prefill_tps,
        "parked_bytes": sum(its.parked for its in snapshot.workers if (its.model, its.board) == (card.id, card.board)),
        "decode_tps": decode if decode is not None or tested is None else tested.decode_tps,
    }
