"""What boards answer without a turn in the queue: texts as tokens and back, prompts rendered and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.requests import Request

from api.auth import require
from api.delivery import while_connected
from api.errors import HttpProblem, Problem, of_failed
from api.needs import services_of
from tasks.api_keys import Scope
from tasks.asking import Commander
from tasks.commands import BUSY, Command, Load
from tasks.errors import CommandFailed, ModelDown
from tasks.events import Failed, FailureCode
from tasks.roster import ModelStatus, Roster

Result = TypeVar("Result")

PATIENCE = 35.0
"""Seconds a board may take: a little more than a tokenizer may, so that the board's own reason comes first."""
LOAD_PATIENCE = 120.0
"""Seconds a model may take to load whose tokenizer comes with it."""
AGAIN = 0.25
"""Seconds between two looks whether it has."""


async def ask_board(
    http: Request, model: str | None, command: Callable[[str], Command], kind: type[Result]
) -> tuple[ModelStatus, Result]:
    """Ask for this client, who needs the scope for it; no longer than it stays. Raises as `Texts.ask` and
    `while_connected` do."""
    require(http, Scope.INFERENCE)
    return await while_connected(http, services_of(http)["texts"].ask(model, command, kind))


class Texts:
    """Asks the boards that have a model, one after the other until one answers."""

    def __init__(self, roster: Roster, commander: Commander) -> None:
        self._roster = roster
        self._commander = commander

    async def ask(
        self, model: str | None, command: Callable[[str], Command], kind: type[Result]
    ) -> tuple[ModelStatus, Result]:
        """The model, and what a board says to the command that `command` makes for its id, as a `kind`.

        Raises `UnknownModel`, `ModelDown` and `QueueUnavailable`, and `HttpProblem` where the board refuses.
        """
        status = await self._roster.find(model)
        wanted = command(status.card.id)
        give_up = asyncio.get_running_loop().time() + LOAD_PATIENCE
        last = "no board that has it is there."
        for board in status.boards:
            try:
                return status, msgspec.json.decode(await self._answer(board, wanted, give_up), type=kind)
            except CommandFailed as error:
                last = str(error)
        raise ModelDown(status.card.id, last)

    async def _answer(self, board: str, command: Command, give_up: float) -> msgspec.Raw:
        """Raises `CommandFailed` when another board may do better, `HttpProblem` when not."""
        loading = False
        while True:
            try:
                return await self._commander.ask(board, command, PATIENCE)
            except CommandFailed as error:
                if error.code == BUSY:
                    raise HttpProblem(Problem(503, "board_busy", str(error), retry_after=1.0)) from error
                if error.code not in set(FailureCode):
                    raise
                failed = Failed(FailureCode(error.code), str(error))
                # Of some models the tokenizer is there once they are loaded.
                if failed.code is not FailureCode.ENGINE_FAILED or asyncio.get_running_loop().time() > give_up:
                    raise HttpProblem(of_failed(failed)) from error
            if not loading:
                await self._load(board, command.model)
                loading = True
            await asyncio.sleep(AGAIN)

    async def _load(self, board: str, model: str) -> None:
        try:
            await self._commander.ask(board, Load(model), PATIENCE)
        except CommandFailed as error:
            raise ModelDown(model, str(error)) from error
