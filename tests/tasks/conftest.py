"""What tests of the queue share: a clock that stands, and a Redis that comes and goes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tasks import keys
from tests.stack import Stack


@pytest.fixture
def standing(client: redis.Redis) -> None:
    """The service's clock stands, for it is far from Redis' own: nobody counts as gone because the machine was held up."""
    client.set(keys.CLOCK, "0:1000000000")


@pytest.fixture
def shaky() -> Iterator[Stack]:
    """A Valkey that can be stopped, and started again on its files."""
    stack = Stack({})
    stack.start_valkey()
    yield stack
    stack.stop()
