"""Lists a page at a time, as OpenAI's clients turn them: behind the id they name, so many, in the order they like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from api.errors import invalid

Item = TypeVar("Item")


def page(
    http: Request,
    items: Sequence[Item],
    id_of: Callable[[Item], str],
    say: Callable[[Item], dict[str, Any]],
    *,
    limit: int,
    most: int,
) -> dict[str, Any]:
    """The part of `items`, the oldest first, that the query asks for: `limit` of them where it does not say, the newest
    first. Raises `HttpProblem`."""
    limit = _limit(http.query_params.get("limit"), limit, most)
    order = http.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("'order' should be 'asc' or 'desc'.", "order")
    if order == "desc":
        items = items[::-1]
    after = http.query_params.get("after")
    if after:
        place = next((place for place, item in enumerate(items) if id_of(item) == after), None)
        if place is None:
            raise invalid(f"'after' should be the id of an item of this list; '{after[:60]}' is none.", "after")
        items = items[place + 1 :]
    shown = items[:limit]
    return {
        "object": "list",
        "data": [say(item) for item in shown],
        "first_id": id_of(shown[0]) if shown else None,
        "last_id": id_of(shown[-1]) if shown else None,
        "has_more": len(items) > limit,
    }


def _limit(said: str | None, limit: int, most: int) -> int:
    if not said:
        return limit
    if not (said.isascii() and said.isdecimal() and len(said) < 10 and 1 <= int(said) <= most):
        raise invalid(f"'limit' should be a whole number from 1 to {most}.", "limit")
    return int(said)
