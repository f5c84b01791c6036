"""What the schema of a tool says of its parameters, through references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.requests import Tool

DEEPEST = 16
"""How far references and choices are followed into each other."""

KINDS: Mapping[type, tuple[str, ...]] = {
    str: ("string",),
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    dict: ("object",),
    list: ("array",),
    type(None): ("null",),
}
"""The types that JSON schemas have for a value."""


def kinds_of(tool: Tool | None, key: str) -> frozenset[str]:
    """The JSON types that a tool's schema allows for one of its arguments; none where it does not say."""
    root = (tool.parameters if tool else None) or {}
    properties = resolved(root, root).get("properties")
    return _kinds(properties.get(key) if isinstance(properties, dict) else None, root, DEEPEST)


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a reference into `root` means, with what stands beside it; what is no schema says nothing."""
    for _ in range(DEEPEST):
        if not isinstance(schema, dict):
            break
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            break
        target: Any = root
        for step in reference[1:].split("/")[1:]:
            target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**target, **beside} if isinstance(target, dict) else beside
    return schema if isinstance(schema, dict) else {}


def _kinds(schema: Any, root: Mapping[str, Any], deep: int) -> frozenset[str]:
    schema = resolved(schema, root)
    given = schema.get("type")
    if isinstance(given, str):
        return frozenset({given})
    if isinstance(given, list):
        return frozenset(map(str, given))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return frozenset(KINDS[type(value)][0] for value in values if type(value) in KINDS)
    branches = [each for key in ("anyOf", "oneOf") for each in schema.get(key) or ()] if deep else []
    return frozenset(kind for each in branches for kind in _kinds(each, root, deep - 1))
