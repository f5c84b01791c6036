"""Weights a model can be made of: what their names tell of chip, quantization and converter, and which to prefer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from npu.model_name import SUFFIXES, parse_model_name
from tasks.board.pull.errors import PullFailed
from tasks.board.pull.hub import HubFile, Listing
from tasks.board.pull.machine import Machine
from tasks.commands import CommandCode

QUANTIZATIONS: Final = (
    *("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0"),
    *("Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "F16", "BF16", "F32"),
)
"""Of a GGUF, the ones to prefer first: four bits lose little, and a board reads them in half the time of eight."""
OVERHEAD: Final = 256 << 20
"""Bytes that a model takes besides its weights, at least."""

SHARD: Final = re.compile(r"-(\d{5})-of-(\d{5})$")
"""Of a name without its suffix: which part of how many it is."""

_FILE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_TOOLKIT = re.compile(r"(?:^|[-_v])(\d+\.\d+\.\d+)(?=$|[-_.])")


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights that may be chosen."""

    files: tuple[HubFile, ...]
    engine: str
    soc: str | None
    dtype: str
    toolkit: str | None
    memory: int | None

    @property
    def name(self) -> str:
        return PurePosixPath(self.files[0].path).name

    def refusal(self, machine: Machine) -> str | None:
        if self.engine == "rkllm" and self.soc is None and machine.soc is None:
            return "is for an NPU, and this machine has none we know"
        soc = (self.soc or machine.soc) if self.engine == "rkllm" else None
        return machine.refuses(soc=soc, toolkit=self.toolkit, dtype=self.dtype, memory=self.memory)


def candidates(listing: Listing) -> Iterator[Candidate]:
    for file in listing.files:
        name = PurePosixPath(file.path).name
        suffix = PurePosixPath(file.path).suffix.lower()
        shard = SHARD.search(stem(name))
        if suffix not in SUFFIXES or not is_model(name) or (shard and int(shard[1]) != 1):
            continue
        files = tuple(_shards(listing, file, int(shard[2]))) if shard else (file,)
        parsed = parse_model_name(SHARD.sub("", stem(name)))
        engine = SUFFIXES[suffix]
        toolkit = _TOOLKIT.search(stem(name)) or _TOOLKIT.search(listing.repository.partition("/")[2])
        sizes = [each.size for each in files]
        yield Candidate(
            files=files,
            engine=engine,
            soc=(parsed.soc or parse_model_name(listing.repository.partition("/")[2]).soc)
            if engine == "rkllm"
            else None,
            dtype=parsed.quantization if engine == "llamacpp" else parsed.quantization.lower(),
            toolkit=toolkit[1] if toolkit and engine == "rkllm" else None,
            memory=sum(size for size in sizes if size) + OVERHEAD if None not in sizes else None,
        )


def is_model(name: str) -> bool:
    lower = name.lower()
    return (
        _FILE.fullmatch(name) is not None
        and not lower.startswith("mmproj")
        and not lower.endswith("_lora.rkllm")
        and "imatrix" not in lower
    )


def _shards(listing: Listing, first: HubFile, count: int) -> Iterator[HubFile]:
    for number in range(1, count + 1):
        path = re.sub(r"-00001-of-", f"-{number:05d}-of-", first.path)
        found = listing.file(path)
        if found is None:
            raise PullFailed(CommandCode.SOURCE_MISSING, f"{listing.repository} lacks {path}, a part of {first.path}.")
        yield found


def preference(candidate: Candidate) -> tuple[int, int, int, str]:
    """The NPU's first, then the better quantization, then the smaller file."""
    rank = QUANTIZATIONS.index(candidate.dtype) if candidate.dtype in QUANTIZATIONS else len(QUANTIZATIONS)
    return candidate.engine != "rkllm", rank, candidate.memory or 0, candidate.name


def because(engine: str, machine: Machine) -> str:
    return f"for the NPU of the {machine.soc}" if engine == "rkllm" else "for the CPU"


def among(chosen: Candidate, candidates: Sequence[Candidate], machine: Machine) -> str:
    others = len(candidates) - 1
    why = f"chosen among {others + 1} files: {because(chosen.engine, machine)}"
    if chosen.engine == "llamacpp" and chosen.dtype in QUANTIZATIONS:
        why += f", and {chosen.dtype} is the best compromise there that fits (name another behind a colon)"
    return why


def stem(file: str) -> str:
    return PurePosixPath(file).stem


def shown(file: HubFile) -> str:
    return PurePosixPath(file.path).name + megabytes(file.size or 0)


def megabytes(size: int) -> str:
    return f" ({size / 1e6:,.0f} MB)" if size else ""
