"""Hugging Face's repositories: which files one has, how large they are, what they hash to, and who may have them."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from tasks.board.pull.download import DownloadFailed, Forbidden, refused, wait_asked
from tasks.board.pull.errors import PullFailed
from tasks.commands import CommandCode

ENDPOINT: Final = "https://huggingface.co"
MOST_BYTES: Final = 32 << 20
"""Of a listing."""
TRIES: Final = 4
TIMEOUT: Final = 30.0


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository."""

    path: str
    size: int | None
    sha256: str | None
    """None for small files, whose digests the hub does not tell."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository has at one commit."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]
    licence: str = ""
    bases: tuple[str, ...] = ()
    """The models that it says it was made from."""

    def file(self, path: str) -> HubFile | None:
        """The file of that path."""
        return next((file for file in self.files if file.path == path), None)


class Hub:
    """One hub, or a mirror of it. `token` is sent to it and to nobody else."""

    def __init__(
        self,
        network: urllib.request.OpenerDirector,
        endpoint: str = ENDPOINT,
        token: str | None = None,
        *,
        pause: float = 1.0,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self.network = network
        self.endpoint = endpoint.rstrip("/")
        self._token = token
        self._pause = pause
        self._wait = wait

    @property
    def credentials(self) -> Mapping[str, str]:
        """Headers that say who asks."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def address(self, repository: str, commit: str, path: str) -> str:
        """Where a file is downloaded from."""
        return f"{self.endpoint}/{repository}/resolve/{quote(commit, safe='')}/{quote(path)}"

    def listing(self, repository: str, revision: str) -> Listing:
        """The files of a repository. Raises `PullFailed`."""
        url = f"{self.endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
        try:
            table = json.loads(self._get(url, repository))
            card = table.get("cardData") or {}
            base = card.get("base_model") or ()
            return Listing(
                repository=repository,
                commit=str(table["sha"]),
                files=tuple(map(_file, table["siblings"])),
                licence=_plain(card.get("license_name") or card.get("license") or ""),
                bases=(base,) if isinstance(base, str) else tuple(base),
            )
        except DownloadFailed as error:
            raise PullFailed(
                CommandCode.NETWORK, f"{self.endpoint} was asked for {repository}, but {error}."
            ) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise PullFailed(
                CommandCode.NETWORK, f"{self.endpoint} answered something else than the list of files of {repository}."
            ) from error

    def forbidden(self, repository: str, error: Forbidden) -> PullFailed:
        """What to do about a repository that is not open to whoever asks."""
        page = f"{self.endpoint}/{repository}"
        tokens = f"{self.endpoint}/settings/tokens"
        if error.reason == "GatedRepo" or error.status == 403:
            what = f"{page} is gated: its owner wants to know who downloads it."
            if self._token:
                do = (
                    "Open that page as the owner of your token, accept the terms, wait for a yes if it says so, and check "
                    f"that the token may read gated repositories ({tokens})."
                )
            else:
                do = (
                    f"Open that page, accept the terms, make a token that may read ({tokens}), and set it: HF_TOKEN=… in the "
                    "environment of this command or of the board."
                )
        elif self._token:
            what = f"{page} does not exist, or is not open to the owner of the token in HF_TOKEN, or the token is not valid."
            do = f"Check the name, and the token ({tokens})."
        else:
            what = f"{page} does not exist, or is private."
            do = f"Check the name; if it is private, set HF_TOKEN to a token that may read it ({tokens})."
        return PullFailed(CommandCode.SOURCE_FORBIDDEN, f"{what} {do}")

    def _get(self, url: str, repository: str) -> bytes:
        why = ""
        for attempt in range(TRIES):
            request = urllib.request.Request(url, headers={"Accept": "application/json"})
            for name, value in self.credentials.items():
                request.add_unredirected_header(name, value)
            asked: float | None = None
            try:
                with closing(self.network.open(request, timeout=TIMEOUT)) as answer:
                    data: bytes = answer.read(MOST_BYTES + 1)
                if len(data) > MOST_BYTES:
                    raise PullFailed(
                        CommandCode.NETWORK, f"The list of files of {repository} is longer than any real one."
                    )
                return data
            except urllib.error.HTTPError as error:
                error.close()
                why = f"the server answered {error.code} {error.reason}"
                if error.code in (401, 403):
                    raise self.forbidden(repository, refused(error)) from error
                if error.code == 404:
                    raise PullFailed(
                        CommandCode.SOURCE_MISSING,
                        f"{self.endpoint}/{repository} does not exist, or has no such revision. Check the name.",
                    ) from error
                if error.code < 500 and error.code not in (408, 425, 429):
                    break
                asked = wait_asked(error)
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                reason = getattr(error, "reason", None) or error
                why = str(getattr(reason, "strerror", None) or reason)
            if attempt < TRIES - 1:
                self._wait(asked if asked is not None else self._pause * 2**attempt)
        raise PullFailed(
            CommandCode.NETWORK,
            f"{self.endpoint} could not be asked for {repository}: {why}. Check the network and the proxy (HTTPS_PROXY), or name "
            "a mirror with HF_ENDPOINT.",
        )


def _plain(text: object) -> str:
    """What somebody else wrote, fit for one line."""
    return "".join(each for each in str(text) if each.isprintable())[:100]


def _file(entry: dict[str, Any]) -> HubFile:
    large = entry.get("lfs") or {}
    size = large.get("size", entry.get("size"))
    sha256 = large.get("sha256")
    return HubFile(
        path=str(entry["rfilename"]),
        size=size if isinstance(size, int) else None,
        sha256=sha256 if isinstance(sha256, str) and len(sha256) == 64 else None,
    )
