"""The body of `POST /v1/responses`, and the items of its input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo, WithJsonSchema, model_validator
from pydantic.types import FailFast
from typing_extensions import TypeAliasType

from api.body import Whole, Wire, bounded
from api.openai.refusals import REFUSED, of_other_dialects
from api.openai.schemas import Content, Effort, SamplingBody
from api.refusals import Refusal, refuse, refused

MAX_TOOLS = 512

_FORMAT = "What an answer is held to stands in 'text.format'."
_LENGTH = "The most tokens of a response stand in 'max_output_tokens'."
_TOOLS = "Send {field} as 'tools' and 'tool_choice', as this endpoint has them."
_THINKING = "How much is thought stands in 'reasoning.effort'."
_LOGPROBS = 'Ask for log probabilities with "include": ["message.output_text.logprobs"] and \'top_logprobs\'.'

REFUSED_IN_RESPONSES: Mapping[str, Refusal] = {
    **{
        name: each
        for name, each in of_other_dialects(_LENGTH, _FORMAT, "Send it as 'instructions'.").items()
        if name not in ("max_output_tokens", "instructions")
    },
    "continue_final_message": ((False,), "An answer is begun by the model here."),
    "add_generation_prompt": ((True,), "An answer is begun by the model here."),
    "thinking": ((), _THINKING),
    "enable_thinking": ((), _THINKING),
    "messages": (([],), "The conversation stands in 'input'."),
    "n": ((1,), "There is one answer to a request here."),
    "max_tokens": ((), _LENGTH),
    "max_completion_tokens": ((), _LENGTH),
    "functions": (([],), _TOOLS),
    "function_call": (("none", "auto"), _TOOLS),
    "response_format": (({"type": "text"},), _FORMAT),
    "json_schema": (({},), _FORMAT),
    "grammar": (("",), _FORMAT),
    "guided_json": (({}, ""), _FORMAT),
    "guided_regex": (("",), _FORMAT),
    "guided_choice": (([],), _FORMAT),
    "guided_grammar": (("",), _FORMAT),
    "structured_outputs": (({},), _FORMAT),
    "logprobs": ((False,), _LOGPROBS),
    "best_of": ((1,), "There is one answer to a request here."),
    "reasoning_effort": ((), _THINKING),
    "think": ((), _THINKING),
    "chat_template_kwargs": (({},), _THINKING),
    "thinking_budget_tokens": ((-1,), _THINKING),
    "conversation": ((), "Conversations are not kept here; go on with 'previous_response_id', or send all of 'input'."),
    "prompt": ((), "Prompts are not kept here; send what one says as 'instructions' and 'input'."),
}
"""What this endpoint has under another name, or not at all."""

HONOURED = frozenset({"tools", "tool_choice", "top_logprobs"})
"""Fields that this endpoint takes, whatever the others of this front do."""
REFUSED_ELSEWHERE: Mapping[str, Refusal] = {name: each for name, each in REFUSED.items() if name not in HONOURED}


class Thought(Wire):
    """A part of a reasoning item."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


Thoughts = TypeAliasType("Thoughts", Annotated[list[Thought], FailFast(), Field(max_length=4096)])


class Item(Wire):
    """One item of the input. Which fields it needs depends on its type; without one it is a message, or a reference."""

    type: str = "message"
    id: str | None = Field(None, max_length=256)
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | Thoughts | None = None
    summary: Thoughts = Field(default_factory=list)
    call_id: str | None = Field(None, max_length=512)
    name: str | None = Field(None, max_length=512)
    namespace: str | None = Field(None, max_length=512)
    arguments: str | None = None
    input: str | None = None
    output: Content | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("type") is None and "role" not in data and "id" in data:
            return data | {"type": "item_reference"}
        return data

    @model_validator(mode="after")
    def _whole(self) -> Item:
        needed = NEEDED.get(self.type)
        if needed is None:
            raise refused(
                f"Items of type '{self.type[:40]}' are not supported: nothing here makes or reads them.",
                "type",
                "unsupported_content",
            )
        for field in needed:
            if getattr(self, field) is None:
                raise refused(
                    f"An item of type '{self.type}' should have '{field}'.", field, code="missing_required_parameter"
                )
        if (
            self.type == "message"
            and isinstance(self.content, list)
            and any(isinstance(p, Thought) for p in self.content)
        ):
            raise refused("A message has no parts of type 'reasoning_text'.", "content", code="unsupported_content")
        return self


NEEDED: Mapping[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "reasoning": (),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id", "output"),
    "item_reference": ("id",),
}
"""The types of items there are, and the fields of each that may not be left out."""


def _items(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list):
        bounded(len(value), info, "max_messages", "items")
        return value
    raise ValueError("it should be a string or a list of items")


class OutputText(Wire):
    """What the text of an answer is held to."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> OutputText:
        if self.type == "json_schema" and self.schema_ is None:
            raise refused(
                "A format of type 'json_schema' should have 'schema'.", "schema", code="missing_required_parameter"
            )
        return self


class TextOptions(Wire):
    """How the answer's text is to be."""

    format: OutputText = OutputText()
    verbosity: str | None = None


class ReasoningOptions(Wire):
    """How much the model should think, and whether its thoughts are wanted in the place of a summary."""

    effort: Effort | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ItemToolOffer(Wire):
    """A tool as a client offers it; `tools` are those of a namespace."""

    type: str
    name: str | None = Field(None, max_length=512)
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: dict[str, Any] | None = None
    tools: Annotated[list[ItemToolOffer], FailFast(), Field(max_length=MAX_TOOLS, default_factory=list)]

    @model_validator(mode="after")
    def _has_name(self) -> ItemToolOffer:
        if self.type in ("function", "custom", "namespace") and not self.name:
            raise refused(f"A tool of type '{self.type}' should have 'name'.", "name", "missing_required_parameter")
        return self


def _choice(value: Any) -> dict[str, Any]:
    if value in ("none", "auto", "required"):
        return {"type": value}
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        return value
    raise ValueError("it should be 'none', 'auto', 'required', or an object with a 'type'")


def _writable(data: Any) -> Any:
    # Not everybody who reads what is asked for can hold larger ones: templates are rendered in another process.
    try:
        msgspec.msgpack.encode(data)
    except OverflowError:
        raise refused("Integers should fit into 64 bits.", code="invalid_value") from None
    return data


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError("it should be an object of strings")
    if len(value) > 16 or any(len(name) > 64 or len(each) > 512 for name, each in value.items()):
        raise ValueError("it should have at most 16 entries, with names of 64 and values of 512 characters at most")
    return value


class ResponseBody(SamplingBody):
    """The body of `POST /v1/responses`."""

    input: Annotated[list[Item], FailFast(), BeforeValidator(_items), Field(default_factory=list)]
    instructions: str | None = None
    previous_response_id: str | None = Field(None, max_length=256)
    store: bool = True
    background: bool = False
    max_output_tokens: Whole | None = Field(None, ge=1, lt=2**63)
    max_tool_calls: Whole | None = None
    tools: Annotated[list[ItemToolOffer], FailFast(), Field(max_length=MAX_TOOLS, default_factory=list)]
    tool_choice: Annotated[
        dict[str, Any],
        PlainValidator(_choice),
        WithJsonSchema({"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]}, {"type": "object"}]}),
        Field(default_factory=lambda: {"type": "auto"}),
    ]
    parallel_tool_calls: bool = True
    text: TextOptions = TextOptions()
    reasoning: ReasoningOptions = ReasoningOptions()
    include: list[str] = Field(default_factory=list, max_length=64)
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    truncation: Literal["auto", "disabled"] = "disabled"
    metadata: Annotated[
        dict[str, str],
        PlainValidator(_metadata),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
        Field(default_factory=dict),
    ]
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        refuse(data, REFUSED_ELSEWHERE, REFUSED_IN_RESPONSES)
        return _writable(data)

    @model_validator(mode="after")
    def _kept(self) -> ResponseBody:
        if self.background and not self.store:
            raise refused(
                "A response in the background is one that is stored: leave 'store' out.", "background", "invalid_value"
            )
        return self
