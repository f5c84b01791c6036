"""What tests of the queue share: a Redis that comes and goes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack import Stack


@pytest.fixture
def shaky() -> Iterator[Stack]:
    """A Valkey that can be stopped, and started again on its files."""
    stack = Stack({})
    stack.start_valkey()
    yield stack
    stack.stop()
