"""A whole service for the tests of one module."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.fakes.standing import Standing
from tests.stack import LIMIT, Stack


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Standing:
    """Has the answers of the module's service stand still."""
    return Standing(tmp_path_factory.mktemp("standing"))


@pytest.fixture(scope="module")
def stack(standing: Standing) -> Iterator[Stack]:
    """Echo at three paces: as fast as it can, at a readable pace, and with a prefill one can see; and some for one thing."""
    stack = Stack(
        {
            "echo": {},
            "steady": {"tokens_per_second": 100},
            "ponderous": {"prefill_tokens_per_second": 100},
            "sluggish": {"load_seconds": 3},
            "hostile": {},
        },
        default_model="echo",
        queue_limit=8,
        max_body=1_000_000,
        worker_grace=1,
        trusted_proxies="127.0.0.1",
    )
    stack.preload(standing.environment)
    stack.add_model("writer", {}, 'abilities = ["text"]')
    stack.add_model("reader", {}, 'abilities = ["embedding"]')
    with stack:
        yield stack


@pytest.fixture
def openai_client(stack: Stack) -> openai.OpenAI:
    """The official client, as its users configure it."""
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=LIMIT)
