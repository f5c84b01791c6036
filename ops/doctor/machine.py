"""Checks of the machine: chip, container, clocks, heat, open files, memory."""

from __future__ import annotations

from collections.abc import Iterator

from npu.hardware import SOCS
from ops.doctor.facts import Facts
from ops.doctor.finding import Finding, Level

FILES_WANTED = 102_400
"""Files a process with an RKLLM model should be able to have open: old and large models hold thousands of buffers."""
HOT = 80.0
"""Degrees Celsius from which on boards lower their clocks."""
CONTAINER_FLAGS = (
    "docker run --device /dev/dri --security-opt systempaths=unconfined --security-opt apparmor=unconfined …"
)


def check_chip(facts: Facts) -> Iterator[Finding]:
    """Which chip this is, and whether its NPU runs language models."""
    board = facts.board
    if board.soc is not None:
        cores = f"{board.soc.npu_cores} NPU core{'s' * (board.soc.npu_cores > 1)}"
        known = {"setting": ", as you say", "NPU address": ", by the address of its NPU"}.get(board.soc_source, "")
        yield Finding(Level.OK, "chip", f"The chip is an {board.soc.name.upper()} with {cores}{known}.")
        return
    everywhere = "GGUF models, echo models and the simulator of the RKLLM runtime work here all the same."
    chips = [entry.partition(",")[2] for entry in board.compatible if entry.startswith("rockchip,")]
    if chips:
        yield Finding(
            Level.NOTE,
            "chip_unknown",
            f"This is a Rockchip board whose chip ({chips[-1]}) is not known to run language models on an NPU.",
            f"The RKLLM runtime is made for {', '.join(name.upper() for name in SOCS)}. {everywhere}",
        )
    elif board.device_tree_hidden:
        yield Finding(
            Level.WARNING,
            "chip_hidden",
            "The chip cannot be told, because the device tree is hidden from this process.",
            "Containers hide it unless they are started with flags; the RKLLM runtime cannot find the chip then either. "
            + everywhere,
            CONTAINER_FLAGS,
        )
    else:
        yield Finding(Level.NOTE, "no_npu", "This machine has no Rockchip NPU, and needs none.", everywhere)


def check_device_tree(facts: Facts) -> Iterator[Finding]:
    """Whether the runtime will find the chip as we did."""
    if facts.board.soc is not None and facts.board.device_tree_hidden:
        yield Finding(
            Level.PROBLEM if facts.npu_models else Level.WARNING,
            "device_tree_hidden",
            "The device tree is hidden from this process, so the RKLLM runtime will not know the chip.",
            "It looks into /proc/device-tree/compatible, which containers hide, and then says `Query platform error!` or "
            "that the platform is unknown. Start the container with the flags below, or privileged.",
            CONTAINER_FLAGS,
        )


def check_clocks(facts: Facts) -> Iterator[Finding]:
    """Whether the clocks stay up while a model runs."""
    if facts.board.soc is None or not facts.board.clocks:
        return
    slow = [
        clock
        for clock in facts.board.clocks
        # `userspace` is how the vendor's scripts hold a clock in one place.
        if clock.governor not in (None, "performance", "userspace") and "performance" in clock.governors
    ]
    if not slow:
        yield Finding(Level.OK, "clocks", "The clocks of CPU, NPU and memory stay up.")
        return
    names = ", ".join(f"{clock.name} ({clock.governor})" for clock in slow)
    yield Finding(
        Level.NOTE,
        "clocks_vary",
        "The clocks go down between two tokens, which makes answers slower and their speed uneven.",
        f"Not set to `performance`: {names}. An agent that runs as root raises them while a job runs. The script below "
        "does it until it is called with `off`, or the board is started anew; it draws more power and gets warmer meanwhile.",
        "sudo ops/board/performance-mode on",
    )


def check_heat(facts: Facts) -> Iterator[Finding]:
    """Whether the board is so hot that it slows down."""
    if not facts.board.temperatures:
        return
    name, hottest = max(facts.board.temperatures.items(), key=lambda item: item[1])
    if hottest < HOT:
        yield Finding(Level.OK, "heat", f"The hottest sensor, {name}, tells {hottest:.0f} °C.")
        return
    yield Finding(
        Level.WARNING,
        "hot",
        f"The machine is hot: {name} tells {hottest:.0f} °C.",
        f"From about {HOT:.0f} °C on, clocks are lowered to protect the chip, whatever their governors say. Give it a heat "
        "sink, a fan, or air.",
    )


def check_open_files(facts: Facts) -> Iterator[Finding]:
    """Whether a large model may open its buffers."""
    limit = facts.board.open_files
    if facts.board.soc is None or limit is None:
        return
    if limit.hard >= FILES_WANTED:
        yield Finding(Level.OK, "open_files", f"A process may have {limit.hard:,} files open.")
        return
    yield Finding(
        Level.WARNING if limit.hard < 4096 else Level.NOTE,
        "open_files_few",
        f"A process may have {limit.hard:,} files open, and large models may want more.",
        f"Old and large .rkllm models hold more than a thousand buffers open and fail with `Too many open files` (errno "
        f"24). A worker raises its limit by itself, but not above this one; {FILES_WANTED:,} is enough. The line below "
        "counts from the next login; under systemd write `LimitNOFILE=102400`, for Docker `--ulimit nofile=102400`.",
        f"echo '* hard nofile {FILES_WANTED}' | sudo tee /etc/security/limits.d/rockchipllama.conf",
    )


def check_memory(facts: Facts) -> Iterator[Finding]:
    """Whether the models fit."""
    memory = facts.board.memory
    if not memory.total:
        return
    needs = {model.id: model.memory_bytes or model.size_bytes for model in facts.models}
    never = [name for name, need in needs.items() if need > memory.total]
    not_now = [name for name, need in needs.items() if memory.available < need <= memory.total]
    if never:
        yield Finding(
            Level.WARNING,
            "memory_too_small",
            f"This machine has {_gigabytes(memory.total)} of memory, too little for {_list(never, needs)}.",
            "The context takes memory, too: a smaller `context_length` in the manifest, or a smaller model, may fit.",
        )
    if not_now:
        yield Finding(
            Level.NOTE,
            "memory_short",
            f"{_gigabytes(memory.available)} of memory are free, too little at this moment for {_list(not_now, needs)}.",
            "A model that does not fit is refused with the figures, and tried again with the next request. What is loaded "
            "already counts as taken.",
            "free -h",
        )
    if not never and not not_now:
        # What a model for the NPU takes is not known before it is loaded; its file is the least.
        known = facts.models and all(model.memory_bytes is not None for model in facts.models)
        yield Finding(
            Level.OK,
            "memory",
            f"{_gigabytes(memory.available)} of {_gigabytes(memory.total)} of memory are free"
            + (", enough for each of the models alone." if known else "."),
        )


def _list(names: list[str], needs: dict[str, int]) -> str:
    return ", ".join(f"{name} ({_gigabytes(needs[name])})" for name in names)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
