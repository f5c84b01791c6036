"""Tools, calls and choices on the OpenAI wire."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic.types import FailFast

from api.body import Wire
from api.refusals import refused

MAX_TOOLS = 512
_NAME = re.compile(r"[\w.:/-]{1,256}")


def writable(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as it came. Raises `ValueError` on one that cannot be handed on."""
    # Who renders the prompt cannot hold larger ones.
    try:
        msgspec.msgpack.encode(schema)
    except OverflowError:
        raise ValueError("its integers should fit into 64 bits") from None
    return schema


def _name(name: str) -> str:
    # A little more than OpenAI takes: other servers' tools have points and slashes in their names.
    if not _NAME.fullmatch(name):
        raise ValueError("it should be 1 to 256 letters, digits, '_', '-', '.', ':' or '/'")
    return name


def _functions_alone(data: Any) -> Any:
    if isinstance(data, dict) and data.get("type", "function") != "function":
        raise refused(
            f"Tools of type '{str(data['type'])[:40]}' are not supported: models are given functions.",
            "type",
        )
    return data


class FunctionOffer(Wire):
    """A function the model may call."""

    name: Annotated[str, AfterValidator(_name)]
    description: str = ""
    parameters: Annotated[dict[str, Any] | None, AfterValidator(lambda schema: schema and writable(schema))] = None
    strict: bool = False


class ToolOffer(Wire):
    """A tool; there are only functions."""

    type: Literal["function"] = "function"
    function: FunctionOffer

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, data: Any) -> Any:
        return _functions_alone(data)


class Named(Wire):
    """A function by its name."""

    name: str = Field(max_length=256)


class NamedTool(Wire):
    """A tool by its name."""

    type: Literal["function"] = "function"
    function: Named

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, data: Any) -> Any:
        return _functions_alone(data)


class AllowedTools(Wire):
    """The tools that may be called, or one of which must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], FailFast(), Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(Wire):
    """A choice among tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice(value: Any) -> Any:
    if isinstance(value, dict):
        shape = AllowedToolsChoice if value.get("type") == "allowed_tools" else NamedTool
        return shape.model_validate(value)
    if value not in ("none", "auto", "required"):
        raise ValueError("it should be 'none', 'auto', 'required', or an object that names a function")
    return value


Choice: TypeAlias = Annotated[
    Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice,
    BeforeValidator(_choice),
    WithJsonSchema({"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]}, {"type": "object"}]}),
]


def _function_choice(value: Any) -> Any:
    if isinstance(value, dict):
        return Named.model_validate(value)
    if value not in ("none", "auto"):
        raise ValueError("it should be 'none', 'auto', or an object that names a function")
    return value


FunctionChoice: TypeAlias = Annotated[
    Literal["none", "auto"] | Named,
    BeforeValidator(_function_choice),
    WithJsonSchema({"anyOf": [{"type": "string", "enum": ["none", "auto"]}, {"type": "object"}]}),
]


def _arguments(value: Any) -> str:
    if isinstance(value, dict):  # as other servers write them
        return msgspec.json.encode(writable(value)).decode()
    if not isinstance(value, str):
        raise ValueError("they should be JSON text")
    return value


class FunctionCall(Wire):
    """A function the model called in an earlier turn."""

    name: str = Field(max_length=256)
    arguments: Annotated[str, BeforeValidator(_arguments)] = "{}"


class EarlierCall(Wire):
    """A call the model made in an earlier turn."""

    id: str = Field("", max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, data: Any) -> Any:
        return _functions_alone(data)
