"""What somebody who starts the service for the first time should know: what computes here, and what clients are to be told."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from npu.hardware.device import read_npu
from npu.hardware.kernel import ROOT
from npu.hardware.soc import SOCS, read_soc

_DOCTOR = "`.venv/bin/rockchipllama doctor` says what mends it"


def computes(library: str, root: Path = ROOT) -> str:
    """What runs models on the machine whose files lie beneath `root`; `library` is the setting `rkllm_library`."""
    if library.startswith("simulator"):
        return "a simulator of the NPU (rkllm_library); the CPU for GGUF models"
    name = read_soc(root)
    if name is None:
        return "the CPU of this machine, through llama.cpp; there is no NPU we know"
    npu = read_npu(root, SOCS[name].npu_cores)
    if not npu.driver.present:
        why = "its kernel drives it with `rocket`" if npu.driver.mainline else "its kernel has no driver for it"
        return f"the CPU: the NPU of this {name} cannot be used, {why}; {_DOCTOR}"
    if npu.node is None or not npu.node.usable:
        file = npu.node.path if npu.node is not None else "its device file"
        return f"the CPU: the NPU of this {name} cannot be used, since this user may not open {file}; {_DOCTOR}"
    return f"the NPU of this {name}, driver {npu.driver.version or 'of an unknown version'}; the CPU for GGUF models"


def clients(url: str) -> str:
    """What to paste into clients, where the API is at `url`."""
    if ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback:
        return "on this machine only; docs/security.md says how to let others in"
    return f"Open WebUI {url}/v1, Home Assistant {url} (as Ollama)"
