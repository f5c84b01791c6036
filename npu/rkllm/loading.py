"""Loads a model through an identified library, listening to what it prints meanwhile."""

from __future__ import annotations

import os
import resource
from ctypes import CDLL
from pathlib import Path

from npu.errors import ModelRefused
from npu.rkllm.abi import Settings, bind
from npu.rkllm.handle import Handle
from npu.rkllm.init_log import InitFacts, capture_output, check_runtime, explain_failure, parse_init_log
from npu.rkllm.library import Identity

FILES = 102_400
"""Open files the vendor asks for: old and large models hold thousands of buffers."""


LOG_LEVEL = "RKLLM_LOG_LEVEL"
"""The variable the library takes its level from when it is loaded, and never again."""


def load(identity: Identity, settings: Settings, log_level: int = 0) -> tuple[Handle, InitFacts]:
    """The loaded model, and what the library told of itself and of it. Blocks for seconds to a minute.

    `log_level` is how much the library prints later: 0 what goes wrong, 1 the figures of each run, 2 prompts, too. It counts
    for the first load of a process only.
    Raises `ModelRefused`: the library cannot be opened or turns out to be another version than it was called as, or it
    refuses the model, in words that say why where its own did.
    """
    allow_files()
    os.putenv(LOG_LEVEL, str(log_level))  # whatever the environment says: nobody's prompts are printed by accident
    with capture_output() as said:
        try:
            lib = CDLL(str(identity.path))
        except OSError as error:
            raise ModelRefused(f"The library {identity.path} cannot be loaded: {error}.") from error
        bind(lib, identity.family)
        handle = Handle(lib, identity.family, settings)
    text = said.text()
    facts = parse_init_log(text)
    try:
        check_runtime(identity, facts)
        why = explain_failure(text)
        if why is None and handle.status != 0:
            why = " ".join((f"The RKLLM runtime could not load it (it returned {handle.status}).", *facts.errors))
        # Runtime 1.1 returns 0 after some failed loads, and says what went wrong all the same.
        if why is not None:
            raise ModelRefused(f"{settings.model}: {why}")
    except ModelRefused:
        handle.close()
        raise
    return handle, facts


def load_adapter(handle: Handle, path: Path, name: str, scale: float) -> str | None:
    """Load a LoRA adapter onto a model. None, or why that failed: the model itself is none the worse for it."""
    with capture_output() as said:
        try:
            status = handle.load_adapter(path, name, scale)
        except ModelRefused as error:
            return str(error)
    if status == 0:
        return None
    errors = parse_init_log(said.text()).errors
    return " ".join((f"The RKLLM runtime refused it (it returned {status}).", *errors))


def allow_files() -> None:
    """Let this process open as many files as the vendor asks for, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
