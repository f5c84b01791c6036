"""Which library runs the .rkllm models of this machine."""

from __future__ import annotations

from npu.engines import Setup
from npu.rkllm.abi import FAMILIES
from npu.rkllm.library import Identity, find_library, identify

SIMULATOR = "simulator"
"""As the library's path: the simulator of this project, of the newest version, or of the one named after a dash."""


def library_of(setup: Setup) -> Identity:
    """The runtime's library on this machine, identified. Raises `ModelRefused` with what was tried."""
    name, _, version = setup.rkllm_library.partition("-")
    if name == SIMULATOR:
        from npu.simulator import build

        version = version or FAMILIES[-1].RUNTIMES[-1]
        return identify(build(version, setup.runtime_dir / SIMULATOR), version)
    found = find_library(setup.rkllm_library or None, setup.rkllm_fetched)
    return identify(found, setup.rkllm_version or None)


def named(identity: Identity) -> str:
    """The version, or those it may be of."""
    first, last = identity.family.RUNTIMES[0], identity.family.RUNTIMES[-1]
    return identity.version or (first if first == last else f"{first}–{last}")
