"""What an answer may be held to on the OpenAI wire: OpenAI's own field, and those of llama.cpp's and vLLM's servers."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from api.body import Wire
from api.openai.tool_schemas import writable
from api.refusals import refused
from tasks.requests import Grammar, JsonObject, JsonSchema, OutputFormat, Regex

MAX_CHOICES = 1000


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value or "{}")
        except (ValueError, RecursionError):
            raise ValueError("it should be a JSON schema, an object or its text") from None
    return value


Schema = Annotated[dict[str, Any], AfterValidator(writable), BeforeValidator(_parsed)]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_CHOICES)]


class NamedSchema(Wire):
    """A schema with a name, as OpenAI wraps it. It is kept to whether or not it is `strict`."""

    name: str | None = Field(None, max_length=256)
    description: str | None = None
    schema_: Schema | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    """OpenAI's own way to ask for JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: Schema | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _with_its_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None and self.schema_ is None:
            raise ValueError("a json_schema format should have a 'json_schema'")
        return self


class StructuredOutputs(Wire):
    """vLLM's way to ask for one of several forms."""

    json_: Schema | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool = False


class FormatFields(Wire):
    """What the answer is to be held to, in one field of these."""

    response_format: ResponseFormat | None = None
    json_schema: Schema | None = None
    grammar: str | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _one_format(self, info: ValidationInfo) -> FormatFields:
        asked = [name for name, _ in _formats(self)]
        if len(asked) > 1:
            raise refused(
                f"'{asked[0]}' and '{asked[1]}' both say what the answer is held to. Send one of them.",
                asked[1],
                "invalid_value",
            )
        return self


def output_of(body: FormatFields) -> OutputFormat | None:
    """What the body asks its answer to be held to, in the shared vocabulary."""
    return next((output for _, output in _formats(body)), None)


def _formats(body: FormatFields) -> list[tuple[str, OutputFormat]]:
    of = body.structured_outputs or StructuredOutputs()
    asked: list[tuple[str, OutputFormat | None]] = [
        ("response_format", _response_format(body.response_format)),
        ("json_schema", JsonSchema(body.json_schema) if body.json_schema else None),
        ("grammar", Grammar(body.grammar, "gbnf") if body.grammar else None),
        ("guided_json", JsonSchema(body.guided_json) if body.guided_json else None),
        ("guided_regex", Regex(body.guided_regex) if body.guided_regex else None),
        ("guided_choice", _choice(body.guided_choice)),
        ("guided_grammar", _grammar(body.guided_grammar)),
        ("structured_outputs", JsonSchema(of.json_) if of.json_ is not None else None),
        ("structured_outputs", Regex(of.regex) if of.regex else None),
        ("structured_outputs", _choice(of.choice)),
        ("structured_outputs", _grammar(of.grammar)),
        ("structured_outputs", JsonObject() if of.json_object else None),
    ]
    return [(name, output) for name, output in asked if output is not None]


def _response_format(wish: ResponseFormat | None) -> OutputFormat | None:
    if wish is None or wish.type == "text":
        return None
    schema = wish.json_schema.schema_ if wish.json_schema is not None else None
    schema = schema if schema is not None else wish.schema_
    return JsonObject() if schema is None else JsonSchema(schema)


def _choice(texts: list[str] | None) -> OutputFormat | None:
    return Regex("|".join(map(re.escape, texts))) if texts else None


def _grammar(text: str | None) -> OutputFormat | None:
    # vLLM takes both and tells them apart in the same way.
    return Grammar(text, "gbnf" if "::=" in text else "lark") if text else None
