"""Problems in Ollama's words."""

from __future__ import annotations

import msgspec
from starlette.requests import Request

from api.errors import HttpProblem, Problem
from api.needs import services_of
from tasks.errors import UnknownModel
from tasks.roster import ModelStatus

NAMES = {
    "prompts": "prompt",
    "inputs": "input",
    "output": "format",
    "template_options": "think",
    "thinking_budget": "think",
    "context_limit": "options.num_ctx",
    "max_tokens": "options.num_predict",
}
"""Fields that the shared vocabulary names otherwise."""

BUSY = "server busy, please try again.  maximum pending requests exceeded"
"""What Ollama says of a full queue, and clients look for."""


def render(problem: Problem) -> bytes:
    """The body of an error, or its line in a stream: there is nothing but the text in it."""
    message = problem.message
    if problem.code == "rate_limit_exceeded":
        message = f"{BUSY}. {message}"
    elif problem.param in NAMES:
        message = message.replace(problem.param, NAMES[problem.param], 1)
    return msgspec.json.encode({"error": message})


async def named(http: Request, name: str) -> ModelStatus:
    """The model of that name. Raises `HttpProblem` with the sentence by which Ollama's clients know that there is none."""
    try:
        return await services_of(http)["roster"].find(name)
    except UnknownModel as error:
        message = f"model '{name[:100]}' not found"
        if error.refused is not None:
            message += f": the board '{error.refused[0]}' has its files, but they cannot be used: {error.refused[1]}"
        elif error.nearest is not None:
            message += f", did you mean '{error.nearest}'?"
        raise HttpProblem(Problem(404, "model_not_found", message, "model")) from None
