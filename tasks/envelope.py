"""A command on its way to a board and the reply on its way back, as messages that releases may differ in."""

from __future__ import annotations

import msgspec
import redis

from tasks import keys
from tasks.commands import Command
from tasks.events import FailureCode

VERSION = 1
"""Version of the envelope and the reply. Fields a reader does not know it ignores; what is newer, and a kind of command it
does not know, it refuses with a reply that says so."""


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
