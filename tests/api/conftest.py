"""One running server for the tests of the HTTP side, with a script to be set by each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.scripted import ScriptedJobs, ScriptedRoster, Site, hello, site


@pytest.fixture(scope="session")
def _running() -> Iterator[Site]:
    with site(max_body=200_000, drain=0, stalled_client=5.0) as place:
        yield place


@pytest.fixture
def place(_running: Site) -> Site:
    """The server, with its world as new."""
    _running.relay.play(*hello())
    _running.world.roster.known = ScriptedRoster().known
    _running.world.jobs.__dict__.update(ScriptedJobs().__dict__)
    _running.world.redis_down = False
    return _running
