"""A response's request in the shared vocabulary."""

from __future__ import annotations

from typing import Any

from api.errors import invalid
from api.openai.responses.items import Items, messages_of
from api.openai.responses.schemas import OutputText, ResponseBody
from api.openai.responses.tools import Offer, choice
from api.openai.translate.sampling import at_most, to_sampling
from tasks.requests import ChatRequest, JsonObject, JsonSchema, OutputFormat

LOGPROBS = "message.output_text.logprobs"


def to_request(body: ResponseBody, items: Items, offered: Offer) -> ChatRequest:
    """What the body asks for, with the whole conversation in `items`. Raises `HttpProblem`."""
    messages = messages_of(items, body.instructions)
    if not messages:
        raise invalid("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    return ChatRequest(
        messages=messages,
        sampling=to_sampling(body),
        max_tokens=at_most(body.max_output_tokens),
        stop=body.stop,
        template_options=_template_options(body),
        tools=offered.tools,
        tool_choice=choice(body.tool_choice, offered),
        parallel_tool_calls=body.parallel_tool_calls,
        output=_output(body.text.format),
        logprobs=logprobs_of(body),
        overflow="truncate" if body.truncation == "auto" else "refuse",
    )


def logprobs_of(body: ResponseBody) -> int | None:
    """How many likeliest tokens are wanted at each place; None is no log probabilities at all."""
    if body.top_logprobs is not None:
        return body.top_logprobs if body.top_logprobs or LOGPROBS in body.include else None
    return 0 if LOGPROBS in body.include else None


def _output(asked: OutputText) -> OutputFormat | None:
    match asked.type:
        case "json_schema":
            return JsonSchema(asked.schema_ or {})
        case "json_object":
            return JsonObject()
        case "text":
            return None


def _template_options(body: ResponseBody) -> dict[str, Any]:
    effort = body.reasoning.effort
    if effort is None:
        return {}
    if effort in ("none", "minimal"):
        return {"enable_thinking": False}
    return {"enable_thinking": True, "reasoning_effort": effort}
