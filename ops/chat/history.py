"""What was typed at the prompt, kept for the next time."""

from __future__ import annotations

import os
import readline
from pathlib import Path
from types import TracebackType

from ops.chat.screen import note

MOST = 1000
"""Lines."""


class History:
    """Inside its block `input` edits lines and knows earlier ones. The file is for its owner's eyes only."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        readline.set_history_length(MOST)
        try:
            readline.read_history_file(self._file)
        except OSError:
            # None is there yet, or it cannot be read, and typing goes without.
            readline.clear_history()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.close(os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600))
            os.chmod(self._file, 0o600)
            readline.write_history_file(self._file)
        except OSError as wrong:
            note(f"What was typed is not kept: {wrong}")
