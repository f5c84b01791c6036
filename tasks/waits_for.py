"""What a job waits for that no worker has taken yet, as far as the roster knows."""

from __future__ import annotations

from enum import StrEnum

from tasks.roster import ModelStatus
from tasks.standing import Gate


class WaitsFor(StrEnum):
    """In the words of the API."""

    TURN = "turn"
    """Others are before it, or are being answered."""
    LOAD = "load"
    """Its model is not loaded yet."""
    ROOM = "room"
    """Its model fits once others can be unloaded."""
    BOARD = "board"
    """No board that has its model is there, and is not drained."""
    QUEUE = "queue"
    """Its queue is paused."""


UNTOLD = frozenset({WaitsFor.BOARD, WaitsFor.QUEUE})
"""What nobody can say how long it takes."""


def waits_for(status: ModelStatus) -> WaitsFor:
    """What the jobs wait for that wait for this model."""
    if status.gate is Gate.PAUSED:
        return WaitsFor.QUEUE
    if status.loaded:
        return WaitsFor.TURN
    if status.served:
        return WaitsFor.LOAD
    if not status.boards:
        return WaitsFor.BOARD
    return WaitsFor.ROOM if status.no_room else WaitsFor.LOAD


def story(status: ModelStatus) -> str:
    """The same as a sentence without its end; empty where the job waits for nothing but its turn."""
    match waits_for(status):
        case WaitsFor.TURN:
            return ""
        case WaitsFor.LOAD:
            return "its model is being loaded"
        case WaitsFor.ROOM:
            return "its model waits for room"
        case WaitsFor.BOARD:
            return "no board that has its model is there, or the one that is was drained"
        case WaitsFor.QUEUE:
            return "its queue is paused"
