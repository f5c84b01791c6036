"""One large file over HTTP: resumed after every interruption, checked against its digest before anybody sees it."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

CHUNK = 256 * 1024
TIMEOUT = 60.0
"""Seconds of silence after which a connection is given up and the rest asked for anew."""
FRUITLESS = 5
"""Attempts in a row that bring not one byte, after which the download gives up."""


class DownloadFailed(Exception):
    """Raised when the file cannot be had; what arrived so far is kept for the next attempt unless it was damaged."""


class Forbidden(DownloadFailed):
    """Raised when the server wants credentials."""


class Damaged(DownloadFailed):
    """Raised when the whole file arrived and is not the one that was asked for. It has been deleted."""


Progress = Callable[[int, int | None], None]
"""Told how many bytes are there, and of how many if that is known."""


def opener(proxy: str | None = None, certificates: str | None = None) -> urllib.request.OpenerDirector:
    """What opens addresses here. Without arguments: proxies from the environment, the system's certificates."""
    context = ssl.create_default_context()
    try:
        import certifi  # slim systems have no certificates of their own

        context.load_verify_locations(certifi.where())
    except ImportError:
        pass
    if certificates:
        path = Path(certificates)
        context.load_verify_locations(cafile=None if path.is_dir() else path, capath=path if path.is_dir() else None)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if proxy:
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def download(
    url: str,
    target: Path,
    sha256: str | None,
    progress: Progress,
    *,
    opener: urllib.request.OpenerDirector,
    pause: float = 1.0,
) -> None:
    """Make `target` the file at `url` (also `file:`), going on from what is there. Raises `DownloadFailed`.

    `sha256` is what the file must hash to; None takes whatever arrives, and the caller judges it.
    `pause` is how many seconds to wait after the first fruitless attempt; each further wait is twice as long.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fruitless = 0
    while True:
        before = target.stat().st_size if target.exists() else 0
        try:
            if _attempt(url, target, before, progress, opener):
                break
            why = "the connection was cut"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403, 407):
                raise Forbidden(f"the server answered {error.code} {error.reason}") from error
            if error.code == 416 and before:  # more is here than there: not the same file
                target.unlink()
            elif error.code < 500 and error.code not in (408, 425, 429):
                raise DownloadFailed(f"the server answered {error.code} {error.reason}") from error
            why = f"the server answered {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            why = str(getattr(error, "reason", None) or error or type(error).__name__)
        gained = target.exists() and target.stat().st_size > before
        fruitless = 0 if gained else fruitless + 1
        if fruitless >= FRUITLESS:
            raise DownloadFailed(why)
        time.sleep(pause * 2 ** max(0, fruitless - 1) if fruitless else 0)
    if sha256 is not None and digest(target) != sha256:
        target.unlink()
        raise Damaged("what arrived is not the file that was asked for (its SHA-256 differs), so it was deleted")


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _attempt(url: str, target: Path, have: int, progress: Progress, opener: urllib.request.OpenerDirector) -> bool:
    """One connection. True: the file is whole; false: it was cut short."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with opener.open(request, timeout=TIMEOUT) as answer:
        ranges = answer.headers.get("Content-Range", "")
        resumed = have > 0 and answer.status == 206 and ranges.startswith(f"bytes {have}-")
        if not resumed:
            have = 0  # the server knows no ranges and sends everything again
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with target.open("ab" if resumed else "wb") as file:
            progress(have, total)
            try:
                while data := answer.read1(CHUNK) if hasattr(answer, "read1") else answer.read(CHUNK):
                    file.write(data)
                    have += len(data)
                    progress(have, total)
            finally:
                file.flush()
                os.fsync(file.fileno())
    return total is None or have >= total
