"""Whether the service that runs here answers, wherever it listens: `python -m ops.up.health`, for the health check of a
container. Of our own it loads next to nothing, since it is run every few seconds."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ops.up.lock import FILE

PATIENCE = 3.0
"""Seconds for the answer."""


def main(processes: Path = Path("/proc")) -> int:
    """0: it does. 1: it does not, or was never started."""
    held = set(_held(processes))
    if not held:
        print("No service of this user runs here.", file=sys.stderr)
        return 1
    return 0 if all(map(_answers, held)) else 1


def _held(processes: Path) -> Iterator[Path]:
    """The locks of data directories that are in use. Any file or command line may have named those, so who has a lock open is
    looked for."""
    for process in processes.glob("[0-9]*"):
        descriptors = process / "fd"
        with contextlib.suppress(OSError):  # another user's, or it has just ended
            for name in os.listdir(descriptors):
                with contextlib.suppress(OSError):
                    file = Path(os.readlink(descriptors / name))
                    if file.name == FILE:
                        yield file


def _answers(held: Path) -> bool:
    try:
        url = urlsplit(json.loads(held.read_bytes())["url"])
        # Not by urllib: a proxy that the environment names leads to no address of this machine.
        with contextlib.closing(
            http.client.HTTPConnection(url.hostname or "", url.port, timeout=PATIENCE)
        ) as connection:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        print(f"No service of {held.parent} answers: {error}", file=sys.stderr)
        return False


if __name__ == "__main__":
    sys.exit(main())
