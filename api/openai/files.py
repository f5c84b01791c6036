"""Files that clients keep here for batches: `/v1/files`."""

from __future__ import annotations

import errno
import logging
import re
import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.auth import ALLOWED, owner_of, require
from api.errors import HttpProblem, Problem, invalid
from api.json_response import json_response
from api.needs import services_of, settings_of
from api.openai.paging import page
from api.openai.upload import Upload
from tasks.api_keys import Scope
from tasks.errors import FileUnknown
from tasks.files import StoredFile, new_file_id

log = logging.getLogger("rockchipllama.api")

router = APIRouter(tags=["Files and batches"])

PURPOSES = ("batch", "user_data", "assistants", "vision", "evals")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REST = re.compile(r"bytes=([0-9]{1,15})-")
MONTH = 30 * 24 * 3600
SHORTEST, LONGEST = 3600, MONTH
"""Seconds after which a file may be asked to go."""


_FIELDS = {
    "file": {"type": "string", "format": "binary"},
    "purpose": {"type": "string", "enum": list(PURPOSES)},
    "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
    "expires_after[seconds]": {"type": "integer", "minimum": SHORTEST, "maximum": LONGEST},
}
_TAKES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file", "purpose"], "properties": _FIELDS}
            }
        },
    }
}


def say(file: StoredFile) -> dict[str, Any]:
    """A file as clients know it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": file.created,
        "expires_at": file.expires,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def may_see(http: Request, owner: str) -> bool:
    """Whether something of this owner is this client's business: whoever has a key sees what that key made, and who has none
    all that was made without one; administrators see everything."""
    mine = owner_of(http)
    return (
        Scope.ADMIN in http.scope[ALLOWED] or mine == owner or not (mine.startswith("key:") or owner.startswith("key:"))
    )


async def find(http: Request, file_id: str) -> StoredFile:
    """A file of this client's. Raises `FileUnknown`, and `HttpProblem` without the scope."""
    require(http, Scope.BATCH)
    file = await services_of(http)["files"].get(file_id)
    if not may_see(http, file.owner):
        raise FileUnknown(file_id)
    return file


@router.post("/files", include_in_schema=False)
@router.post("/v1/files", summary="Upload a file", openapi_extra=_TAKES)
async def upload_file(http: Request) -> Response:
    """Keep a file. Its bytes go to the storage as they come; none is ever in memory as a whole."""
    require(http, Scope.BATCH)
    services = services_of(http)
    upload = Upload(http, settings_of(http))
    await services["files"].check_room()
    await upload.open()
    file_id = new_file_id()
    storage = services["storage"]
    try:
        size = await storage.create(file_id, upload.chunks())
    except OSError as error:
        raise HttpProblem(_failed("kept", error)) from error
    try:
        file = _described(upload, file_id, owner_of(http), size)
        await services["files"].add(file)
    except BaseException:
        await storage.delete(file_id)
        raise
    return json_response(say(file))


def _described(upload: Upload, file_id: str, owner: str, size: int) -> StoredFile:
    fields = upload.fields
    purpose = fields.get("purpose")
    if purpose is None:
        raise invalid("Missing required parameter: 'purpose'.", "purpose", "missing_required_parameter")
    if purpose == "fine-tune":
        raise invalid(
            f"'purpose' is 'fine-tune', and nothing is trained here. It should be one of {', '.join(PURPOSES)}.",
            "purpose",
        )
    if purpose not in PURPOSES:
        raise invalid(f"'purpose' should be one of {', '.join(PURPOSES)}.", "purpose")
    return StoredFile(
        id=file_id,
        owner=owner,
        filename=upload.filename[:255],
        purpose=purpose,
        size=size,
        created=int(time.time()),
        expires_after=_expiry(fields, purpose),
    )


def _expiry(fields: dict[str, str], purpose: str) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return MONTH if purpose == "batch" else None
    if anchor != "created_at":
        raise invalid("'expires_after[anchor]' should be 'created_at'.", "expires_after.anchor")
    if seconds is None or not seconds.isdecimal() or len(seconds) > 9 or not SHORTEST <= int(seconds) <= LONGEST:
        raise invalid(
            f"'expires_after[seconds]' should be a number from {SHORTEST} to {LONGEST}.", "expires_after.seconds"
        )
    return int(seconds)


def _failed(done: str, error: OSError) -> Problem:
    log.error("a file could not be %s: %s", done, error)
    if error.errno in _FULL:
        return Problem(507, "storage_full", f"The file could not be {done}: {error.strerror}.", retry_after=30.0)
    message = f"The file could not be {done}: the storage for files failed. The log of the API says how."
    return Problem(503, "storage_unavailable", message, retry_after=30.0)


@router.get("/files", include_in_schema=False)
@router.get("/v1/files", summary="List the files")
async def list_files(http: Request) -> Response:
    """Those of this client, a page at a time."""
    require(http, Scope.BATCH)
    purpose = http.query_params.get("purpose")
    files = [
        file
        for file in await services_of(http)["files"].every()
        if may_see(http, file.owner) and purpose in (None, "", file.purpose)
    ]
    return json_response(page(http, files, lambda file: file.id, say, limit=10_000, most=10_000))


@router.get("/files/{file_id}", include_in_schema=False)
@router.get("/v1/files/{file_id}", summary="Show a file")
async def show_file(http: Request, file_id: str) -> Response:
    """What is known of it."""
    return json_response(say(await find(http, file_id)))


@router.get("/files/{file_id}/content", include_in_schema=False)
@router.get("/v1/files/{file_id}/content", summary="Download a file")
async def download_file(http: Request, file_id: str) -> Response:
    """Its bytes, as they were uploaded or written; with `Range: bytes=N-` those from there on."""
    file = await find(http, file_id)
    start = _start(http)
    if start and start >= file.size:
        return Response(status_code=416, headers={"content-range": f"bytes */{file.size}"})
    chunks = services_of(http)["storage"].read(file.id, start)
    try:
        first = await anext(chunks, b"")
    except FileNotFoundError as error:
        log.error("the bytes of %s are not there: %s", file.id, error)
        raise FileUnknown(file_id) from error
    except OSError as error:
        raise HttpProblem(_failed("read", error)) from error

    async def every() -> Any:
        yield first
        async for chunk in chunks:
            yield chunk

    return StreamingResponse(
        every(),
        206 if start else 200,
        headers={"content-length": str(file.size - start), "accept-ranges": "bytes"}
        | ({"content-range": f"bytes {start}-{file.size - 1}/{file.size}"} if start else {}),
        media_type="application/jsonl" if file.purpose.startswith("batch") else "application/octet-stream",
    )


def _start(http: Request) -> int:
    """From which byte on; other ranges than those to the end are answered with the whole, as HTTP allows."""
    found = _REST.fullmatch(http.headers.get("range", ""))
    return int(found[1]) if found else 0


@router.delete("/files/{file_id}", include_in_schema=False)
@router.delete("/v1/files/{file_id}", summary="Delete a file")
async def delete_file(http: Request, file_id: str) -> Response:
    """Forget it and its bytes. What a batch still reads stays."""
    file = await find(http, file_id)
    services = services_of(http)
    for order in await services["batches"].every():
        if order.input_file == file.id and not await services["batches"].is_over(order.id):
            raise HttpProblem(
                Problem(409, "file_in_use", f"The batch '{order.id}' reads this file; cancel it first.", retry=False)
            )
    try:
        await services["storage"].delete(file.id)
    except OSError as error:
        raise HttpProblem(_failed("deleted", error)) from error
    await services["files"].remove(file.id)
    return json_response({"id": file.id, "object": "file", "deleted": True})
