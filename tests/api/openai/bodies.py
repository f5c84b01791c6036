"""Bodies of OpenAI without a server: what is made of them, or said of what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from api.body import check
from api.errors import HttpProblem
from api.openai.schemas import ChatCompletionBody
from api.openai.translate import chat
from api.settings import ApiSettings
from tasks.requests import ChatRequest

USER = {"role": "user", "content": "Hi"}


def refusal(shape: Any, body: dict[str, Any]) -> tuple[str | None, str | None]:
    """Parameter and code by which a body is refused."""
    with pytest.raises(HttpProblem) as caught:
        check(body, shape, ApiSettings())
    assert caught.value.problem.status == 400
    return caught.value.problem.param, caught.value.problem.code


def chat_request(**fields: Any) -> ChatRequest:
    """What a chat body with these fields asks for."""
    return chat.to_request(check({"messages": [USER]} | fields, ChatCompletionBody, ApiSettings()))
