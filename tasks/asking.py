"""Boards are asked: a command out and its reply back over pub/sub, from a thread or an event loop.

Nothing is kept: a board that is away answers nobody, and whoever asked hears so at once or after a time-out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AbstractAsyncContextManager

import msgspec
import redis
import redis.asyncio

from tasks import keys
from tasks.commands import AWAY, SILENT, Command
from tasks.connection import unavailable_as_refusal
from tasks.envelope import CommandReply, Envelope, decode_reply
from tasks.errors import CommandFailed
from tasks.feed import LiveFeed, Subscription
from tasks.jobs import new_job_id

log = logging.getLogger("rockchipllama.commands")

HEARD = 3.0
"""Seconds for which a command is held back while its reply would be heard by nobody: as long as a feed takes to come back to a
Redis that others have reached already, and some more. Where there is no Redis it is refused then."""

_encoder = msgspec.json.Encoder()


def ask(client: redis.Redis, board: str, command: Command, seconds: float) -> msgspec.Raw:
    """The board's result as JSON. Raises `CommandFailed`, and what the client raises."""
    envelope = Envelope(new_job_id(), new_job_id(), command)
    gives_up = time.monotonic() + seconds
    with client.pubsub() as channel:  # type: ignore[no-untyped-call]
        channel.subscribe(keys.replies(envelope.reply_to))
        sent = False
        while (left := gives_up - time.monotonic()) > 0:
            message = channel.get_message(timeout=min(left, 1.0))
            if (
                message is not None and not sent
            ):  # the subscription's own; a reply before it would have been heard by nobody
                sent = True
                if client.publish(keys.commands(board), _encoder.encode(envelope)) == 0:
                    raise CommandFailed(AWAY, f"The board '{board}' does not answer.")
            elif message is not None and message["type"] == "message":
                answer = decode_reply(bytes(message["data"]))
                if answer.error:
                    raise CommandFailed(answer.code, answer.error)
                return answer.result
    raise CommandFailed(SILENT, f"The board '{board}' did not answer within {seconds:.0f} s.")


class Commander:
    """Sends commands and takes their replies, for one process."""

    def __init__(self, client: redis.asyncio.Redis, feed: LiveFeed) -> None:
        self._client = client
        self._feed = feed
        self._process = new_job_id()
        self._pending: dict[str, asyncio.Future[CommandReply]] = {}
        self._subscribed: AbstractAsyncContextManager[Subscription] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Commander:
        self._subscribed = self._feed.subscribe(keys.replies(self._process))
        subscription = await self._subscribed.__aenter__()
        self._task = asyncio.create_task(self._listen(subscription), name="command-replies")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._subscribed is not None:
            await self._subscribed.__aexit__(None, None, None)

    async def ask(self, board: str, command: Command, seconds: float) -> msgspec.Raw:
        """The board's result as JSON. Raises `CommandFailed`, `QueueUnavailable`."""
        await self._until_heard()
        envelope = Envelope(new_job_id(), self._process, command)
        future: asyncio.Future[CommandReply] = asyncio.get_running_loop().create_future()
        self._pending[envelope.id] = future
        try:
            with unavailable_as_refusal():
                heard = await self._client.publish(keys.commands(board), _encoder.encode(envelope))
            if heard == 0:
                raise CommandFailed(AWAY, f"The board '{board}' does not answer.")
            async with asyncio.timeout(seconds):
                answer = await future
        except TimeoutError:
            raise CommandFailed(SILENT, f"The board '{board}' did not answer within {seconds:.0f} s.") from None
        finally:
            del self._pending[envelope.id]
        if answer.error:
            raise CommandFailed(answer.code, answer.error)
        return answer.result

    async def _until_heard(self) -> None:
        """Wait until replies are heard, for a while."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + HEARD
        while not self._feed.hears(keys.replies(self._process)) and loop.time() < give_up:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.02)

    async def _listen(self, subscription: Subscription) -> None:
        while True:
            await subscription.wait(60.0)
            for message in subscription.take():
                if message is not None:
                    try:
                        answer = decode_reply(message)
                    except (msgspec.DecodeError, UnicodeDecodeError) as error:
                        log.warning("a board's reply that cannot be read was ignored: %s", error)
                        continue
                    future = self._pending.get(answer.id)
                    if future is not None and not future.done():
                        future.set_result(answer)
