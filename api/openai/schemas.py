"""The bodies of the OpenAI wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.types import FailFast
from typing_extensions import TypeAliasType

from api.body import Whole, Wire, bounded
from api.openai.format_schemas import FormatFields
from api.openai.refusals import REFUSED, REFUSED_IN_CHAT, REFUSED_IN_COMPLETIONS
from api.openai.tool_schemas import (
    MAX_TOOLS,
    Choice,
    EarlierCall,
    FunctionCall,
    FunctionChoice,
    FunctionOffer,
    ToolOffer,
)
from api.refusals import refuse, refused

MAX_TOKEN_IDS = 262_144
"""Token ids in one prompt: more than any context here, and few enough to check without a pause."""
MAX_BIASES = 4096
MAX_OPTIONS_DEPTH = 8
MAX_OPTIONS_VALUES = 1000


def _logit_bias(value: Any) -> dict[int, float]:
    if type(value) is not dict:
        raise ValueError("it should be an object of token ids and numbers")
    if len(value) > MAX_BIASES:
        raise ValueError(f"it should name at most {MAX_BIASES} token ids")
    biases: dict[int, float] = {}
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal() and len(token) <= 9):
            raise ValueError("its keys should be token ids")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise ValueError("its values should be numbers from -100 to 100")
        biases[int(token)] = float(bias)
    return biases


def _template_options(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError("it should be an object")
    budget = MAX_OPTIONS_VALUES
    level: list[Any] = [value]
    for _ in range(MAX_OPTIONS_DEPTH):
        budget -= len(level)
        if budget < 0:
            raise ValueError(f"it should hold at most {MAX_OPTIONS_VALUES} values")
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += item.values()
            elif isinstance(item, list):
                deeper += item
            elif isinstance(item, int) and not -(2**63) <= item < 2**63:
                raise ValueError("its integers should fit into 64 bits")
        level = deeper
    if level:
        raise ValueError(f"it should be nested at most {MAX_OPTIONS_DEPTH - 1} levels deep")
    return value


def _messages(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, list):
        bounded(len(value), info, "max_messages", "messages")
    return value


def _stop(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError("it should be a string or a list of strings")
    bounded(len(value), info, "max_stop", "stop sequences")
    # An empty sequence would end every answer before it begins; clients send one to mean none.
    return tuple(word for word in value if word)


def _count(value: Any) -> Any:
    # Some clients send what chats take.
    return {True: 0, False: None}[value] if isinstance(value, bool) else value


Prompts: TypeAlias = tuple[str | tuple[int, ...], ...]
PROMPTS_SHAPE: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


def prompts(value: Any) -> Prompts:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise ValueError("it should be a string, a list of strings, token ids, or a list of lists of token ids")
    if type(value[0]) is int:
        return (token_ids(value),)
    if all(isinstance(item, str) for item in value):
        return tuple(value)
    return tuple(token_ids(item) for item in value)


def token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError("it should not mix texts and token ids")
    if not value or len(value) > MAX_TOKEN_IDS:
        raise ValueError(f"token ids should number from 1 to {MAX_TOKEN_IDS}")
    if not all(type(token) is int and 0 <= token < 2**31 for token in value):
        raise ValueError("token ids should be integers from 0")
    return tuple(value)


def _shape(schema: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema(schema)


class StreamOptions(Wire):
    """What a stream should also carry."""

    include_usage: bool = False


Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Reasoning(Wire):
    """How much the model should think before it answers."""

    effort: Effort | None = None
    max_tokens: Whole | None = Field(None, ge=0, lt=2**63)


class Part(Wire):
    """A part of a message. Text parts are joined; the other kinds are refused."""

    type: str
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _is_text(self) -> Part:
        if self.type in ("text", "input_text", "output_text"):
            if self.text is None:
                raise ValueError("a text part should have a 'text'")
        elif self.type == "refusal":
            if self.refusal is None:
                raise ValueError("a refusal part should have a 'refusal'")
        else:
            raise refused(
                f"Content of type '{self.type[:40]}' is not supported: the models here read text only.",
                code="unsupported_content",
            )
        return self


def _content_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "parts" if isinstance(value, list) else None


Parts = TypeAliasType("Parts", Annotated[list[Part], FailFast(), Field(max_length=4096)])

Content: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[Parts, Tag("parts")],
    Discriminator(
        _content_kind,
        custom_error_type="content_type",
        custom_error_message="it should be a string or a list of parts",
    ),
]


class ChatMessage(Wire):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content
    name: str | None = None
    tool_calls: Annotated[list[EarlierCall], FailFast(), Field(max_length=MAX_TOOLS, default_factory=list)]
    tool_call_id: str | None = Field(None, max_length=256)
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    audio: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_content(cls, data: Any) -> Any:
        # null is an empty turn. Nothing at all is one only where tool calls may stand instead.
        if (
            isinstance(data, dict)
            and data.get("content") is None
            and ("content" in data or data.get("role") == "assistant")
        ):
            return data | {"content": ""}
        return data

    @model_validator(mode="after")
    def _plain(self) -> ChatMessage:
        if self.audio:
            raise refused("'audio' in a message is not supported: the models here read text only.", "audio")
        if (self.tool_calls or self.function_call) and self.role != "assistant":
            field = "tool_calls" if self.tool_calls else "function_call"
            raise refused(f"'{field}' should stand in a message of the assistant.", field, "invalid_value")
        return self

    def text(self) -> str:
        """The content with its parts joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text or part.refusal or "" for part in self.content)


class SamplingBody(Wire):
    """What every way to have text made shares."""

    model: str | None = Field(None, max_length=512)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Whole = Field(1, ge=1, le=8)
    stop: Annotated[
        tuple[str, ...],
        PlainValidator(_stop),
        _shape({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
    ] = ()
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    repeat_last_n: Whole | None = Field(None, ge=-1, lt=2**31)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    mirostat: Whole | None = Field(None, ge=0, le=2)
    mirostat_tau: float | None = Field(None, ge=0, le=100)
    mirostat_eta: float | None = Field(None, ge=0, le=1)
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**63)
    ignore_eos: bool | None = None
    logit_bias: Annotated[
        dict[int, float] | None,
        PlainValidator(_logit_bias),
        _shape({"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
    ] = None
    service_tier: str | None = None


class GenerationBody(SamplingBody, FormatFields):
    """What both kinds of completion share."""


class ChatCompletionBody(GenerationBody):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], FailFast(), Field(min_length=1), BeforeValidator(_messages)]
    max_completion_tokens: Whole | None = Field(None, ge=1, lt=2**63)
    max_tokens: Whole | None = Field(None, ge=1, lt=2**63)
    reasoning_effort: Effort | None = None
    reasoning: Reasoning | None = None
    think: bool | None = None
    thinking_budget_tokens: Whole | None = Field(None, ge=-1, lt=2**63)
    tools: Annotated[list[ToolOffer], FailFast(), Field(max_length=MAX_TOOLS, default_factory=list)]
    tool_choice: Choice | None = None
    parallel_tool_calls: bool = True
    functions: Annotated[list[FunctionOffer], FailFast(), Field(max_length=MAX_TOOLS, default_factory=list)]
    function_call: FunctionChoice | None = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, PlainValidator(_template_options), _shape({"type": "object"})
    ] = None
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None
    logprobs: bool = False
    top_logprobs: Whole | None = Field(None, ge=0, le=20)

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        refuse(data, REFUSED, REFUSED_IN_CHAT)
        return data

    @model_validator(mode="after")
    def _with_logprobs(self) -> ChatCompletionBody:
        if self.top_logprobs and not self.logprobs:
            raise refused("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs", "invalid_value")
        return self

    @model_validator(mode="after")
    def _begun(self) -> ChatCompletionBody:
        if self.continue_final_message:
            last = self.messages[-1]
            if self.add_generation_prompt:
                raise refused(
                    "'continue_final_message' goes on with the last message, so no new turn can begin behind it: leave "
                    "'add_generation_prompt' out.",
                    "add_generation_prompt",
                    "invalid_value",
                )
            if last.role != "assistant" or last.tool_calls or last.function_call:
                raise refused(
                    "'continue_final_message' needs a last message of the assistant, without calls of tools.",
                    "continue_final_message",
                    "invalid_value",
                )
        elif self.add_generation_prompt is False:
            raise refused(
                "'add_generation_prompt' is not supported as false but together with 'continue_final_message': else the prompt "
                "ends where the model's own turn begins.",
                "add_generation_prompt",
            )
        return self


class CompletionBody(GenerationBody):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        Prompts,
        PlainValidator(prompts),
        _shape(PROMPTS_SHAPE),
    ]
    max_tokens: Whole = Field(16, ge=1, lt=2**63)
    echo: bool = False
    suffix: str = ""
    best_of: Whole | None = Field(None, ge=1, le=20)
    logprobs: Annotated[Whole | None, Field(ge=0, le=20), BeforeValidator(_count)] = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        refuse(data, REFUSED, REFUSED_IN_COMPLETIONS)
        return data

    @model_validator(mode="after")
    def _in_all(self, info: ValidationInfo) -> CompletionBody:
        try:
            bounded(
                len(self.prompt) * max(self.n, self.best_of or 0), info, "max_prompts", "answers (prompts times 'n')"
            )
        except ValueError as error:
            raise refused(f"Invalid 'prompt': {error}.", "prompt", "invalid_value") from None
        if self.echo and self.logprobs is not None:
            raise refused(
                "'echo' and 'logprobs' are not supported together: the prompt's own log probabilities are not computed.",
                "logprobs",
            )
        if self.echo and self.suffix:
            raise refused(
                "'echo' and 'suffix' are not supported together: an answer that fills a gap is told alone.", "suffix"
            )
        if self.best_of is not None and self.best_of < self.n:
            raise refused("'best_of' should not be less than 'n'.", "best_of", "invalid_value")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise refused("The best of several answers cannot be streamed: it is known at the end.", "best_of")
        return self
