"""By what a request of this dialect is known."""

from __future__ import annotations

from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

VERSION_HEADER = b"anthropic-version"
"""Every client of Anthropic's sends it, and no other does."""


def versioned(scope: Scope) -> bool:
    """Whether a request has the header of Anthropic's clients."""
    return any(name == VERSION_HEADER for name, _ in scope["headers"])


def speaks(scope: Scope) -> bool:
    """Whether a request is of this dialect: by its path, or by its header where two dialects share a path."""
    path: str = scope["path"].removeprefix("/v1")
    if path.startswith("/messages"):
        return True
    return path.startswith("/models") and versioned(scope)


class SharedRoute(APIRoute):
    """A route whose path another dialect has as well; this one takes the requests with its header only."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As its path says, if the header is there."""
        return super().matches(scope) if versioned(scope) else (Match.NONE, {})
