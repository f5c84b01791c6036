"""The memory domains of the NPU: into which one each model is put, so that all of them fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

DOMAINS = 16
"""That the NPU's driver has."""
DOMAIN_BYTES = 4 << 30
"""What one addresses, about."""

Place = tuple[int, int]
"""The domain in which a model begins, and its bytes. One that is larger than a domain goes on in the next ones."""


def choose_domain(needed: int, allowed: Sequence[int], others: Collection[Place]) -> int | None:
    """The first of the `allowed` domains in which a model of so many bytes fits beside the others; None where it fits in none.

    A model that may choose has domains of its own, where there are enough.
    """
    used: Counter[int] = Counter()
    for place in others:
        used.update(_spread(*place))
    fitting = [first for first in allowed if _fits(first, needed, used)]
    alone = (first for first in fitting if not _spread(first, needed).keys() & used.keys())
    return next(alone, fitting[0] if fitting else None)


def _fits(first: int, needed: int, used: Counter[int]) -> bool:
    mine = _spread(first, needed)
    return all(domain < DOMAINS and used[domain] + share <= DOMAIN_BYTES for domain, share in mine.items())


def _spread(first: int, size: int) -> dict[int, int]:
    """The bytes in each domain."""
    shares = {}
    while size > 0:
        shares[first] = min(size, DOMAIN_BYTES)
        first, size = first + 1, size - DOMAIN_BYTES
    return shares
