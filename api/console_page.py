"""The console: a page for people at `/`, of files that lie beside this one. It needs nothing from anywhere else.

What the page may do is said in its policy: load its own files and ask this server. It has no script or style in its HTML, so
that nothing which slipped into it could be either.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

BELOW = "/console/"
_FOLDER = Path(__file__).parent / "console"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


@cache
def _files() -> dict[str, tuple[bytes, str]]:
    """Each file of the page with its tag. Read once: they are a few dozen kilobytes."""
    found = {}
    for path in _FOLDER.iterdir():
        if path.suffix in _TYPES:
            data = path.read_bytes()
            found[path.name] = data, f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'
    return found


def page(http: Request) -> Response:
    """The page itself."""
    return _file(http, "index.html", vary="accept")


@router.get(BELOW + "{name}")
async def file(http: Request, name: str) -> Response:
    """One of its files."""
    if name not in _files() or name == "index.html":
        raise HTTPException(404)
    return _file(http, name)


def _file(http: Request, name: str, **headers: str) -> Response:
    data, tag = _files()[name]
    # Asked for each time, and sent when it has changed: after an upgrade no page runs half of the old one.
    headers |= {
        "etag": tag,
        "cache-control": "no-cache",
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    if http.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=_TYPES[Path(name).suffix])
