"""What the application knows of a front: its routes, and how it says that something went wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.types import Scope

from api.errors import Renderer
from api.framing import Writer


@dataclass(frozen=True, slots=True)
class Front:
    """One dialect over HTTP.

    `writer` says an answer from what was kept of it (`Rendering.head`); it raises `Unreadable`.

    `owns` tells by its path or headers whether a request speaks this dialect, also when no route takes it. `shapes`
    are the request bodies that its part of the OpenAPI page refers to. `headers` go onto every answer, and `elapsed_header`
    names the one that carries the milliseconds until the answer began. `echoes` are the headers of all fronts that this
    dialect also has under names of its own, `statuses` the statuses for which it has others. With `lines` its streams are
    lines of JSON instead of server-sent events.
    """

    name: str
    router: APIRouter
    owns: Callable[[Scope], bool]
    render: Renderer
    writer: Callable[[bytes], Writer]
    shapes: tuple[type[BaseModel], ...] = ()
    headers: tuple[tuple[bytes, bytes], ...] = ()
    elapsed_header: bytes | None = None
    echoes: Mapping[bytes, bytes] = field(default_factory=dict)
    statuses: Mapping[int, int] = field(default_factory=dict)
    lines: bool = False


def front_of(scope: Scope, fronts: Sequence[Front]) -> Front:
    """The front whose dialect a request speaks; the first one where none claims it."""
    return next((front for front in fronts if front.owns(scope)), fronts[0])
