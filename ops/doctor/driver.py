"""Checks of what stands between a model and the NPU: the kernel's driver, its node, the RKLLM runtime."""

from __future__ import annotations

from collections.abc import Iterator

from npu.rkllm.abi import FAMILIES
from npu.rkllm.pairs import DRIVER_NEEDED
from ops.doctor.facts import Facts, LibraryFacts
from ops.doctor.finding import Finding, Level
from ops.doctor.machine import CONTAINER_FLAGS
from ops.program import program

DRIVER_ACCEPTED = (0, 9, 7)
"""Below this one the runtime itself complains."""

_UPDATE = "sudo apt update && sudo apt full-upgrade"


def check_driver(facts: Facts) -> Iterator[Finding]:
    """Whether the NPU's driver is there, and new enough."""
    if facts.board.soc is None:
        return
    driver = facts.board.npu.driver
    if driver.mainline and not driver.present:
        yield Finding(
            _if_wanted(facts),
            "driver_mainline",
            "The NPU is driven by the mainline driver `rocket`, which the RKLLM runtime cannot use.",
            "The vendor's driver `rknpu` is part of the board maker's kernels 5.10 and 6.1 (BSP), and of no mainline "
            "kernel. Install an image with such a kernel.",
            "uname -r",
        )
    elif not driver.present:
        yield Finding(
            _if_wanted(facts),
            "driver_missing",
            "The NPU's driver is not in this kernel.",
            "The vendor's driver `rknpu` is part of the board maker's kernels 5.10 and 6.1 (BSP); mainline kernels do not "
            "have it. If yours is such a kernel, the NPU may be switched off in the board's device tree.",
            "uname -r; sudo dmesg | grep -i rknpu",
        )
    elif driver.version is None:
        yield Finding(
            Level.NOTE,
            "driver_version_unknown",
            "The NPU's driver is there, and does not tell its version to this user.",
            f"{_dotted(DRIVER_NEEDED)} is needed. Where the kernel tells it: {driver.source}.",
            "sudo cat /sys/kernel/debug/rknpu/version",
        )
    elif (version := tuple(int(part) for part in driver.version.split("."))) < DRIVER_NEEDED:
        yield Finding(
            _if_wanted(facts) if version < DRIVER_ACCEPTED else Level.WARNING,
            "driver_old",
            f"The NPU's driver is {driver.version}, and {_dotted(DRIVER_NEEDED)} is needed.",
            "With an older one models fail to load, answer nonsense, or fill the log with `matmul run failed`. The driver "
            "is a part of the kernel: update the board maker's packages, or install a newer image, and start anew.",
            _UPDATE,
        )
    else:
        yield Finding(Level.OK, "driver", f"The NPU's driver is {driver.version}.")


def check_node(facts: Facts) -> Iterator[Finding]:
    """Whether this user may reach the NPU."""
    npu = facts.board.npu
    if facts.board.soc is None or not npu.driver.present:
        return
    if npu.node is None or not npu.node.present:
        where = npu.node.path if npu.node is not None else "/dev/dri/renderD… or /dev/rknpu"
        inside = facts.board.container or facts.board.device_tree_hidden
        yield Finding(
            _if_wanted(facts),
            "node_missing",
            f"The driver is there, and the file through which programs reach the NPU ({where}) is not.",
            "A container has it only when it is given, with the flags below."
            if inside
            else "The driver did not start; the kernel's log says why.",
            CONTAINER_FLAGS if inside else "sudo dmesg | grep -i rknpu",
        )
    elif not npu.node.usable:
        yield Finding(
            _if_wanted(facts),
            "node_closed",
            f"This user may not use the NPU: {npu.node.path} is closed to it.",
            "The runtime then says that it `failed to open rknpu module`. The file belongs to the group `render` or "
            "`video` on most images; join both, then log in anew. "
            + (
                f"In a container, add `--group-add $(stat -c %g {npu.node.path})`."
                if npu.node.path.startswith("/dev/dri/")
                else "Where it belongs to root alone, a udev rule has to give it to one of them."
            ),
            'sudo usermod -aG render,video "$USER"',
        )
    else:
        yield Finding(Level.OK, "node", f"This user may use the NPU through {npu.node.path}.")


def check_library(facts: Facts) -> Iterator[Finding]:
    """Whether the RKLLM runtime was found, with all it needs."""
    if facts.library is None:
        return
    found = facts.library.found
    if facts.library.simulated is not None:
        yield Finding(
            Level.OK if facts.board.soc is None else Level.NOTE,
            "library_simulated",
            f"A simulator stands in for the RKLLM runtime {facts.library.simulated}: ROCKCHIPLLAMA_RKLLM_LIBRARY is "
            f"'{facts.library.set_to}'.",
            "Models for the NPU are as fast as on a board, and answer words in a fixed order.",
        )
        return
    if found is None and facts.library.set_to:
        yield Finding(
            Level.PROBLEM,
            "library_setting",
            f"ROCKCHIPLLAMA_RKLLM_LIBRARY is '{facts.library.set_to}', which cannot be used.",
            facts.library.why,
            f"{program()} settings",
        )
        return
    if found is None and facts.board.soc is None:
        return
    if found is None:
        yield Finding(
            _if_wanted(facts),
            "library_missing",
            "The RKLLM runtime (librkllmrt.so), which runs models on the NPU, cannot be used.",
            facts.library.why,
            f"ops/fetch-runtime {FAMILIES[-1].RUNTIMES[-1]}",
        )
        return
    if found.version is None:
        yield Finding(
            _if_wanted(facts),
            "library_unknown",
            f"The version of the RKLLM runtime {found.path} cannot be told.",
            f"{found.why} Each version must be called in its own way, so it is not called at all.",
        )
    else:
        yield Finding(
            Level.OK,
            "library",
            f"The RKLLM runtime is {found.version}: {found.path}. (librknnrt.so is not needed for text.)",
        )
    yield from _missing(facts, found)


def _missing(facts: Facts, found: LibraryFacts) -> Iterator[Finding]:
    for name in found.missing:
        yield Finding(
            _if_wanted(facts),
            "library_needs",
            f"The RKLLM runtime needs {name}, which is not on this system.",
            f"Some images lack it. Install it, or put the {name} of the vendor's package beside the runtime, into "
            f"{found.path.parent}.",
            "sudo apt install libomp-dev" if name.startswith("libomp") else "",
        )


def _if_wanted(facts: Facts) -> Level:
    # A board that has no model for its NPU lacks nothing yet.
    return Level.PROBLEM if facts.npu_models else Level.WARNING


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)
