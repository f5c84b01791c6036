"""Arguments of calls that are not written as JSON, as what an answer is held to.

A text stands there without quotes, up to the mark behind it, so of texts no more can be held to than which ones there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from npu.constraint import Form, JsonSchema, OneOf, Regex, Repeated, Row, Until, Words
from npu.errors import FieldRefused
from tasks.prompting.tool_schema import DEEPEST, resolved
from tasks.requests import Tool

_SAYING = frozenset(
    ("type", "title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$defs", "definitions", "$ref")
)  # fmt: skip
"""Keywords that say what a value is or means, and bound it no further."""
_FREE_DEPTH = 3
"""Levels of objects and lists inside each other, where a schema does not say what they hold."""
_NAME = re.compile(r"[\w.$@ -]+")
_ANY_NAME = Regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


def tagged(
    tool: Tool, tags: Callable[[Form], Sequence[Form]], end: str, gap: str, behind: str, *, held: bool, field: str
) -> Form:
    """Arguments each between tags of its own: XML, GLM. `tags` is what stands before the value of a parameter of that name,
    `end` what ends it, after a `gap` that is no part of it, and `behind` what follows.

    Where they are not `held` to the tool's schema, they are any. Raises `FieldRefused` of `field`, where they cannot be.
    """
    if not held:
        return Repeated(Row((*tags(_ANY_NAME), Until(end), Words(behind))))
    schema = _Schema(tool, field)
    root = schema.part(schema.root)
    rows: list[Form] = []
    for name, its, needed in schema.members(root):
        ways = schema.choices(its)
        value: tuple[Form, ...] = (Until(end),)
        if None not in ways and {} not in ways:
            choice = OneOf(tuple(Words(way) if isinstance(way, str) else schema.json(way or {}) for way in ways))
            value = (choice, Words(gap + end))
        elif tool.strict and any(map(_bounded, ways)):
            raise schema.refusal(
                "lets a value be any text or something that it bounds, and they look alike in that format"
            )
        row = Row((*tags(Words(name)), *value, Words(behind)))
        rows.append(row if needed else Repeated(row, 0, 1))
    if not rows and root.get("additionalProperties", "properties" not in root):
        return tagged(tool, tags, end, gap, behind, held=False, field=field)
    return Row(tuple(rows))


def _bounded(way: str | Mapping[str, Any] | None) -> bool:
    return isinstance(way, Mapping) and (bool(way.keys() - _SAYING) or way.get("type") in ("object", "array"))


def gemma(tool: Tool, quote: str, *, held: bool, field: str) -> Form:
    """Arguments as Gemma's models write them: like JSON, with bare names and texts between marks of their own."""
    schema = _Schema(tool, field)
    if not held:
        return _free_object(quote, _FREE_DEPTH)
    return _gemma_object(schema, schema.part(schema.root), quote, DEEPEST)


def _gemma(schema: _Schema, of: Any, quote: str, deep: int) -> Form:
    if not deep:
        raise schema.refusal("nests deeper than can be followed in that format, or within itself")
    ways: list[Form] = []
    for each in schema.choices(of):
        if each is None:
            ways.append(_text(quote))
        elif isinstance(each, str):
            ways.append(Row((Words(quote), Words(each), Words(quote))))
        elif not each:
            ways.append(_free(quote, _FREE_DEPTH))
        elif each.get("type") == "object":
            ways.append(_gemma_object(schema, each, quote, deep))
        elif each.get("type") == "array":
            ways.append(_gemma_list(schema, each, quote, deep))
        elif isinstance(each.get("const"), dict | list):
            raise schema.refusal("names a whole object or list as a value")
        else:
            ways.append(schema.json(each))
    return OneOf(tuple(ways))


def _gemma_object(schema: _Schema, of: Mapping[str, Any], quote: str, deep: int) -> Form:
    # Their templates write names in this order.
    members = sorted(schema.members(of))
    if not members:
        return (
            _free_object(quote, _FREE_DEPTH) if of.get("additionalProperties", "properties" not in of) else Words("{}")
        )
    rows = [Row((Words(f"{name}:"), _gemma(schema, its, quote, deep - 1))) for name, its, _ in members]
    more: list[Form] = [
        Row((Words(","), row)) if needed else Repeated(Row((Words(","), row)), 0, 1)
        for row, (_, _, needed) in zip(rows, members, strict=True)
    ]
    first = next((place for place, (_, _, needed) in enumerate(members) if needed), None)
    starts = [Row((row, *more[place + 1 :])) for place, row in enumerate(rows) if first is None or place <= first]
    inner = OneOf(tuple(starts))
    return Row((Words("{"), inner if first is not None else Repeated(inner, 0, 1), Words("}")))


def _gemma_list(schema: _Schema, of: Mapping[str, Any], quote: str, deep: int) -> Form:
    schema.check(of, "items", "minItems", "maxItems")
    item = _gemma(schema, of.get("items"), quote, deep - 1)
    least, most = of.get("minItems", 0), of.get("maxItems")
    if most == 0:
        return Words("[]")
    more = Repeated(Row((Words(","), item)), max(0, least - 1), None if most is None else most - 1)
    return Row((Words("["), Repeated(Row((item, more)), min(least, 1), 1), Words("]")))


def _text(quote: str) -> Form:
    return Row((Words(quote), Until(quote)))


def _free(quote: str, deep: int) -> Form:
    plain: tuple[Form, ...] = (_text(quote), JsonSchema({"type": ["number", "boolean", "null"]}))
    if not deep:
        return OneOf(plain)
    inner = _free(quote, deep - 1)
    several = Repeated(Row((inner, Repeated(Row((Words(","), inner))))), 0, 1)
    return OneOf((*plain, Row((Words("["), several, Words("]"))), _object_of(inner)))


def _free_object(quote: str, deep: int) -> Form:
    return _object_of(_free(quote, deep - 1))


def _object_of(inner: Form) -> Form:
    member = Row((_ANY_NAME, Words(":"), inner))
    several = Repeated(Row((member, Repeated(Row((Words(","), member))))), 0, 1)
    return Row((Words("{"), several, Words("}")))


class _Schema:
    """The schema of one tool."""

    def __init__(self, tool: Tool, field: str) -> None:
        self.root: Mapping[str, Any] = tool.parameters or {}
        self._tool = tool
        self.refusal = partial(_refusal, tool, field)

    def part(self, of: Any) -> Mapping[str, Any]:
        return resolved(of, self.root)

    def check(self, of: Mapping[str, Any], *known: str) -> None:
        """Whether no more is asked than `known` keywords say. Only strict tools are promised that all of them are kept to."""
        unknown = of.keys() - _SAYING - set(known)
        if unknown and self._tool.strict:
            raise self.refusal(f"bounds a value by '{min(unknown)}', which cannot be kept to in that format")

    def members(self, of: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
        """Of an object the name and schema of each property, and whether it is required."""
        self.check(of, "properties", "required", "additionalProperties", "strict")
        if isinstance(of.get("additionalProperties"), dict):
            self.check(of, "properties", "required")
        properties = dict(of.get("properties") or {})
        required = of.get("required") or ()
        for name in (*properties, *(name for name in required if name not in properties)):
            if not _NAME.fullmatch(name):
                raise self.refusal(
                    f"names a parameter '{name[:64]}', which cannot be told from the marks of that format"
                )
            yield name, properties.get(name), name in required

    def choices(self, of: Any, deep: int = DEEPEST) -> list[str | Mapping[str, Any] | None]:
        """What a value may be: this text, any text (None), or what fits a schema; the empty one is anything."""
        of = self.part(of)
        if not deep:
            raise self.refusal("has a choice within itself")
        if "const" in of or "enum" in of:
            self.check(of, "const", "enum")
            values = [of["const"]] if "const" in of else of["enum"]
            return [each if isinstance(each, str) else {"const": each} for each in values] or [{"enum": []}]
        for key in ("anyOf", "oneOf"):
            if key in of:
                self.check(of, key)
                return [way for branch in of[key] for way in self.choices(branch, deep - 1)]
        given = of.get("type", "object" if "properties" in of else None)
        kinds = given if isinstance(given, list) else [given]
        if given is None or "string" in kinds:
            self.check(of)
        return [{} if kind is None else None if kind == "string" else {**of, "type": kind} for kind in kinds]

    def json(self, of: Mapping[str, Any]) -> JsonSchema:
        """A schema whose references are found as where it stood."""
        return JsonSchema({**{key: self.root[key] for key in ("$defs", "definitions") if key in self.root}, **of})


def _refusal(tool: Tool, field: str, what: str) -> FieldRefused:
    return FieldRefused(field, f"the schema of '{tool.name}' {what}. Make it simpler, or leave {field} out.")
