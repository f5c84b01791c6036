"""Whether this machine's board agent breathes: `python -m ops.board_health`, for the health check of its container.

With `--alive` it is enough that nobody can tell: a board without Redis waits for it, and to end it would change nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ops.up import joined
from tasks.connection import UNREACHABLE, connect
from tasks.roster import read_roster
from tasks.settings import TaskSettings, redis_url

PATIENCE = 4.0
"""Seconds for Redis to answer, asked once: whoever runs this check takes a long one for a failed one, also with `--alive`."""


def main(words: Sequence[str]) -> int:
    """0: it does. 1: it does not, or Redis cannot be asked, which with `--alive` is 0."""
    settings = TaskSettings()
    try:
        url = settings.redis_url or joined.redis_url(settings.data_dir) or redis_url(settings)
        client = connect(url, timeout=PATIENCE, retries=0)
        roster = read_roster(client)
    except UNREACHABLE as error:
        print(f"Redis does not answer: {error}", file=sys.stderr)
        return 0 if "--alive" in words else 1
    if settings.board_name not in {breath.board for breath in roster.breaths}:  # one that is drained lives as well
        print(f"No sign of life from the board '{settings.board_name}'.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
