"""What this machine can run: chip, runtime, memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

from npu.engines import Setup
from npu.errors import ModelRefused
from npu.hardware import SOCS, read_memory, read_soc, soc_named


@dataclass(frozen=True, slots=True)
class Machine:
    """What a model's file is held against."""

    soc: str | None
    """None on a machine without an NPU we know."""
    runtime: str | None
    """The version of the NPU's library; None when there is none, or its version cannot be told."""
    memory: int
    """Bytes in all, those left that models may never use."""

    def refuses(self, *, soc: str | None, toolkit: str | None, dtype: str, memory: int | None) -> str | None:
        """Why it cannot run such weights, as the end of a sentence about them; None when nothing speaks against it.

        `soc` is None for weights that run anywhere; `memory` is what they take, None when nobody can tell.
        """
        if soc is not None:
            if self.soc is None:
                return f"is for the NPU of the {soc}, and this machine has no NPU we know"
            if soc_named(soc).name != self.soc:
                return f"is for the {soc}, and this board has the {self.soc}"
            if _known(dtype) and not SOCS[self.soc].runs(dtype):
                return f"is quantized as {dtype}, which the {self.soc} cannot run"
            if self.runtime is None:
                return "needs Rockchip's library, and there is none here whose version is known (`ops/fetch-runtime` gets it)"
            if toolkit is not None and release(toolkit) > release(self.runtime):
                return f"was made with toolkit {toolkit}, and the runtime here is {self.runtime}: older ones cannot load it"
        if memory is not None and memory > self.memory:
            return f"takes about {memory >> 20} MiB of memory, and models may have {self.memory >> 20} MiB here"
        return None


def read_machine(setup: Setup, soc: str | None = None) -> Machine:
    """This machine. `soc` is the chip to fetch for instead of its own; then its runtime is not looked at."""
    memory = setup.model_memory if setup.model_memory is not None else read_memory().total
    if soc is not None:
        return Machine(soc_named(soc).name, _newest(), memory)
    found = read_soc()
    return Machine(found, _runtime(setup) if found is not None else None, memory)


def release(version: str) -> tuple[int, ...]:
    """`1.2.1b1` as (1, 2, 1): numbers that compare as releases do."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("b")[0])[:3])


def _known(dtype: str) -> bool:
    return re.fullmatch(r"w\d+a\d+(_g\d+)?", dtype.lower()) is not None


def _newest() -> str:
    from npu.rkllm.abi import FAMILIES

    return str(FAMILIES[-1].RUNTIMES[-1])


def _runtime(setup: Setup) -> str | None:
    from npu.engines.rkllm.library import library_of

    try:
        identity = library_of(setup)
    except ModelRefused:
        return None
    # Where only the family is known, its oldest release is what is certain.
    return identity.version or str(identity.family.RUNTIMES[0])
