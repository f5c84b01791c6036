"""Who is served next: the one place where jobs are ranked. Today by lane, then by age.

The waiting set's score is the lane's rank and the order of acceptance in one number, so the first member is the next
to serve, a job's rank is its position, and a job handed back takes its old place again. Order is a count and no time:
the clocks of boards jump.
"""

from __future__ import annotations

from tasks.jobs import Lane

_RANKS = {Lane.INTERACTIVE: 0, Lane.BACKGROUND: 1, Lane.BATCH: 2}


def rank(lane: Lane) -> int:
    """The lane's place among lanes; lower goes first."""
    return _RANKS[lane]
