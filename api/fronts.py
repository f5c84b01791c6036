"""What the application knows of a front: its routes, and how it says that something went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from pydantic import BaseModel

from api.errors import Renderer
from api.framing import Writer


@dataclass(frozen=True, slots=True)
class Front:
    """One dialect over HTTP.

    `writer` says an answer from what was kept of it (`Rendering.head`); it raises `Unreadable`.

    `owns` tells by its path whether a request speaks this dialect, also when no route takes it. `shapes`
    are the request bodies that its part of the OpenAPI page refers to. `headers` go onto
    every answer, and `elapsed_header` names the one that carries the milliseconds until the answer began.
    """

    name: str
    router: APIRouter
    owns: Callable[[str], bool]
    render: Renderer
    writer: Callable[[bytes], Writer]
    shapes: tuple[type[BaseModel], ...] = ()
    headers: tuple[tuple[bytes, bytes], ...] = ()
    elapsed_header: bytes | None = None


def front_of(path: str, fronts: Sequence[Front]) -> Front:
    """The front whose dialect a path speaks; the first one where none claims it."""
    return next((front for front in fronts if front.owns(path)), fronts[0])
