"""Why a model could not be pulled."""

from __future__ import annotations

from tasks.commands import CommandCode
from tasks.errors import CommandFailed


class PullFailed(CommandFailed):
    """Raised when a model cannot be pulled; `code` is a `CommandCode`, and the message says what to do."""

    def __init__(self, code: CommandCode, message: str) -> None:
        super().__init__(code, message)
