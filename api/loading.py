"""Models loaded and unloaded on boards, as administrators ask for it."""

from __future__ import annotations

import asyncio
import math

import msgspec

from api.errors import HttpProblem, Problem, of_error, of_failed
from api.needs import RosterView
from tasks.asking import Commander
from tasks.commands import AWAY, BUSY, SILENT, CommandCode, Keep, Load, Unload
from tasks.errors import BoardUnknown, CommandFailed, ModelDown
from tasks.events import Failed, FailureCode
from tasks.presence import Presence
from tasks.residence import LOADED, state_on, why_unserved, worker_on
from tasks.roster import ModelStatus

BEGIN_PATIENCE = 30.0
"""Seconds a board may take to say that it began to load a model, or cannot."""
LOAD_PATIENCE = 600.0
"""Seconds a load may take that somebody waits for."""
UNLOAD_PATIENCE = 60.0
"""Seconds a board may take to stop a worker, whose job in hand gets some to end."""
AGAIN = 0.1
"""Seconds between two looks how far a load is."""


class Loading:
    """Has boards do it."""

    def __init__(self, roster: RosterView, commander: Commander) -> None:
        self._roster = roster
        self._commander = commander

    async def load(self, model: str, board: str | None, keep: float | None, *, wait: bool) -> tuple[str, str]:
        """Have a board load the model, which then stays for `keep` seconds after its last job where that is said: `board`, else
        one that has it loaded, else the one with the most room. Returns its id and the board once that has begun, or with `wait`
        once it is loaded.

        Raises `UnknownModel`, `BoardUnknown`, `ModelDown`, `QueueUnavailable`, and `HttpProblem` where no board can.
        """
        status = await self._roster.find(model)
        await self._roster.refresh()  # a try that has just failed is none of this one
        name = status.card.id
        boards = [board] if board is not None else self._by_room(status)
        if board is not None:
            self._check(status, board)
        refusals: list[CommandFailed] = []
        for chosen in boards:
            before = worker_on(self._roster.snapshot, name, chosen)
            try:
                # Also where it is loaded: its worker may be on its way out.
                await self._commander.ask(chosen, Load(name, by_hand=True), BEGIN_PATIENCE)
                if keep is not None:
                    await self._commander.ask(chosen, Keep(name, keep), BEGIN_PATIENCE)
            except CommandFailed as error:
                if error.code == SILENT:
                    raise _problem(error, name) from error  # it may be at it still, and one board is enough
                refusals.append(error)
                continue
            if wait:
                await self._loaded(name, chosen, before)
            else:
                await self._roster.refresh()
            return name, chosen
        if not refusals:
            raise ModelDown(name, why_unserved(status, self._roster.snapshot))
        # Where one has room in a moment, that is what to wait for.
        raise _problem(next((each for each in refusals if each.code == CommandCode.NO_ROOM_YET), refusals[-1]), name)

    async def unload(self, model: str, board: str | None) -> tuple[str, list[str]]:
        """Have that board, or every one where it has a worker, unload the model; its id and those boards. A job in hand waits
        again, and has it loaded once more. Raises `UnknownModel`, `BoardUnknown`, `QueueUnavailable` and
        `HttpProblem`."""
        status = await self._roster.find(model)
        name = status.card.id
        await self._roster.refresh()
        if board is not None:
            self._check(status, board)
        snapshot = self._roster.snapshot
        seen = {each.board for each in snapshot.breaths if state_on(snapshot, name, each.board) is not None}
        having = {card.board for card in snapshot.cards if card.id == name}
        # Also those where nothing of it is seen: a worker that was just started has not breathed.
        asked = [each.board for each in snapshot.breaths if board in (None, each.board) and each.board in seen | having]

        async def stopped(where: str) -> bool:
            try:
                told = await self._commander.ask(where, Unload(name), UNLOAD_PATIENCE)
            except CommandFailed:
                if where in seen:
                    raise
                return False
            return msgspec.json.decode(told, type=bool | None) is not False  # an older board says nothing

        try:
            had = await asyncio.gather(*map(stopped, asked))
        except CommandFailed as error:
            raise _problem(error, name) from error
        # Who asks for it next must not be taken for served.
        await self._roster.refresh()
        return name, sorted(where for where, any_there in zip(asked, had, strict=True) if any_there)

    def _check(self, status: ModelStatus, board: str) -> None:
        """Refuse a board that is not there, or has no such model."""
        snapshot = self._roster.snapshot
        known = sorted(breath.board for breath in snapshot.breaths)
        if board not in known:
            raise BoardUnknown(board, known)
        having = sorted({card.board for card in snapshot.cards if card.id == status.card.id})
        if board not in having:
            raise HttpProblem(
                Problem(
                    404,
                    "model_not_found",
                    f"The board '{board}' has no model '{status.card.id}'. It is on: {', '.join(having)}.",
                    "board",
                )
            )

    def _by_room(self, status: ModelStatus) -> list[str]:
        """The boards that could load it, those that have it loaded first, then those with the most room."""
        snapshot, name = self._roster.snapshot, status.card.id
        room = {breath.board: breath.room for breath in snapshot.breaths}
        return sorted(
            status.boards,
            key=lambda board: -math.inf if state_on(snapshot, name, board) in LOADED else -room.get(board, 0),
        )

    async def _loaded(self, model: str, board: str, before: Presence | None) -> None:
        """Wait until it is. Raises `HttpProblem` with the reason when it cannot be, and `QueueUnavailable`."""
        try:
            async with asyncio.timeout(LOAD_PATIENCE):
                seen = False
                while True:
                    await self._roster.refresh()
                    snapshot = self._roster.snapshot
                    worker, state = worker_on(snapshot, model, board), state_on(snapshot, model, board)
                    if state in LOADED:
                        return
                    tried = worker is not None and (before is None or _process(worker) != _process(before))
                    if worker is not None and state == "failed" and tried:
                        raise HttpProblem(of_failed(Failed(FailureCode.MODEL_UNAVAILABLE, worker.problem)))
                    if seen and state not in ("loading", "starting"):
                        break
                    seen |= state == "loading"
                    await asyncio.sleep(AGAIN)
        except TimeoutError:
            pass
        raise ModelDown(model, f"it was not loaded; the log of the board '{board}' says why.")


def _process(worker: Presence) -> tuple[float, int]:
    """Tells one try to load from another."""
    return worker.started, worker.tries


def _problem(error: CommandFailed, model: str) -> HttpProblem:
    """Why a board did not load or unload a model."""
    message = str(error)
    if error.code == CommandCode.DOES_NOT_FIT:
        return HttpProblem(Problem(409, "does_not_fit", message, "model", retry=False))
    if error.code in (CommandCode.NO_ROOM_YET, BUSY):
        return HttpProblem(Problem(503, "board_busy", message, retry_after=10.0))
    if error.code in (AWAY, SILENT):
        return HttpProblem(of_error(ModelDown(model, message)))
    if error.code in set(FailureCode):
        return HttpProblem(of_failed(Failed(FailureCode(error.code), message)))
    return HttpProblem(of_error(error))
