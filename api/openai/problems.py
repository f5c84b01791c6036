"""Problems in OpenAI's words."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from api.errors import Problem

PARAMS = {
    "prompts": "prompt",
    "template_options": "chat_template_kwargs",
    "output": "response_format",
    "continue_last": "continue_final_message",
}
"""Fields that the shared vocabulary names otherwise."""


def render(problem: Problem, names: Mapping[str, str] = PARAMS) -> bytes:
    """The body of an error: all four keys are always there, and `code` is never a number. `names` are the endpoint's own."""
    param = problem.param
    return msgspec.json.encode(
        {
            "error": {
                "message": problem.message,
                "type": kind(problem.status),
                "param": names.get(param, param) if param else None,
                "code": problem.code,
            }
        }
    )


def kind(status: int) -> str:
    """The `type` of an error of that status."""
    if status >= 500:
        return "server_error"
    return {403: "insufficient_permissions", 429: "requests"}.get(status, "invalid_request_error")
