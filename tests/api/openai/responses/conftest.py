"""The official Python client, for tests of responses."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.api.site import Site
from tests.stack import LIMIT


@pytest.fixture
def client(place: Site) -> Iterator[openai.OpenAI]:
    """A client that does not try again by itself."""
    with openai.OpenAI(base_url=place.url + "/v1", api_key="unused", max_retries=0, timeout=LIMIT) as client:
        yield client
