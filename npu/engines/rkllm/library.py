"""Which library runs the .rkllm models of this machine."""

from __future__ import annotations

from npu.engines import Setup
from npu.rkllm.abi import FAMILIES, family_of
from npu.rkllm.installed import chosen
from npu.rkllm.library import Identity, find_library, identify

SIMULATOR = "simulator"
"""As the library's path: the simulator of this project, of the newest version, or of the one named after a dash."""


def library_of(setup: Setup) -> Identity:
    """The runtime's library on this machine, identified. Raises `ModelRefused` with what was tried."""
    version = simulated(setup.rkllm_library)
    if version is not None:
        from npu.simulator import build

        return identify(build(version, setup.runtime_dir / SIMULATOR), version)
    found = find_library(setup.rkllm_library or None, setup.rkllm_fetched)
    declared = setup.rkllm_version or (None if setup.rkllm_library else chosen(setup.rkllm_fetched))
    return identify(found, declared)


def simulated(library: str) -> str | None:
    """The version of the runtime that `library`, as in the settings, has simulated; None when it means a file.

    Raises `ModelRefused` when there is no such version.
    """
    name, _, version = library.partition("-")
    if name != SIMULATOR:
        return None
    version = version or FAMILIES[-1].RUNTIMES[-1]
    family_of(version)
    return version


def check_named(library: str) -> None:
    """Whether what the settings name is there, without opening it. Raises `ModelRefused` when it is not."""
    if library and simulated(library) is None:
        find_library(library)


def named(identity: Identity) -> str:
    """The version, or those it may be of."""
    first, last = identity.family.RUNTIMES[0], identity.family.RUNTIMES[-1]
    return identity.version or (first if first == last else f"{first}–{last}")
