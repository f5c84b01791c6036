"""What of a response is the same from its beginning to its end, and the object that it makes with the rest."""

from __future__ import annotations

from typing import Any

import msgspec

from api.openai.responses.request import logprobs_of
from api.openai.responses.schemas import ResponseBody
from api.openai.responses.tools import Caller, Offer
from tasks.events import Timings, Usage

PREFIX = "resp_"


class Head(msgspec.Struct, frozen=True):
    """`fields` are those of the object that were settled when the response began, the job's id and the time among them.

    `summary`: thoughts are told in the place of a summary. `logprobs`: how many are told for each token; None is none at all.
    """

    job: str
    created: int
    background: bool
    streamed: bool
    summary: bool
    logprobs: int | None
    callers: dict[str, Caller]
    fields: dict[str, Any]


def head_of(body: ResponseBody, offered: Offer, job: str, model: str, created: int) -> Head:
    """Of the response to this body, which this job makes."""
    summary = body.reasoning.summary or body.reasoning.generate_summary
    form: dict[str, Any] = {"type": body.text.format.type}
    if form["type"] == "json_schema":
        wanted = body.text.format
        form |= {"name": wanted.name or "answer", "description": wanted.description, "schema": wanted.schema_}
        form |= {"strict": bool(wanted.strict)}
    asked = body.tool_choice
    fields: dict[str, Any] = {
        "background": body.background,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "model": model,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning.effort, "summary": summary},
        "safety_identifier": body.safety_identifier,
        "service_tier": "flex" if body.service_tier == "flex" else "default",
        "store": body.store,
        # Those of the model are not known here, so what was left out is said to be what the wire has for it.
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "text": {"format": form, "verbosity": body.text.verbosity or "medium"},
        "tool_choice": asked["type"] if asked["type"] in ("none", "auto", "required") else asked,
        "tools": offered.shown,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": body.truncation,
        "user": body.user,
        "metadata": body.metadata,
    }
    return Head(
        job=job,
        created=created,
        background=body.background,
        streamed=body.stream,
        summary=summary is not None,
        logprobs=logprobs_of(body),
        callers=offered.callers,
        fields=fields,
    )


def response(
    head: Head,
    status: str,
    output: list[dict[str, Any]],
    *,
    error: dict[str, Any] | None = None,
    reason: str | None = None,
    usage: dict[str, Any] | None = None,
    completed: int | None = None,
) -> dict[str, Any]:
    """The response as it stands."""
    return {
        "id": PREFIX + head.job,
        "object": "response",
        "created_at": head.created,
        "status": status,
        "completed_at": completed,
        "error": error,
        "incomplete_details": None if reason is None else {"reason": reason},
        "output": output,
        "usage": usage,
        **head.fields,
    }


def usage(counts: Usage) -> dict[str, Any]:
    """Tokens as this endpoint counts them."""
    details = {"cached_tokens": counts.cached_tokens, "cache_write_tokens": 0}
    return {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": details | ({"left_out_tokens": counts.left_out} if counts.left_out else {}),
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
    }


def completed_at(head: Head, timings: Timings) -> int:
    """When an answer was whole, in unix seconds: a stream that is said again has to say the same."""
    took = timings.queued_ms + timings.load_ms + timings.prefill_ms + timings.decode_ms
    return head.created + round(took / 1000)
