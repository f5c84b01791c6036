"""Writes the C header of a family of runtimes from its table in `external/rkllm/abi`.

The structs are declared by the table's types in the table's order, and every offset and size the table holds is asserted,
so a compiler that lays one out otherwise stops with its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Table = Mapping[str, Any]

_START = """\
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#define EXPORTED __attribute__((visibility("default")))
"""
_MODELS = {"lp64": 8, "ilp32": 4}
"""The table's data models, by the size of their pointers in bytes."""


def header(table: Table, version: str, defaults: Mapping[str, int]) -> str:
    """The header of runtime `version`, with a `HAVE_…` for each function, each value of an enum, and each struct's field.

    `defaults` become `DEFAULT_…`: what `rkllm_createDefaultParam` says where the vendor's documents say nothing.
    """
    lines = [_START, f'#define RUNTIME_VERSION "{version}"', f"#define RUNTIME {_number(version)}"]
    lines += [f"#define DEFAULT_{name.upper()} {value}" for name, value in defaults.items()]
    lines += [f"#define HAVE_{name}" for name in _names(table)]
    lines += [f"#define CALLBACK_ANSWERS {int(_result_callback(table)['returns'] == 'int')}"]
    lines += [f"#define INIT_CALLBACK {_function(table, 'rkllm_init')['arguments'][2][1]}"]
    lines += [f"typedef {table['handle']['type']} {table['handle']['name']};"]
    for enum in table["enums"]:
        values = ", ".join(f"{name} = {number}" for name, number in enum["values"].items())
        lines.append(f"typedef enum {{ {values} }} {enum['name']};")
    lines += [f"typedef struct {struct['name']} {struct['name']};" for struct in table["structs"]]
    for callback in table["callbacks"]:
        lines.append(f"typedef {callback['returns']} (*{callback['name']})({', '.join(callback['arguments'])});")
    for struct in table["structs"]:
        lines.append(f"struct {struct['name']} {{ {_fields(struct['fields'])} }};")
    for model, pointer in _MODELS.items():
        lines += [f"#if __SIZEOF_POINTER__ == {pointer}", *_assertions(table, model), "#endif"]
    for function in table["functions"]:
        arguments = ", ".join(f"{kind} {name}" for name, kind in function["arguments"]) or "void"
        lines.append(f"EXPORTED {function['returns']} {function['name']}({arguments});")
    return "\n".join(lines) + "\n"


def _number(version: str) -> int:
    release, _, beta = version.partition("b")
    major, minor, patch = (int(part) for part in release.split("."))
    return major * 10000 + minor * 100 + patch - bool(beta)


def _names(table: Table) -> Iterator[str]:
    for function in table["functions"]:
        yield function["name"]
    for enum in table["enums"]:
        yield from enum["values"]
    for struct in table["structs"]:
        for field in struct["fields"]:
            if field["name"]:
                yield f"{struct['name']}_{field['name']}"


def _result_callback(table: Table) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(one for one in table["callbacks"] if one["name"] == "LLMResultCallback")
    return found


def _function(table: Table, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(one for one in table["functions"] if one["name"] == name)
    return found


def _fields(fields: list[dict[str, Any]]) -> str:
    lines = []
    for field in fields:
        kind, bracket, length = field["type"].partition("[")
        if "fields" in field:
            kind = f"{kind} {{ {_fields(field['fields'])} }}"
        lines.append(f"{kind} {field['name'] or ''}{bracket}{length};")
    return " ".join(lines)


def _members(fields: list[dict[str, Any]], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for field in fields:
        path = prefix + (field["name"] or "")
        if field["name"]:
            yield path, field
        yield from _members(field.get("fields", []), f"{path}." if field["name"] else prefix)


def _assertions(table: Table, model: str) -> Iterator[str]:
    for struct in table["structs"]:
        name, (size, alignment) = struct["name"], struct[model]
        yield f'_Static_assert(sizeof({name}) == {size} && _Alignof({name}) == {alignment}, "{name}");'
        for path, field in _members(struct["fields"]):
            offset, size = field[model]
            yield (
                f"_Static_assert(offsetof({name}, {path}) == {offset} && sizeof((({name} *)0)->{path}) == {size}, "
                f'"{name}.{path}");'
            )
