"""What the application knows of a front: its routes, and how it says that something went wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Scope

from api.errors import Renderer
from api.framing import Writer
from tasks.events import Event, Finished, Unreadable
from tasks.jobs import Rendering
from tasks.requests import Request as JobRequest
from tasks.roster import ModelStatus


class InOnePiece(Exception):
    """Raised for an answer that no stream could say, such as vectors."""


class Versioned(Protocol):
    """What a front keeps of an answer, in a format that releases may differ in."""

    @property
    def version(self) -> int: ...


K = TypeVar("K", bound=Versioned)


def read_kept(decoder: msgspec.json.Decoder[K], data: bytes, newest: int) -> K:
    """What a front kept of how an answer is said, in a format up to the `newest` that it knows. Raises `Unreadable`."""
    try:
        kept = decoder.decode(data)
    except msgspec.DecodeError as error:
        raise unreadable(str(error)) from error
    if kept.version > newest:
        raise Unreadable(
            f"How this answer is said was written by a newer version of rockchipllama (format {kept.version}, this one "
            f"reads up to {newest}). Upgrade this machine."
        )
    return kept


def unreadable(why: str) -> Unreadable:
    """The error to raise where it cannot be understood."""
    return Unreadable(f"How this answer is said was written by another version of rockchipllama: {why}")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the body of a request asks for: a model's answer to `request`, said as `rendering` makes it of the job's id and the
    model."""

    model: str | None
    request: JobRequest
    rendering: Callable[[str, ModelStatus], Rendering]


Asking: TypeAlias = Callable[[Request, dict[str, Any]], Awaitable[Asked]]
"""Reads the body of an endpoint that is asked for by another way than a request of its own. Raises `HttpProblem`."""


@dataclass(frozen=True, slots=True)
class Front:
    """One dialect over HTTP.

    `writer` says an answer from what was kept of it (`Rendering.head`); it raises `Unreadable` and `InOnePiece`. `whole` says
    all of it at once, given its events and the last of them besides; it raises `Unreadable`. `askings` are by their paths the
    endpoints that can also be asked for as jobs that nobody waits for.

    `owns` tells by its path or headers whether a request speaks this dialect, also when no route takes it. `shapes`
    are the request bodies that its part of the OpenAPI page refers to. `headers` go onto every answer, and `elapsed_header`
    names the one that carries the milliseconds until the answer began. `echoes` are the headers of all fronts that this
    dialect also has under names of its own, `statuses` the statuses for which it has others. With `lines` its streams are
    lines of JSON instead of server-sent events.

    `asking` are the routes by which models are asked. They are looked for before all others, of which there are a hundred, so
    they have no path in common with any.
    """

    name: str
    asking: APIRouter
    router: APIRouter
    owns: Callable[[Scope], bool]
    render: Renderer
    writer: Callable[[bytes], Writer]
    whole: Callable[[bytes, Sequence[Event], Finished], Any]
    askings: Mapping[str, Asking] = field(default_factory=dict)
    shapes: tuple[type[BaseModel], ...] = ()
    headers: tuple[tuple[bytes, bytes], ...] = ()
    elapsed_header: bytes | None = None
    echoes: Mapping[bytes, bytes] = field(default_factory=dict)
    statuses: Mapping[int, int] = field(default_factory=dict)
    lines: bool = False


def front_of(scope: Scope, fronts: Sequence[Front]) -> Front:
    """The front whose dialect a request speaks; the first one where none claims it."""
    return next((front for front in fronts if front.owns(scope)), fronts[0])
