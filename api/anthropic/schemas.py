"""The bodies of the Anthropic wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator
from pydantic.types import FailFast
from typing_extensions import TypeAliasType

from api.anthropic.refusals import REFUSED
from api.body import Whole, Wire, bounded
from api.refusals import refuse, refused

NEEDS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
}
"""The kinds of content that are read, and the fields that each must have."""

WHERE: dict[str, str] = {
    "thinking": "assistant",
    "redacted_thinking": "assistant",
    "tool_use": "assistant",
    "tool_result": "user",
}
"""Kinds of content that stand in the turns of one role only."""


def _content_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "blocks" if isinstance(value, list) else None


def _one_of_both(value: Any) -> Any:
    return Discriminator(
        value,
        custom_error_type="content_type",
        custom_error_message="it should be a string or a list of blocks",
    )


class Block(Wire):
    """A block of content. Text, thoughts, calls of tools and their results are read; other kinds are refused."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = Field(None, max_length=256)
    name: str | None = Field(None, max_length=256)
    input: dict[str, Any] | None = None
    tool_use_id: str | None = Field(None, max_length=256)
    content: Content = ""
    is_error: bool = False

    @model_validator(mode="after")
    def _is_read(self) -> Block:
        needs = NEEDS.get(self.type)
        if needs is None:
            raise refused(
                f"Content of type '{self.type[:40]}' is not supported: the models here read text only.",
                code="unsupported_content",
            )
        for field in needs:
            if getattr(self, field) is None:
                raise ValueError(f"a block of type '{self.type}' should have '{field}'")
        return self

    def result(self) -> str:
        """What a tool said, with the word that tells a failure."""
        text = text_of(self.content)
        return f"Error: {text}" if self.is_error else text


Blocks = TypeAliasType("Blocks", "Annotated[list[Block], FailFast(), Field(max_length=4096)]")

Content: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[Blocks, Tag("blocks")],
    _one_of_both(_content_kind),
]


def text_of(content: str | list[Block]) -> str:
    """The texts of content, a line break between two blocks."""
    if isinstance(content, str):
        return content
    return "\n".join(block.text or "" for block in content if block.type == "text")


class TurnBody(Wire):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: Content

    @model_validator(mode="after")
    def _in_its_place(self) -> TurnBody:
        for block in self.content if isinstance(self.content, list) else ():
            role = WHERE.get(block.type, self.role)
            if role != self.role:
                raise ValueError(f"blocks of type '{block.type}' belong into turns of the role '{role}'")
            if block.type == "tool_result" and isinstance(block.content, list):
                for part in block.content:
                    if part.type != "text":
                        raise ValueError("what a tool said should be text")
        return self

    def blocks(self) -> list[Block]:
        """The content as blocks."""
        return [Block(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class ToolBody(Wire):
    """A tool the model may call."""

    name: str = Field(min_length=1, max_length=256)
    type: str | None = None
    description: str = ""
    input_schema: dict[str, Any] | None = None
    strict: bool = False


class ToolChoiceBody(Wire):
    """Whether the model may, must or must not call tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _names_its_tool(self) -> ToolChoiceBody:
        if self.type == "tool" and self.name is None:
            raise ValueError("a choice of type 'tool' should have a 'name'")
        return self


class ThinkingBody(Wire):
    """Whether the model thinks before it answers, for how long, and whether its thoughts are shown."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Whole | None = Field(None, ge=1, lt=2**31)
    display: Literal["summarized", "omitted"] | None = None


class FormatBody(Wire):
    """What an answer is held to."""

    type: Literal["json_schema"]
    format_schema: dict[str, Any] = Field(alias="schema")


class OutputBody(Wire):
    """How the answer should be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: FormatBody | None = None


def _messages(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, list):
        bounded(len(value), info, "max_messages", "messages")
    return value


def _stops(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, list):
        bounded(len(value), info, "max_stop", "stop sequences")
    return value


class CountBody(Wire):
    """The body of `POST /v1/messages/count_tokens`: what makes up a prompt."""

    model: str | None = Field(None, max_length=512)
    messages: Annotated[list[TurnBody], FailFast(), Field(min_length=1), BeforeValidator(_messages)]
    system: Content = ""
    tools: Annotated[list[ToolBody], FailFast(), Field(max_length=1024)] = Field(default_factory=list)
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputBody | None = None
    output_format: FormatBody | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        refuse(data, REFUSED)
        return data

    @model_validator(mode="after")
    def _whole(self) -> CountBody:
        if any(block.type != "text" for block in (self.system if isinstance(self.system, list) else ())):
            raise refused("Invalid 'system': it should be text.", "system", "invalid_value")
        last = self.messages[-1]
        if last.role == "assistant" and any(block.type == "tool_use" for block in last.blocks()):
            raise refused(
                "Invalid 'messages': the last turn calls a tool, so its result should follow, a 'tool_result' in a turn of the "
                "role 'user'.",
                "messages",
                "invalid_value",
            )
        return self


class MessagesBody(CountBody):
    """The body of `POST /v1/messages`."""

    max_tokens: Whole = Field(ge=1, lt=2**63)
    stream: bool = False
    stop_sequences: Annotated[tuple[str, ...], Field(strict=False), BeforeValidator(_stops)] = ()
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, lt=2**31)
