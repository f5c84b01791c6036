"""Responses in batches and as jobs that nobody waits for: each stands for itself, and is not stored."""

from __future__ import annotations

import time

from pydantic import model_validator

from api.errors import HttpProblem
from api.openai.responses.head import head_of
from api.openai.responses.items import with_types
from api.openai.responses.request import to_request as to_request_with
from api.openai.responses.schemas import ResponseBody
from api.openai.responses.stored import keep
from api.openai.responses.tools import offer
from api.refusals import refused
from tasks.jobs import Rendering
from tasks.requests import ChatRequest
from tasks.roster import ModelStatus


class LoneResponseBody(ResponseBody):
    """The body of such a response."""

    @model_validator(mode="after")
    def _alone(self) -> LoneResponseBody:
        if self.previous_response_id is not None:
            raise refused(
                "A request in a batch or a job cannot go on with a response; send all of 'input'.",
                "previous_response_id",
            )
        if self.background:
            raise refused("It is in the background anyway; leave 'background' out.", "background")
        if any(item.type == "item_reference" for item in self.input):
            raise refused("A request in a batch or a job cannot refer to items of responses; send them.", "input")
        try:
            to_request(self)
        except HttpProblem as error:
            problem = error.problem
            raise refused(problem.message, problem.param, problem.code or "invalid_value") from None
        return self


def to_request(body: LoneResponseBody) -> ChatRequest:
    """What the body asks for, in the shared vocabulary."""
    items = with_types(item.model_dump(exclude_none=True) for item in body.input)
    return to_request_with(body, items, offer(body.tools))


def rendering(body: LoneResponseBody, job: str, status: ModelStatus) -> Rendering:
    """How the response is said: as its endpoint would, but that it is not stored."""
    alone = body.model_copy(update={"store": False})
    return keep(head_of(alone, offer(body.tools), job, body.model or status.name, int(time.time())))
