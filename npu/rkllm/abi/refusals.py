"""What a family of runtimes cannot do, said in a sentence before the library is touched."""

from __future__ import annotations

import os
from pathlib import Path

from npu.errors import ModelRefused, PromptRefused
from npu.rkllm.abi.contract import Capabilities, Mode, Run, Settings, Text

MAX_INT32 = 2**31 - 1
MAX_SLOTS = 100
"""What the runtime's own check accepts; its authors advise at most 8."""
ROLES = ("user", "tool")
MAX_CPUS = 32
"""Bits of the mask."""


def check_settings(settings: Settings, can: Capabilities) -> None:
    """Raises `ModelRefused` on a setting the family does not have, or a number C would silently cut to size."""
    for name, value, low, high in (
        ("context_length", settings.context_length, 1, MAX_INT32),
        ("max_tokens", settings.max_tokens, 1, MAX_INT32),
        ("keep_tokens", settings.keep_tokens or 0, -1, MAX_INT32),
        ("memory_domain", settings.memory_domain, 0, MAX_INT32),
        ("slots", settings.slots, 1, MAX_SLOTS),
        *(("cpus", core, 0, MAX_CPUS - 1) for core in settings.cpus),
    ):
        if not low <= value <= high:
            raise ModelRefused(f"{name} is {value}, but must be between {low} and {high}.")
    for asked, able, what in (
        (settings.slots > 1, can.batches, "run several prompts at once (slots)"),
        (settings.keep_tokens is not None, can.keep_tokens, "spare the start of an overflowing context (keep_tokens)"),
        (settings.ignore_eos, can.ignore_eos, "generate past the end of an answer (ignore_eos)"),
        (settings.embed_flash is not None, can.embed_flash, "leave the embedding table on storage (embed_flash)"),
        (bool(settings.cpus), can.cpu_choice, "be told its processor cores (cpus)"),
    ):
        if asked and not able:
            raise ModelRefused(f"This RKLLM runtime cannot {what}. Leave it out, or install a newer runtime.")


def check_run(run: Run, can: Capabilities, slots: int) -> None:
    """Raises `PromptRefused` on what the family does not have, and unless each slot has something to run."""
    if len(run.inputs) != slots:  # The library reads as many as it has slots, whatever lies there.
        raise PromptRefused(f"A run of this model takes {slots} inputs, and {len(run.inputs)} were given.")
    if not all(given.text if isinstance(given, Text) else len(given.ids) for given in run.inputs):
        raise PromptRefused("A run needs at least one token of input in each slot.")
    if run.max_tokens is not None and not 1 <= run.max_tokens <= MAX_INT32:
        raise PromptRefused(f"max_tokens is {run.max_tokens}, but must be between 1 and {MAX_INT32}.")
    texts = [given for given in run.inputs if isinstance(given, Text)]
    if any(text.role not in ROLES for text in texts):
        raise PromptRefused(f"The runtime's own template knows only the roles {' and '.join(ROLES)}.")
    for asked, able, what in (
        (run.mode is Mode.HIDDEN, can.hidden_states, "give hidden states"),
        (run.mode is Mode.LOGITS, can.logits, "give logits"),
        (run.mode is Mode.LOGITS and slots > 1, False, "give the logits of several prompts at once"),
        (run.keep_history, can.keep_history, "go on from the run before"),
        (run.sampling is not None, can.per_run_sampling, "change its sampling from run to run"),
        (run.max_tokens is not None, can.per_run_max_tokens, "limit one run's answer"),
        (run.adapter is not None, can.adapters, "use a LoRA adapter"),
        (run.cache_file is not None, can.cache_files, "write the cache of a prompt to a file"),
        (any(text.role != "user" for text in texts), can.roles, "take text from anyone but the user"),
        (any(not text.thinking for text in texts), can.thinking_flag, "switch thinking off in its own template"),
    ):
        if asked and not able:
            raise PromptRefused(f"This RKLLM runtime cannot {what}.")


def text_for_c(text: str) -> bytes:
    """`text` as C reads it. Raises `PromptRefused` on a NUL, where C would stop, and on what has no UTF-8."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise PromptRefused("The text holds half of a character (a lone surrogate), which has no UTF-8.") from error
    if b"\0" in data:
        raise PromptRefused("The text holds a NUL character, where the runtime would stop reading.")
    return data


def path_for_c(path: Path) -> bytes:
    """`path` as C reads it, made absolute. Raises `ModelRefused` on a NUL."""
    data = os.fsencode(path.absolute())
    if b"\0" in data:
        raise ModelRefused("The path holds a NUL character, where the runtime would stop reading.")
    return data


def name_for_c(name: str) -> bytes:
    """The name of an adapter as C reads it. Raises `ModelRefused` where it could not."""
    try:
        return text_for_c(name)
    except PromptRefused as error:
        raise ModelRefused("The adapter's name holds a character the runtime cannot read.") from error
