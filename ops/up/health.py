"""Whether the service of a data directory answers, wherever it listens: `python -m ops.up.health FOLDER`, for the health check
of a container. Of our own it loads next to nothing, since it is run every few seconds."""

from __future__ import annotations

import http.client
import json
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from ops.up.lock import FILE

PATIENCE = 3.0
"""Seconds for the answer."""


def main(data_dir: Path) -> int:
    """0: it does. 1: it does not, or was never started."""
    try:
        url = urlsplit(json.loads((data_dir / FILE).read_bytes())["url"])
        # Not by urllib: a proxy that the environment names leads to no address of this machine.
        with closing(http.client.HTTPConnection(url.hostname or "", url.port, timeout=PATIENCE)) as connection:
            connection.request("GET", "/healthz")
            status = connection.getresponse().status
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"No service of {data_dir} answers: {error}", file=sys.stderr)
        return 1
    return 0 if status == http.HTTPStatus.OK else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
