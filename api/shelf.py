"""Which models boards have, changed: fetched, made, copied, removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

from tasks.asking import Commander
from tasks.commands import CommandCode, Copy, Create, Delete, PullProgress
from tasks.errors import BoardUnknown, CommandFailed, ModelDown, UnknownModel
from tasks.feed import LiveFeed
from tasks.pulls import follow_pull
from tasks.residence import why_unserved
from tasks.roster import Roster

PATIENCE = 120.0
"""Seconds a board may take to change what lies on its disk, and to let a job end before that."""


class Shelf:
    """Has boards do it."""

    def __init__(self, roster: Roster, commander: Commander, feed: LiveFeed) -> None:
        self._roster = roster
        self._commander = commander
        self._feed = feed

    async def pull(self, name: str, board: str = "") -> AsyncGenerator[PullProgress, None]:
        """Have a board fetch a model, and tell how far it is; whoever leaves ends nothing. Where none is named it is the first by
        name. Raises `BoardUnknown`, `CommandFailed`, `ModelDown` and `QueueUnavailable`."""
        await self._roster.refresh()
        boards = self._roster.snapshot.boards
        if board and board not in boards:
            raise BoardUnknown(board, boards)
        if not boards:
            raise ModelDown(name, "no board is there to fetch it.")
        async for progress in follow_pull(self._commander, self._feed, board or boards[0], name):
            yield progress
        await self._roster.refresh()

    async def assemble(self, command: Create) -> None:
        """Have a board make a model of files that were sent: the first by name on whose machine they are. Raises
        `CommandFailed`, `ModelDown` and `QueueUnavailable`."""
        await self._roster.refresh()
        refused: Exception = ModelDown(command.model, "no board is there to make it.")
        for board in self._roster.snapshot.boards:
            try:
                await self._commander.ask(board, command, PATIENCE)
            except CommandFailed as error:
                refused = error
                if error.code != CommandCode.FILE_MISSING:
                    break
            else:
                await self._roster.refresh()
                return
        raise refused

    async def remove(self, name: str) -> None:
        """Have every board remove what it has of that name, also where it cannot be used. Raises `UnknownModel`, `CommandFailed`,
        `ModelDown` and `QueueUnavailable`."""
        await self._roster.refresh()
        snapshot = self._roster.snapshot
        model, boards = name.lower(), set[str]()
        try:
            status = self._roster.resolve(name)
            model, boards = status.card.id, set(status.boards)
            why = why_unserved(status, snapshot)
        except UnknownModel as error:
            if error.refused is None:
                raise
            why = str(error)
        boards |= {breath.board for breath in snapshot.refusals if model in breath.refused}
        if not boards:
            raise ModelDown(model, why)
        await self._tell(boards, Delete(model))

    async def change(self, model: str, command: Create | Copy) -> None:
        """Have every board that has the model `model` do this. Raises `UnknownModel`, `CommandFailed`, `ModelDown` and
        `QueueUnavailable`."""
        status = await self._roster.find(model)
        if not status.boards:
            raise ModelDown(status.card.id, why_unserved(status, self._roster.snapshot))
        await self._tell(status.boards, command)

    async def _tell(self, boards: Iterable[str], command: Create | Copy | Delete) -> None:
        done = await asyncio.gather(
            *(self._commander.ask(board, command, PATIENCE) for board in boards), return_exceptions=True
        )
        await self._roster.refresh()
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
