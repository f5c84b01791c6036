"""What Open WebUI and Home Assistant send, put together as their sources do, and what they get.

Each file in `recorded/` also says what is expected of the request: its lane, and how its system message is read. After a wanted
change, `python -m tests.api.test_recorded_clients` writes the responses anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.requests import ChatRequest
from tests.api.exchanges import play, record
from tests.api.site import Site

FILES = sorted((Path(__file__).parent / "recorded").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_client_gets_what_it_reads(place: Site, path: Path) -> None:
    """To the byte in streams; and the queue gets what the client meant."""
    exchange = json.loads(path.read_text(encoding="utf-8"))
    assert play(place, exchange) == exchange["response"]
    asked = place.relay.calls[-1]
    assert asked.lane == exchange["expect"]["lane"]
    assert isinstance(asked.request, ChatRequest)
    if "system" in exchange["expect"]:
        assert asked.request.messages[0].content == exchange["expect"]["system"]
        assert [tool.name for tool in asked.request.tools] == ["HassTurnOn", "GetLiveContext", "HassLightSet"]
        assert asked.request.context_limit == 2048


def test_there_are_recordings() -> None:
    """An empty folder would prove nothing."""
    assert len(FILES) >= 10


if __name__ == "__main__":
    record(FILES)
