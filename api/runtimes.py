"""The NPU's runtime of a board, changed as administrators ask for it."""

from __future__ import annotations

import msgspec

from api.errors import HttpProblem, Problem, of_error
from api.needs import RosterView
from tasks.asking import Commander
from tasks.commands import AWAY, BUSY, CommandCode, RuntimeUsed, UseRuntime
from tasks.errors import BoardUnknown, CommandFailed

PATIENCE = 900.0
"""Seconds a board may take: each of its models may be tried for five minutes, and is loaded again."""

_decoder = msgspec.json.Decoder(RuntimeUsed)


class Runtimes:
    """Has boards change it."""

    def __init__(self, roster: RosterView, commander: Commander) -> None:
        self._roster = roster
        self._commander = commander

    async def use(self, board: str, version: str, model: str) -> RuntimeUsed:
        """Have a board use another release, once it was tried with `model`, or with those that are loaded. A change that was
        begun is ended whoever leaves. Raises `BoardUnknown`, `QueueUnavailable`, and `HttpProblem` where the board refuses."""
        await self._roster.refresh()
        known = sorted(breath.board for breath in self._roster.snapshot.breaths)
        if board not in known:
            raise BoardUnknown(board, known)
        try:
            used = _decoder.decode(await self._commander.ask(board, UseRuntime(version, model), PATIENCE))
        except CommandFailed as error:
            raise HttpProblem(_problem(error)) from error
        await self._roster.refresh()  # who changed it looks at it next
        return used


def _problem(error: CommandFailed) -> Problem:
    if error.code == CommandCode.RUNTIME_REFUSED:
        return Problem(409, "runtime_refused", str(error), "version", retry=False)
    if error.code == BUSY:
        return Problem(503, "board_busy", str(error), retry_after=10.0)
    if error.code == AWAY:
        return Problem(503, "board_away", str(error), "board", retry_after=10.0)
    return of_error(error)
