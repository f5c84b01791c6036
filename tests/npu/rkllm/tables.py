"""The ABI tables, read for tests: as data, and as C declarations."""

from __future__ import annotations

import ctypes
import json
import tomllib
from collections.abc import Iterator
from typing import Any

from npu.errors import ModelRefused
from npu.rkllm.abi import FAMILIES, Abi
from npu.simulator.library import find_compiler
from tasks.settings import ROOT

FOLDER = ROOT / "external/rkllm"
MODEL = "lp64" if ctypes.sizeof(ctypes.c_void_p) == 8 else "ilp32"
"""This machine's data model, as the tables call it."""


def _compiler() -> tuple[str, ...] | None:
    try:
        return find_compiler()
    except ModelRefused:
        return None


CC = _compiler()

PREAMBLE = """\
typedef __INT8_TYPE__ int8_t; typedef __UINT8_TYPE__ uint8_t; typedef __INT32_TYPE__ int32_t;
typedef __UINT32_TYPE__ uint32_t; typedef __UINT64_TYPE__ uint64_t; typedef __SIZE_TYPE__ size_t;
#define bool _Bool
"""
"""No include: so that a compiler without the other data model's headers can still lay its structs out."""


def family_name(abi: Abi) -> str:
    return abi.RUNTIMES[0]


def table_of(abi: Abi) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((FOLDER / "abi" / f"{family_name(abi)}.json").read_text())
    return table


def releases() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = tomllib.loads((FOLDER / "SOURCES.toml").read_text())["runtime"]
    return listed


def struct_of(abi: Abi, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(struct for struct in table_of(abi)["structs"] if struct["name"] == name)
    return found


def members(fields: list[dict[str, Any]], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every named member, those of nested structs and unions by their path in C."""
    for field in fields:
        path = prefix + (field["name"] or "")
        if field["name"] is not None:
            yield path, field
        yield from members(field.get("fields", []), f"{path}." if field["name"] else prefix)


def c_declarations(table: dict[str, Any]) -> str:
    """The table's enums, callbacks and structs in C, from names and types alone."""
    lines = [PREAMBLE, f"typedef {table['handle']['type']} {table['handle']['name']};"]
    for enum in table["enums"]:
        values = ", ".join(f"{name} = {number}" for name, number in enum["values"].items())
        lines.append(f"typedef enum {{ {values} }} {enum['name']};")
    lines += [f"typedef struct {struct['name']} {struct['name']};" for struct in table["structs"]]
    for callback in table["callbacks"]:
        lines.append(f"typedef {callback['returns']} (*{callback['name']})({', '.join(callback['arguments'])});")
    for struct in table["structs"]:
        lines.append(f"struct {struct['name']} {{ {_c_fields(struct['fields'])} }};")
    return "\n".join(lines) + "\n"


def _c_fields(fields: list[dict[str, Any]]) -> str:
    lines = []
    for field in fields:
        kind, _, length = field["type"].partition("[")
        if "fields" in field:
            lines.append(f"{kind} {{ {_c_fields(field['fields'])} }} {field['name'] or ''};")
        else:
            lines.append(f"{kind} {field['name']}{'[' + length if length else ''};")
    return " ".join(lines)


ABIS = [*FAMILIES]
"""To be parametrised over with `ids=family_name`."""
