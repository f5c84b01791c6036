"""What somebody who starts the service for the first time should know: what computes here, and what clients are to be told."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from npu.hardware.device import read_npu
from npu.hardware.kernel import ROOT
from npu.hardware.soc import SOCS, read_soc
from ops.program import program
from tasks.settings import TaskSettings


def is_board(settings: TaskSettings, root: Path = ROOT) -> bool:
    """Whether this machine has an NPU we know, which no simulator stands in for."""
    return not settings.rkllm_library.startswith("simulator") and read_soc(root) is not None


def computes(settings: TaskSettings, root: Path = ROOT) -> str:
    """What runs models on the machine whose files lie beneath `root`."""
    if settings.rkllm_library.startswith("simulator"):
        return "a simulator of the NPU (rkllm_library); the CPU for GGUF models"
    name = read_soc(root)
    if name is None:
        return "the CPU of this machine, through llama.cpp; there is no NPU we know"
    npu = read_npu(root, SOCS[name].npu_cores)
    if not npu.driver.present:
        why = "its kernel drives it with `rocket`" if npu.driver.mainline else "its kernel has no driver for it"
        return f"the CPU: the NPU of this {name} cannot be used, {why}; {_doctor()}"
    if npu.node is None or not npu.node.usable:
        file = npu.node.path if npu.node is not None else "its device file"
        return f"the CPU: the NPU of this {name} cannot be used, since this user may not open {file}; {_doctor()}"
    driver = f"driver {npu.driver.version or 'of an unknown version'}"
    runtime = _runtime(settings)
    if runtime is None:
        return f"the CPU: the NPU of this {name} has its {driver} and no runtime (librkllmrt.so) that can be used; {_doctor()}"
    return f"the NPU of this {name}, {driver}, runtime {runtime}; the CPU for GGUF models"


def _doctor() -> str:
    return f"`{program()} doctor` says what mends it"


def _runtime(settings: TaskSettings) -> str | None:
    """The version of the vendor's library; None where there is none that can be used."""
    # Here, since machines without an NPU do without the memory of them.
    from npu.engines.rkllm.library import library_of, named
    from npu.errors import ModelRefused
    from tasks.prompting.setup import setup_of

    try:
        return named(library_of(setup_of(settings)))
    except ModelRefused:
        return None


def clients(url: str) -> str:
    """What to paste into clients, where the API is at `url`."""
    if ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback:
        return "on this machine only; a key and --host 0.0.0.0 let others in (docs/security.md)"
    return f"Open WebUI {url}/v1, Home Assistant {url} (as Ollama)"
