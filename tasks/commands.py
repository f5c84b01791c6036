"""Commands to a board and their replies: request and reply over pub/sub, for what must not wait behind a generation.

Nothing is kept: a board that is away answers nobody, and whoever asked hears so at once or after a time-out.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import msgspec
import redis
import redis.asyncio

from tasks import keys
from tasks.connection import unavailable_as_refusal
from tasks.errors import CommandFailed
from tasks.events import FailureCode
from tasks.feed import LiveFeed, Subscription
from tasks.jobs import new_job_id
from tasks.requests import ChatRequest

log = logging.getLogger("rockchipllama.commands")

VERSION = 1
"""Version of the envelope and the reply. Fields a reader does not know it ignores; what is newer, and a kind of command it
does not know, it refuses with a reply that says so."""


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Start a worker for the model and load it. The reply comes when that has begun, or cannot."""

    model: str


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    """Stop the model's worker after its running job."""

    model: str


class Tokenize(msgspec.Struct, frozen=True, tag="tokenize"):
    """The token ids of a text. With `parse_special` control tokens in it are read as such."""

    model: str
    text: str
    add_special: bool = True
    parse_special: bool = True


class Detokenize(msgspec.Struct, frozen=True, tag="detokenize"):
    """The bytes that each token adds to a text, in base64; control tokens add none."""

    model: str
    tokens: tuple[int, ...]


class Render(msgspec.Struct, frozen=True, tag="render"):
    """The text that the chat template makes of a chat."""

    model: str
    request: ChatRequest


class Encode(msgspec.Struct, frozen=True, tag="encode"):
    """The token ids of a chat's whole prompt."""

    model: str
    request: ChatRequest


class Count(msgspec.Struct, frozen=True, tag="count"):
    """How many tokens a chat's whole prompt has, whether or not it fits."""

    model: str
    request: ChatRequest


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Render, tokenize and check a waiting job now, and fail it at once if it can never run."""

    model: str
    job: str


Command: TypeAlias = Load | Unload | Tokenize | Detokenize | Render | Encode | Count | Prepare


class Envelope(msgspec.Struct, frozen=True):
    """A command on its way: `reply_to` is a process, `id` tells its reply from others."""

    id: str
    reply_to: str
    command: Command
    version: int = VERSION


class CommandReply(msgspec.Struct, frozen=True):
    """What a board answers. With `error` set, the command failed, and `code` says how."""

    id: str
    result: msgspec.Raw = msgspec.Raw(b"null")
    code: str = ""
    error: str = ""
    version: int = VERSION


class Address(msgspec.Struct, frozen=True):
    """What every version of an envelope and of a reply has, so that either can be answered or told apart."""

    id: str
    reply_to: str = ""
    version: int = VERSION


class NotUnderstood(msgspec.DecodeError):
    """Raised when a command is damaged, newer, or of an unknown kind. `address` says where it came from, if that is known."""

    def __init__(self, why: str, address: Address | None) -> None:
        self.address = address
        super().__init__(why)


_encoder = msgspec.json.Encoder()
_envelopes = msgspec.json.Decoder(Envelope)
_replies = msgspec.json.Decoder(CommandReply)
_addresses = msgspec.json.Decoder(Address)


def decode_envelope(data: bytes) -> Envelope:
    """The command in `data`. Raises `NotUnderstood`."""
    address = None
    try:
        address = _addresses.decode(data)
        if address.version <= VERSION:
            return _envelopes.decode(data)
        why = f"it has format {address.version}, and this board reads up to {VERSION}"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        why = str(error)
    raise NotUnderstood(f"This board does not know such a command: {why}. Upgrade the board.", address)


def reply(
    client: redis.Redis, envelope: Envelope | Address, result: object = None, *, code: str = "", error: str = ""
) -> None:
    """Answer a command."""
    answer = CommandReply(envelope.id, msgspec.Raw(_encoder.encode(result)), code, error)
    client.publish(keys.replies(envelope.reply_to), _encoder.encode(answer))


def refuse(client: redis.Redis, error: NotUnderstood) -> None:
    """Tell whoever sent what was not understood; nobody when it does not say who that is."""
    if error.address is not None and error.address.reply_to:
        reply(client, error.address, code=FailureCode.UNREADABLE, error=str(error))


def decode_reply(data: bytes) -> CommandReply:
    """The reply in `data`; a newer one as a failure with its id. Raises `msgspec.DecodeError` when it has none."""
    address = _addresses.decode(data)
    if address.version <= VERSION:
        return _replies.decode(data)
    why = (
        f"The board answered in a newer format ({address.version}, this machine reads up to {VERSION}). "
        "Upgrade this machine."
    )
    return CommandReply(address.id, code=FailureCode.UNREADABLE, error=why)


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
        envelope = Envelope(new_job_id(), self._process, command)
        future: asyncio.Future[CommandReply] = asyncio.get_running_loop().create_future()
        self._pending[envelope.id] = future
        try:
            with unavailable_as_refusal():
                heard = await self._client.publish(keys.commands(board), _encoder.encode(envelope))
            if heard == 0:
                raise CommandFailed("board_away", f"The board '{board}' does not answer.")
            async with asyncio.timeout(seconds):
                answer = await future
        except TimeoutError:
            raise CommandFailed("timeout", f"The board '{board}' did not answer within {seconds:.0f} s.") from None
        finally:
            del self._pending[envelope.id]
        if answer.error:
            raise CommandFailed(answer.code, answer.error)
        return answer.result

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
