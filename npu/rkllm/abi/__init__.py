"""The families of librkllmrt by version: five layouts of the same C structs, each declared in a file of its own.

A wrong family is no error message but corrupted memory, so what is loaded must be known before the first call:
`family_of` gives the declarations for a version, and `bind` puts them on a library.

What a caller must keep alive, because the library may hold on to it:

- The `Loaded` that `init` returned, until `rkllm_destroy` has returned. It owns the parameters with the path of the
  model, and the C callback (from 1.3.0 on, the struct that holds it). Nobody knows which of these the library copies.
- The object `init` told as `on_result` is reached through that callback, and so lives as long.
- The arguments of one run live inside `infer`, which returns when the run is over.

What a callback lends is gone when it returns: the text is copied, rows of floats are not (see `Rows`).

One thread at a time may run a handle. Beside it another may call `rkllm_abort`; nobody may call `rkllm_destroy` until
`infer` has returned. Calls that no family changed (`rkllm_abort`, `rkllm_destroy`, `rkllm_is_running`,
`rkllm_load_prompt_cache`, `rkllm_release_prompt_cache`, and where `CAPABILITIES` have them `rkllm_set_chat_template`
and `rkllm_set_function_tools`) are made on the bound library itself; their strings live for the call.
"""

from __future__ import annotations

import re
from ctypes import CDLL

from npu.errors import ModelRefused
from npu.rkllm.abi import v1_1, v1_2_0, v1_2_1, v1_2_1b1, v1_3_0
from npu.rkllm.abi.contract import (
    Abi,
    Answer,
    Capabilities,
    Loaded,
    Mode,
    NativeSampling,
    OnResult,
    Perf,
    Prototype,
    Result,
    Rows,
    Run,
    Settings,
    State,
    Text,
    Tokens,
)

__all__ = [
    "FAMILIES",
    "Abi",
    "Answer",
    "Capabilities",
    "Loaded",
    "Mode",
    "NativeSampling",
    "OnResult",
    "Perf",
    "Prototype",
    "Result",
    "Rows",
    "Run",
    "Settings",
    "State",
    "Text",
    "Tokens",
    "bind",
    "family_of",
]

FAMILIES: tuple[Abi, ...] = (v1_1, v1_2_0, v1_2_1b1, v1_2_1, v1_3_0)
"""Oldest first."""

_VERSION = re.compile(r"v?(?P<release>(\d+)\.(\d+)\.(\d+))(b\d+)?")


def family_of(version: str) -> Abi:
    """The family of a runtime such as `1.2.3`. Raises `ModelRefused`, saying what to install, when there is none."""
    found = _VERSION.fullmatch(version.strip())
    supported = [known for family in FAMILIES for known in family.RUNTIMES]
    if found is None:
        raise ModelRefused(f"{version!r} is no version of an RKLLM runtime. Supported are: {', '.join(supported)}.")
    name = found[0].removeprefix("v")
    for family in FAMILIES:
        if name in family.RUNTIMES:
            return family
    release = _numbers(found["release"])
    if release < _numbers(supported[0]):
        raise ModelRefused(
            f"RKLLM runtime {name} is too old: its calls differ, and newer runtimes do not read its model files. "
            f"Install librkllmrt.so {supported[-1]}, and convert the model again (the rkllm-toolkit's update_rkllm "
            "mends files made for 1.0.2)."
        )
    newer = release > _numbers(supported[-1])
    raise ModelRefused(
        f"RKLLM runtime {name} is {'newer than any this program knows' if newer else 'not known to this program'}, "
        "and calling it with another version's layout would crash. "
        f"Install librkllmrt.so of one of these versions: {', '.join(supported)}."
    )


def bind(lib: CDLL, abi: Abi) -> None:
    """Give every function its argument and return types. Raises `ModelRefused` when the library lacks one."""
    missing = [prototype.name for prototype in abi.PROTOTYPES if not hasattr(lib, prototype.name)]
    if missing:
        raise ModelRefused(
            f"The library {lib._name} is no RKLLM runtime {' or '.join(abi.RUNTIMES)}: it lacks {', '.join(missing)}. "
            "Name its true version, or install one of these."
        )
    for prototype in abi.PROTOTYPES:
        function = getattr(lib, prototype.name)
        function.restype, function.argtypes = prototype.restype, prototype.argtypes


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))
