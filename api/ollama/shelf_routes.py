"""The routes of the Ollama front that change which models there are. They need the scope `admin`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.auth import require
from api.body import read_body
from api.delivery import while_connected
from api.errors import HttpProblem, Problem, invalid, of_error
from api.framing import LINES
from api.json_response import json_response
from api.needs import services_of, settings_of
from api.ollama.problems import missing, named, of_shelf, render
from api.ollama.routes import takes
from api.ollama.shelf_schemas import CopyBody, CreateBody, DeleteBody, PullBody
from api.ollama.translate.lines import line
from api.ollama.translate.shelf import create, progress_line
from tasks.api_keys import Scope
from tasks.blobs import is_digest
from tasks.commands import Copy, PullProgress
from tasks.errors import CommandFailed, TasksError, UnknownModel

router = APIRouter(tags=["Ollama"])
SHAPES = (PullBody, CreateBody, CopyBody, DeleteBody)

SUCCESS = {"status": "success"}


@router.post("/api/pull", summary="Fetch a model", openapi_extra=takes(PullBody))
async def pull(http: Request) -> Response:
    """Have a board fetch a model, and tell how far it is. A pull goes on when its client has left."""
    require(http, Scope.ADMIN)
    body = await read_body(http, PullBody)
    told = services_of(http)["shelf"].pull(body.called, body.board)
    try:
        # What can be said at once is a status; the rest is a line.
        first = await while_connected(http, _next(told))
        if body.stream:
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(_lines(told, first), headers=headers, media_type=LINES)
        await while_connected(http, _all(told))
    except CommandFailed as error:
        raise HttpProblem(of_shelf(error)) from None
    return json_response(SUCCESS)


async def _next(told: AsyncGenerator[PullProgress, None]) -> PullProgress:
    return await anext(told)


async def _all(told: AsyncGenerator[PullProgress, None]) -> None:
    async for _ in told:
        pass


async def _lines(told: AsyncGenerator[PullProgress, None], first: PullProgress) -> AsyncGenerator[bytes, None]:
    last: dict[str, Any] = {}
    try:
        progress = first
        while True:
            said = progress_line(progress)
            if said != last:
                yield line(said)
            last = said
            progress = await anext(told)
    except StopAsyncIteration:
        return
    except CommandFailed as error:
        yield render(of_shelf(error)) + b"\n"
    except TasksError as error:
        yield render(of_error(error)) + b"\n"
    finally:
        await told.aclose()


@router.post("/api/create", summary="Make a model of another, or of files", openapi_extra=takes(CreateBody))
async def make(http: Request) -> Response:
    """A model like another, with a system prompt, a template, parameters or an adapter of its own; or one of files that were
    sent before."""
    require(http, Scope.ADMIN)
    body = await read_body(http, CreateBody)
    try:
        if body.files:
            await while_connected(http, services_of(http)["shelf"].assemble(create(body, None)))
        else:
            base = await named(http, body.base)
            await while_connected(http, services_of(http)["shelf"].change(base.card.id, create(body, base)))
    except CommandFailed as error:
        raise HttpProblem(of_shelf(error)) from None
    return (
        Response(line({"status": "writing manifest"}) + line(SUCCESS), media_type=LINES)
        if body.stream
        else (json_response(SUCCESS))
    )


@router.post("/api/copy", summary="Copy a model", openapi_extra=takes(CopyBody))
async def copy(http: Request) -> Response:
    """The same model under one more name, without a second copy of its weights."""
    require(http, Scope.ADMIN)
    body = await read_body(http, CopyBody)
    source = await named(http, body.source, '"')
    await _change(http, source.card.id, Copy(source.card.id, body.destination))
    return Response()


@router.delete("/api/delete", summary="Remove a model", openapi_extra=takes(DeleteBody))
async def delete(http: Request) -> Response:
    """Unload a model and remove its files, on every board that has it, also where they cannot be used."""
    require(http, Scope.ADMIN)
    body = await read_body(http, DeleteBody)
    try:
        await while_connected(http, services_of(http)["shelf"].remove(body.called))
    except UnknownModel as error:
        raise missing(error) from None
    except CommandFailed as error:
        raise HttpProblem(of_shelf(error)) from None
    return Response()


async def _change(http: Request, model: str, command: Any) -> None:
    try:
        await while_connected(http, services_of(http)["shelf"].change(model, command))
    except CommandFailed as error:
        raise HttpProblem(of_shelf(error)) from None


@router.get("/api/blobs/{digest}", include_in_schema=False)
async def find_blob(http: Request, digest: str) -> Response:
    """Whether a file was sent already. Clients ask with HEAD."""
    require(http, Scope.ADMIN)
    _check(digest)
    return Response(status_code=200 if services_of(http)["blobs"].has(digest) else 404)


@router.post("/api/blobs/{digest}", include_in_schema=False)
async def send_blob(http: Request, digest: str) -> Response:
    """Take over a file that a model is to be made of."""
    require(http, Scope.ADMIN)
    _check(digest)
    announced = http.headers.get("content-length", "")
    size = int(announced) if announced.isdecimal() and len(announced) < 20 else 0
    await services_of(http)["blobs"].take(digest, _pieces(http), size)
    return Response(status_code=201)


def _check(digest: str) -> None:
    if not is_digest(digest):
        raise invalid("invalid digest format: it is `sha256:` and 64 hexadecimal digits", "digest")


async def _pieces(http: Request) -> AsyncGenerator[bytes, None]:
    """The body as it comes, however long it is. Raises `HttpProblem` when it stops, and `ClientDisconnect`."""
    patience = settings_of(http).body_timeout
    stream = http.stream()
    while True:
        try:
            async with asyncio.timeout(patience):
                piece = await anext(stream, None)
        except TimeoutError:
            message = f"The file stopped: nothing came for {patience:g} s. Send it again."
            raise HttpProblem(Problem(408, "request_timeout", message, close=True)) from None
        if piece is None:
            return
        if piece:
            yield piece
