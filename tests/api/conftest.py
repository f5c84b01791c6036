"""One running server for the tests of the HTTP side, with a script to be set by each."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.api.scripted import hello
from tests.api.scripted_services import (
    ScriptedBoards,
    ScriptedCommander,
    ScriptedJobs,
    ScriptedKeys,
    ScriptedQueues,
    ScriptedRoster,
    ScriptedShelf,
    ScriptedTexts,
)
from tests.api.site import RequestLines, Site, site


@pytest.fixture(scope="session")
def _running() -> Iterator[Site]:
    with site(max_body=200_000, drain=0, stalled_client=5.0) as place:
        yield place


@pytest.fixture
def place(_running: Site) -> Site:
    """The server, with its world as new."""
    _running.relay.play(*hello())
    _running.relay.rendering = None
    _running.world.roster.__dict__.update(ScriptedRoster().__dict__)
    _running.world.jobs.__dict__.update(ScriptedJobs().__dict__)
    _running.world.queues.__dict__.update(ScriptedQueues().__dict__)
    _running.world.boards.__dict__.update(ScriptedBoards().__dict__)
    _running.world.api_keys.__dict__.update(ScriptedKeys().__dict__)
    _running.world.commander.__dict__.update(ScriptedCommander().__dict__)
    _running.world.shelf.__dict__.update(ScriptedShelf().__dict__)
    _running.world.texts.__dict__.update(ScriptedTexts().__dict__)
    _running.world.redis_down = False
    return _running


@pytest.fixture
def lines() -> Iterator[RequestLines]:
    """What the API logs during the test, at every level."""
    log = logging.getLogger("rockchipllama.api")
    level, handler = log.level, RequestLines()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)
