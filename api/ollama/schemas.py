"""The bodies of the Ollama wire."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, model_validator
from pydantic.types import FailFast

from api.body import Whole, Wire, bounded
from api.keep_alive import KeepAlive
from api.ollama.options import OllamaOptions
from api.ollama.refusals import REFUSED
from api.refusals import refuse, refused

LEVELS = ("low", "medium", "high", "max")

GO = re.compile(r"\{\{-?\s*(?:\.|\$|(?:if|else|end|range|with|template|block|define|break|continue)\b)")
"""What a template of Go's has, in which Ollama's are written."""


def _think(value: Any) -> bool | str:
    if isinstance(value, bool) or value in LEVELS:
        return value  # type: ignore[no-any-return]
    raise refused(f'invalid think value: {str(value)[:40]!r} (must be "high", "medium", "low", "max", true, or false)')


def _format(value: Any) -> Any:
    if value in ("", "json") or isinstance(value, dict):
        return value
    shown = value if isinstance(value, str) else type(value).__name__
    raise refused(
        f'invalid format: "{shown[:40]}"; expected "json" or a valid JSON Schema object', code="invalid_value"
    )


Think = Annotated[
    bool | str | None,
    PlainValidator(_think),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string", "enum": list(LEVELS)}]}),
]
Format = Annotated[
    str | dict[str, Any] | None,
    PlainValidator(_format),
    WithJsonSchema({"anyOf": [{"type": "string", "enum": ["", "json"]}, {"type": "object"}]}),
]


def check_template(template: str) -> None:
    """Refuse one that is written for Ollama."""
    if GO.search(template):
        raise refused(
            "template is written in Go's language, as Ollama's are; here a template is Jinja, as models bring it along. Leave "
            "template out to use the model's own",
            "template",
        )


class ModelBody(Wire):
    """A body that names a model."""

    model: str = Field("", max_length=512)

    @model_validator(mode="after")
    def _named(self) -> ModelBody:
        if not self.model:
            raise refused("model is required", "model", "missing_required_parameter")
        return self


class GenerationBody(ModelBody):
    """What both ways to generate share."""

    stream: bool = True
    options: OllamaOptions = OllamaOptions()
    format: Format = None
    keep_alive: KeepAlive = None
    think: Think = None
    truncate: bool = True
    logprobs: bool = False
    top_logprobs: Whole = 0

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        refuse(data, REFUSED)
        return data

    @model_validator(mode="after")
    def _likeliest(self) -> GenerationBody:
        if not 0 <= self.top_logprobs <= 20:
            raise refused("top_logprobs must be between 0 and 20", "top_logprobs", "invalid_value")
        return self


class OllamaCalled(Wire):
    """The function of a call."""

    name: str = Field(max_length=256)
    arguments: dict[str, Any] = Field({})


class OllamaCall(Wire):
    """A call the model made in an earlier turn."""

    id: str | None = Field(None, max_length=256)
    function: OllamaCalled


class OllamaMessage(Wire):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str | None = None
    tool_calls: list[OllamaCall] = Field([], max_length=512)
    tool_name: str | None = Field(None, max_length=256)
    tool_call_id: str | None = Field(None, max_length=256)
    images: list[Any] = Field([])


class OllamaFunction(Wire):
    """A function the model may call."""

    name: str = Field(min_length=1, max_length=256)
    description: str = ""
    parameters: dict[str, Any] | None = None


class OllamaTool(Wire):
    """A tool; there are only functions."""

    type: Literal["function"] = "function"
    function: OllamaFunction


class ChatBody(GenerationBody):
    """The body of `POST /api/chat`."""

    messages: Annotated[list[OllamaMessage], FailFast()] = Field([])
    tools: list[OllamaTool] = Field([], max_length=512)

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, data: Any, info: ValidationInfo) -> Any:
        messages = data.get("messages") if isinstance(data, dict) else None
        if isinstance(messages, list):
            bounded(len(messages), info, "max_messages", "messages")
        return data


class GenerateBody(GenerationBody):
    """The body of `POST /api/generate`."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = Field("", max_length=1_000_000)
    context: list[Whole] = Field([], max_length=1_000_000)
    raw: bool = False
    images: list[Any] = Field([])

    @model_validator(mode="after")
    def _plain(self) -> GenerateBody:
        if self.raw and (self.template or self.system or self.context):
            raise refused("raw mode does not support template, system, or context", "raw")
        if self.suffix and (self.raw or self.template or self.system or self.context):
            raise refused(
                "a gap before suffix is filled without a conversation: leave raw, template, system and context out",
                "suffix",
            )
        check_template(self.template)
        return self


def _inputs(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value] if value else []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise refused("invalid input type", code="invalid_type")
    bounded(len(value), info, "max_inputs", "inputs")
    return tuple(value)


class EmbedBody(ModelBody):
    """The body of `POST /api/embed`."""

    input: Annotated[
        tuple[str, ...],
        PlainValidator(_inputs),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
    ] = ()
    truncate: bool = True
    dimensions: Whole | None = Field(None, ge=1, lt=2**31)
    options: OllamaOptions = OllamaOptions()
    keep_alive: KeepAlive = None


class EmbeddingsBody(ModelBody):
    """The body of `POST /api/embeddings`, the older way to ask for one vector."""

    prompt: str = ""
    options: OllamaOptions = OllamaOptions()
    keep_alive: KeepAlive = None


class NamedBody(Wire):
    """A body that names a model, under the field of now or the older one."""

    model: str = Field("", max_length=512)
    name: str = Field("", max_length=512)

    @model_validator(mode="after")
    def _named(self) -> NamedBody:
        if not self.called:
            raise refused("model is required", "model", "missing_required_parameter")
        return self

    @property
    def called(self) -> str:
        """The model's name."""
        return self.model or self.name


class ShowBody(NamedBody):
    """The body of `POST /api/show`."""

    verbose: bool = False
