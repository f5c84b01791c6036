"""Problems in Anthropic's words."""

from __future__ import annotations

import msgspec

from api.errors import Problem

PARAMS = {
    "stop": "stop_sequences",
    "output": "output_config.format",
    "thinking_budget": "thinking.budget_tokens",
    "template_options": "thinking",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "continue_last": "messages",
}
"""Fields that the shared vocabulary names otherwise."""

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

STATUSES = {503: 529}
"""Clients of this dialect know its own status for a service that cannot answer now, and come again."""


def render(problem: Problem) -> bytes:
    """The body of an error. There is no field for the one at fault, so the message begins with its name."""
    param, message = PARAMS.get(problem.param or "", problem.param), problem.message
    if param and f"'{param}'" not in message:
        message = f"{param}: {message}"
    error = {"type": "error", "error": {"type": kind(problem.status), "message": message}}
    return msgspec.json.encode(error | {"request_id": problem.request} if problem.request else error)


def kind(status: int) -> str:
    """The `type` of an error of that status."""
    return KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
