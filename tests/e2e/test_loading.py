"""A request for a model that is being loaded waits, and says so."""

from __future__ import annotations

import httpx
import pytest

from tests.stack import LIMIT, Stack

pytestmark = pytest.mark.full


def test_a_stream_tells_that_its_model_is_being_loaded() -> None:
    """In a comment, before its first chunk; then it answers as ever."""
    asked = {"model": "sluggish", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with Stack({"echo": {}, "sluggish": {"load_seconds": 4}}, default_model="echo", patience=0.1) as stack:
        with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=asked, timeout=LIMIT) as reply:
            said = b"".join(reply.iter_bytes()).decode()
        before, _, after = said.partition("data:")
        assert "its model is being loaded" in before
        assert after.endswith("data: [DONE]\n\n")
