"""Whole exchanges, as they are on the wire.

Each file in `golden/` holds a request, the events that the queue answers with, and the whole response. After a wanted change,
`python tests/api/anthropic/test_anthropic_golden.py` writes the responses anew; the difference is then read before it is kept.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.api.exchanges import play, record
from tests.api.site import Site

FILES = sorted((Path(__file__).parent / "golden").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_exchange_is_as_recorded(place: Site, path: Path) -> None:
    """To the byte in streams, to the value in whole answers."""
    exchange = json.loads(path.read_text(encoding="utf-8"))
    assert play(place, exchange) == exchange["response"]


def test_there_are_exchanges() -> None:
    """An empty folder would prove nothing."""
    assert len(FILES) >= 10


if __name__ == "__main__":
    record(FILES)
