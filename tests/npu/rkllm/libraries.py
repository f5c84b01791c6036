"""Small libraries with the exports and default parameters of each family, compiled from the tables for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npu.rkllm.abi import Abi
from tests.npu.rkllm.tables import CC, c_declarations, table_of

DEFAULTS = "param.top_k = 40; param.top_p = 0.9f; param.temperature = 0.8f; param.repeat_penalty = 1.1f;"
HOST_DEFAULTS = "param.extend_param.enabled_cpus_num = 4;"
SLOT_DEFAULTS = "param.extend_param.n_batch = 1;"
GARBAGE = "__builtin_memset(&param, 0xA5, sizeof param);"
"""What a library may leave in the fields it does not set."""


def defaults_of(abi: Abi) -> str:
    """The statements by which a library of this family fills its default parameters."""
    fields = {name for name, *_ in abi.PROTOTYPES[0].restype().extend_param._fields_}
    return (
        GARBAGE
        + DEFAULTS
        + (HOST_DEFAULTS if "enabled_cpus_num" in fields else "")
        + (SLOT_DEFAULTS if "n_batch" in fields else "")
    )


def source(abi: Abi, defaults: str | None = None, without: str = "", extra: str = "") -> str:
    """C for a library of this family. `defaults` are other statements for its parameters, `extra` stands at its end."""
    table = table_of(abi)
    functions = [_function(function, defaults) for function in table["functions"] if function["name"] != without]
    body = defaults_of(abi) if defaults is None else defaults
    return c_declarations(table) + "\n".join(functions).replace("@DEFAULTS@", body) + "\n" + extra + "\n"


def _function(function: dict[str, Any], defaults: str | None) -> str:
    arguments = ", ".join(f"{kind} {name}" for name, kind in function["arguments"]) or "void"
    body = "RKLLMParam param; @DEFAULTS@ return param;" if function["returns"] == "RKLLMParam" else "return 0;"
    return f"{function['returns']} {function['name']}({arguments}) {{ {body} }}"


def compiled(folder: Path, text: str, options: Sequence[str] = ()) -> Path:
    """A shared library of this source, in a new file of `folder`."""
    assert CC is not None
    path = folder / "librkllmrt.so"
    subprocess.run(
        [*CC, "-std=gnu11", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path), *options],
        input=text,
        text=True,
        check=True,
        timeout=60,
    )
    return path


def library(folder: Path, abi: Abi, defaults: str | None = None, without: str = "", extra: str = "") -> Path:
    """A library of this family."""
    return compiled(folder, source(abi, defaults, without, extra))


def announcing(version: str, *more: str) -> str:
    """C for the texts by which a library of this version could be known from its file."""
    texts = ("rkllm-runtime version: %s", version, *more)
    return "".join(
        f'__attribute__((used)) static const char text_{at}[] = "{text}";\n' for at, text in enumerate(texts)
    )
