"""A model's way onto a board, read from anywhere: begun or joined, and followed to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

import msgspec

from tasks import keys
from tasks.asking import Commander
from tasks.commands import CommandCode, Pull, PullProgress, PullState, PullStep
from tasks.errors import CommandFailed
from tasks.feed import LiveFeed, Subscription

SILENCE: Final = 10.0
"""Seconds without a word after which the board is asked how the pull stands."""
PATIENCE: Final = 10.0
"""Seconds a board has to answer."""

_decoder = msgspec.json.Decoder(PullProgress)


async def follow_pull(
    commander: Commander, feed: LiveFeed, board: str, model: str, *, silence: float = SILENCE
) -> AsyncGenerator[PullProgress, None]:
    """Have a board pull a model, and yield how far it is until it is done. A pull of the same name is joined.

    Whoever leaves ends nothing: the pull goes on. Raises `CommandFailed` when it fails, with a `CommandCode`, or when the
    board is away; `QueueUnavailable`.
    """
    async with feed.subscribe(keys.pulls(board)) as subscription:
        await asyncio.wait({subscription.confirmed}, timeout=PATIENCE)  # without it, silence is asked about
        progress = _decoder.decode(await commander.ask(board, Pull(model), PATIENCE))
        while True:
            if progress.step is PullStep.FAILED:
                raise CommandFailed(progress.code or CommandCode.NETWORK, progress.message)
            yield progress
            if progress.ended:
                return
            progress = await _next(commander, subscription, board, progress, silence)


async def _next(
    commander: Commander, subscription: Subscription, board: str, last: PullProgress, silence: float
) -> PullProgress:
    """What follows `last`. Messages may be lost with the connection, so silence is asked about."""
    while True:
        heard = await subscription.wait(silence)
        for message in subscription.take():
            if message is not None and (newer := _newer(_decoder.decode(message), last)) is not None:
                return newer
            heard = heard and message is not None
        if not heard:
            answer = await commander.ask(board, PullState(last.model, last.pull), PATIENCE)
            if (newer := _newer(_decoder.decode(answer), last)) is not None:
                return newer


def _newer(progress: PullProgress, last: PullProgress) -> PullProgress | None:
    return progress if progress.pull == last.pull and progress.number > last.number else None
