"""Problems in Ollama's words."""

from __future__ import annotations

import msgspec
from starlette.requests import Request

from api.errors import HttpProblem, Problem, of_error
from api.needs import services_of
from tasks.commands import CommandCode
from tasks.errors import CommandFailed, UnknownModel
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

SHELF: dict[str, int] = {
    CommandCode.MODEL_MISSING: 404,
    CommandCode.NAME_REFUSED: 400,
    CommandCode.MODEL_IN_USE: 409,
    CommandCode.NOT_POSSIBLE: 400,
    CommandCode.SOURCE_MISSING: 404,
    CommandCode.FILE_MISSING: 400,
    CommandCode.SOURCE_FORBIDDEN: 403,
    CommandCode.DOES_NOT_FIT: 400,
    CommandCode.NO_ROOM_YET: 503,
    CommandCode.RUNTIME_REFUSED: 409,
    CommandCode.NO_SPACE: 507,
    CommandCode.DAMAGED: 502,
    CommandCode.NETWORK: 502,
    CommandCode.PULL_FORGOTTEN: 502,
}
"""The status of each reason for which a board does not change its models."""

BUSY = "server busy, please try again.  maximum pending requests exceeded"
"""What Ollama says of a full queue, and clients look for."""


def render(problem: Problem) -> bytes:
    """The body of an error, or its line in a stream: there is nothing but the text in it."""
    message = problem.message
    if problem.code == "rate_limit_exceeded":
        message = f"{BUSY}. {message}"
    elif (field := NAMES.get(problem.param or "")) is not None and field not in message:
        # There is nothing but the sentence here to name a field, so it has to.
        message = f"{field}: {message}"
    return msgspec.json.encode({"error": message})


def of_shelf(error: CommandFailed) -> Problem:
    """Why a board could not fetch, make or remove a model. What is no such reason keeps the status that it has everywhere."""
    status = SHELF.get(error.code)
    if status is None:
        return of_error(error)
    message = str(error)
    if error.code == CommandCode.SOURCE_MISSING:
        message = f"pull model manifest: file does not exist: {message}"
    return Problem(status, error.code, message)


async def named(http: Request, name: str, quote: str = "'") -> ModelStatus:
    """The model of that name. Raises `HttpProblem` with the sentence by which Ollama's clients know that there is none."""
    try:
        return await services_of(http)["roster"].find(name)
    except UnknownModel as error:
        raise missing(error, quote) from None


def missing(error: UnknownModel, quote: str = "'") -> HttpProblem:
    """That sentence."""
    message = f"model {quote}{error.name[:100]}{quote} not found"
    if error.refused is not None:
        message += f": the board '{error.refused[0]}' has its files, but they cannot be used: {error.refused[1]}"
    elif error.nearest is not None:
        message += f", did you mean '{error.nearest}'?"
    return HttpProblem(Problem(404, "model_not_found", message, "model"))
