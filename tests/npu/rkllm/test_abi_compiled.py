"""The tables hold what a C compiler makes of their types."""

from __future__ import annotations

import platform
import subprocess

import pytest

from npu.rkllm.abi import Abi
from tests.npu.rkllm.tables import ABIS, CC, MODEL, PREAMBLE, c_declarations, family_name, members, table_of

OPTIONS = {"lp64": ("-m64",), "ilp32": ("-m32",)} if platform.machine() == "x86_64" else {MODEL: ()}
"""How this machine's compiler is told a data model."""


def complaint(source: str, model: str) -> str:
    """What the compiler says against a source; nothing when it is right."""
    assert CC is not None
    command = [*CC, "-std=c11", *OPTIONS[model], "-fsyntax-only", "-x", "c", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=60, check=False)
    return done.stderr if done.returncode else ""


def assertions(abi: Abi, model: str) -> str:
    lines = []
    for struct in table_of(abi)["structs"]:
        name, (size, alignment) = struct["name"], struct[model]
        lines.append(f'_Static_assert(sizeof({name}) == {size} && _Alignof({name}) == {alignment}, "{name}");')
        for path, field in members(struct["fields"]):
            offset, size = field[model]
            lines.append(
                f"_Static_assert(__builtin_offsetof({name}, {path}) == {offset} "
                f'&& sizeof((({name} *)0)->{path}) == {size}, "{name}.{path}");'
            )
    return "\n".join(lines) + "\n"


@pytest.mark.skipif(CC is None, reason="no C compiler")
@pytest.mark.parametrize("model", ["lp64", "ilp32"])
@pytest.mark.parametrize("abi", ABIS, ids=family_name)
def test_a_compiler_lays_the_structs_out_alike(abi: Abi, model: str) -> None:
    """Each offset and size, from names and types alone."""
    if model not in OPTIONS or complaint(PREAMBLE, model):
        pytest.skip(f"this compiler knows no {model}")
    assert complaint(c_declarations(table_of(abi)) + assertions(abi, model), model) == ""
