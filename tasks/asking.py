"""A command to a board, from a thread; `tasks.commands.Commander` is for event loops."""

from __future__ import annotations

import time

import msgspec
import redis

from tasks import keys
from tasks.commands import AWAY, SILENT, Command, Envelope, decode_reply
from tasks.errors import CommandFailed
from tasks.jobs import new_job_id

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
