"""One large file over HTTP: resumed after every interruption, never longer than told, checked against its digest."""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

CHUNK = 256 * 1024
TIMEOUT = 60.0
"""Seconds of silence after which a connection is given up and the rest asked for anew."""
FRUITLESS = 5
"""Attempts in a row that bring not one byte, after which the download gives up."""
LONGEST_WAIT: Final = 600.0
"""Seconds that a server which limits the rate may ask us to wait; more, and whoever asked should come back instead."""


class DownloadFailed(Exception):
    """Raised when the file cannot be had; what arrived so far is kept for the next attempt unless it was damaged."""


class Forbidden(DownloadFailed):
    """Raised when the server wants credentials, or does not accept those it got. `status` is what it answered."""

    def __init__(self, message: str, status: int, reason: str = "") -> None:
        self.status = status
        self.reason = reason
        super().__init__(message)


class Missing(DownloadFailed):
    """Raised when the server has no such file."""


class Damaged(DownloadFailed):
    """Raised when what arrived is not what was asked for. It has been deleted."""


Progress = Callable[[int, int | None], None]
"""Told how many bytes are there, and of how many if that is known."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """How far a download is."""

    completed: int
    """Bytes that are there."""
    total: int | None
    """None while the server has not told."""
    waiting: str = ""
    """Why nothing comes now, and for how long it is waited, as a sentence."""
    tag: str = ""
    """The file's entity tag, where the server tells one."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Credentials go along to the same server only: a hub sends on to others for the file itself."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if following is not None and urlsplit(req.full_url)[:2] == urlsplit(newurl)[:2]:
            for name, value in req.unredirected_hdrs.items():
                if name not in ("Host", "Content-length"):
                    following.add_unredirected_header(name, value)
        return following


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
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context), _Redirects()]
    if proxy:
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Another board sends nobody elsewhere."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def direct_opener() -> urllib.request.OpenerDirector:
    """What opens addresses of other boards: no proxy is asked, and no redirection followed."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())


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
    for transfer in transfers(url, target, opener=opener, pause=pause):
        progress(transfer.completed, transfer.total)
    if sha256 is not None and digest(target) != sha256:
        target.unlink()
        raise Damaged("what arrived is not the file that was asked for (its SHA-256 differs), so it was deleted")


def transfers(
    url: str,
    target: Path,
    *,
    opener: urllib.request.OpenerDirector,
    size: int | None = None,
    credentials: Mapping[str, str] | None = None,
    pause: float = 1.0,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[Transfer]:
    """The same, one step at a time; whoever stops asking leaves what has arrived for another time.

    `size` is how many bytes the file must have, where that is known. `credentials` are headers for this server alone.
    What is there is gone on with only while the server has the same file (`ETag`). Raises `DownloadFailed`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fruitless = 0
    while True:
        before = _have(target)
        asked: float | None = None
        try:
            if (yield from _attempt(url, target, opener, size, credentials or {})):
                break
            why = "the connection was cut"
        except urllib.error.HTTPError as error:
            error.close()
            asked = _judge(error, target, before)
            why = f"the server answered {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or error
            why = str(getattr(reason, "strerror", None) or reason or type(error).__name__)
        fruitless = 0 if _have(target) > before else fruitless + 1
        if fruitless >= FRUITLESS:
            raise DownloadFailed(why)
        seconds = asked if asked is not None else pause * 2 ** max(0, fruitless - 1) if fruitless else 0.0
        if seconds:
            said = "The server asks to wait" if asked is not None else f"It could not be fetched ({why})"
            yield Transfer(_have(target), size, f"{said}: again in {seconds:.0f} s.")
        wait(seconds)
    _note(target).unlink(missing_ok=True)


def seen(url: str, opener: urllib.request.OpenerDirector) -> tuple[int | None, str] | None:
    """The size and the entity tag of the file that is at `url` now, without fetching it; None where that cannot be asked."""
    # Servers that sign addresses sign them for GET alone.
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})
    try:
        with closing(opener.open(request, timeout=TIMEOUT)) as answer:
            told = answer.headers.get("Content-Length")
            if answer.status == 206:
                told = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
            return int(told) if told and told.isdecimal() else None, answer.headers.get("ETag") or ""
    except (OSError, http.client.HTTPException):
        return None


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refused(error: urllib.error.HTTPError) -> Forbidden:
    """An answer that wants credentials, as an error with what the server says of it."""
    reason = error.headers.get("X-Error-Code") or ""
    return Forbidden(f"the server answered {error.code} {error.reason}", error.code, reason)


def wait_asked(error: urllib.error.HTTPError) -> float | None:
    """The seconds that an answer asks us to wait, None when it asks for none. Raises `DownloadFailed` past `LONGEST_WAIT`."""
    asked = _seconds(error.headers.get("Retry-After"))
    if asked is not None and asked > LONGEST_WAIT:
        raise DownloadFailed(
            f"the server limits how much one may fetch, and asks to come back in {asked / 60:.0f} minutes"
        )
    return asked


def _judge(error: urllib.error.HTTPError, target: Path, before: int) -> float | None:
    """The seconds the server asks us to wait, None when it asks for none. Raises `DownloadFailed` when it is no use."""
    if error.code in (401, 403, 407):
        raise refused(error) from error
    if error.code == 416 and before:  # more is here than there: not the same file
        target.unlink()
        return None
    if error.code in (404, 410):
        raise Missing(f"the server answered {error.code} {error.reason}") from error
    if error.code < 500 and error.code not in (408, 416, 425, 429):
        raise DownloadFailed(f"the server answered {error.code} {error.reason}") from error
    return wait_asked(error)


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _have(target: Path) -> int:
    return target.stat().st_size if target.exists() else 0


def _note(target: Path) -> Path:
    """Where the entity tag of a begun file is kept."""
    return target.with_name(f"{target.name}.etag")


def _attempt(
    url: str,
    target: Path,
    opener: urllib.request.OpenerDirector,
    size: int | None,
    credentials: Mapping[str, str],
) -> Generator[Transfer, None, bool]:
    """One connection. True: the file is whole; false: it was cut short."""
    have = _have(target)
    if have and size is not None and have >= size:
        if have == size:
            return True
        target.unlink()
        have = 0
    tag = _note(target).read_text(encoding="latin-1") if have and _note(target).exists() else ""
    headers = {"Range": f"bytes={have}-"} if have else {}
    if tag and not tag.startswith("W/"):
        headers["If-Range"] = tag
    request = urllib.request.Request(url, headers=headers)
    for name, value in credentials.items():
        request.add_unredirected_header(name, value)
    with closing(opener.open(request, timeout=TIMEOUT)) as answer:
        now = answer.headers.get("ETag") or ""
        ranges = answer.headers.get("Content-Range", "")
        resumed = have > 0 and answer.status == 206 and ranges.startswith(f"bytes {have}-")
        if resumed and tag and now and now != tag:
            target.unlink()  # another file under the same address; the rest of it fits no part of ours
            return False
        if not resumed:
            have = 0  # the server knows no ranges, or has another file now, and sends everything
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else size
        if size is not None and total is not None and total != size:
            target.unlink(missing_ok=True)
            raise Damaged(f"the server has a file of {total} bytes, and it should have {size}")
        with target.open("ab" if resumed else "wb") as file:
            _note(target).write_text(now, encoding="latin-1")
            yield Transfer(have, total, tag=now)
            try:
                while data := answer.read1(CHUNK) if hasattr(answer, "read1") else answer.read(CHUNK):
                    have += len(data)
                    if total is not None and have > total:
                        break
                    file.write(data)
                    yield Transfer(have, total)
            finally:
                file.flush()
                os.fsync(file.fileno())
    if total is not None and have > total:
        target.unlink()
        raise Damaged(f"the server sent more than the {total} bytes it should have")
    return total is None or have >= total
