"""The line that people are given to try a model with."""

from __future__ import annotations

import json
import shlex

import pytest

from api.try_it import try_it


@pytest.mark.parametrize(
    ("capabilities", "path", "field"),
    [
        (["completion", "chat", "embedding"], "chat/completions", "messages"),
        (["completion"], "completions", "prompt"),
        (["embedding"], "embeddings", "input"),
        (["rerank"], "rerank", "documents"),
        ([], "chat/completions", "messages"),
    ],
)
def test_it_asks_for_what_the_model_can(capabilities: list[str], path: str, field: str) -> None:
    """A shell takes it as it stands, with the model's name in a body that is JSON; and a key only where one is needed."""
    words = shlex.split(try_it("http://board:8080", "tiny", capabilities).replace("\\\n", ""))
    assert words[:2] == ["curl", f"http://board:8080/v1/{path}"]
    body = json.loads(words[-1])
    assert body["model"] == "tiny" and field in body
    assert "Bearer" not in " ".join(words)
    assert "'Authorization: Bearer YOUR-KEY'" in try_it("http://board:8080", None, capabilities, key=True)
