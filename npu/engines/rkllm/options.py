"""The options of an .rkllm model, and what of a manifest its runtime cannot do."""

from __future__ import annotations

from collections.abc import Mapping

from npu.engine import Ability
from npu.engines import Option, option
from npu.engines.parking import PARKING_MB
from npu.engines.rkllm.facts import Loaded
from npu.engines.rkllm.library import named
from npu.errors import ModelRefused
from npu.memory_domains import DOMAINS
from npu.model import Model
from npu.rkllm.library import Identity
from npu.self_test import Verdict

OPTIONS: Mapping[str, Option] = {
    "memory_domain": Option(
        -1,
        -1,
        DOMAINS - 1,
        "the NPU's memory domain the model is put into, of which one holds about 4 GB; -1 has the board choose",
    ),
    "embed_flash": Option(
        1, 0, 1, "1 leaves the embedding table on storage: less memory, a little more time for each token"
    ),
    "cpus": Option(0, 0, 8, "processor cores that help the NPU; 0 takes the big ones"),
    "host_sampling": Option(
        1,
        0,
        1,
        "1 samples from logits what the runtime cannot sample (not yet confirmed on hardware); 0 refuses it",
    ),
    "prefill_slice": Option(
        0, 0, 16384, "tokens prefilled at a time, since nothing can abort a prefill; 0 measures what takes 1.5 s"
    ),
    "log_level": Option(
        0,
        0,
        2,
        "how much the vendor's library prints: 0 what goes wrong, 1 the figures of each run, 2 every prompt, too",
    ),
    "self_test": Option(
        1,
        0,
        1,
        "1 tries a model out when it is first loaded, for at most 5 s; 0 leaves that, and slices of prefill, out",
    ),
    "n_batch": Option(
        1,
        1,
        8,
        "prompts that one run may answer in lock-step; above 1 the runtime gives no logits, so what only they can sample "
        "(`seed`, `min_p`, …) is refused, and the cache takes that many times the memory",
    ),
    "prompt_cache_mb": Option(
        512,
        1,
        16384,
        "the most that the file of a `cached_system_prompt` may take; as much must be free before it is written",
    ),
    "parking_mb": PARKING_MB,
    "refuse_suspect": Option(0, 0, 1, "1 refuses to serve a model that failed the self-test's simple questions"),
}

LOGITS_SUSPECT = "the self-test found that the model's logits do not agree with its own answers"


def check_options(model: Model, identity: Identity) -> None:
    """Raises `ModelRefused` on what contradicts itself, and what this runtime cannot do."""
    runtime, can, slots = named(identity), identity.family.CAPABILITIES, slots_of(model)
    if option(model, OPTIONS, "refuse_suspect") and not option(model, OPTIONS, "self_test"):
        raise ModelRefused(
            f"{model.id}: refuse_suspect = 1 needs the self-test, which self_test = 0 switches off. Leave one of them out."
        )
    if model.cached_system_prompt is not None:
        cannot = _why_not_cached(model, runtime, can.cache_files and can.prefix_reuse)
        if cannot:
            raise ModelRefused(f"{model.id}: cached_system_prompt cannot be used, for {cannot}. Leave it out.")
    if slots > 1 and not can.batches:
        raise ModelRefused(
            f"{model.id}: RKLLM runtime {runtime} cannot run several prompts in lock-step (n_batch = {slots}). "
            "Install 1.2.1 or newer, or leave it out."
        )
    if Ability.RERANK in model.abilities and not can.logits:
        raise ModelRefused(
            f"{model.id}: RKLLM runtime {runtime} gives no logits, so nothing can be reranked by it. Install 1.2.0 "
            "or newer, or take `rerank` out of the manifest's `abilities`."
        )
    if Ability.RERANK in model.abilities and slots > 1:
        raise ModelRefused(
            f"{model.id}: nothing can be reranked by it, for RKLLM runtime {runtime} {without_logits(slots)}. Leave one of "
            "them out."
        )


def _why_not_cached(model: Model, runtime: str, able: bool) -> str:
    if not able:
        return f"RKLLM runtime {runtime} reads every prompt from its start (1.2.0 and newer do not)"
    if Ability.TEXT not in model.abilities:
        return "text is not among the model's `abilities`"
    if slots_of(model) > 1:
        return "a file holds the cache of one prompt, and n_batch is above 1"
    if not option(model, OPTIONS, "self_test"):
        return "only the self-test, which self_test = 0 switches off, tells whether it would help"
    return ""


def slots_of(model: Model) -> int:
    """How many prompts one run answers."""
    return int(option(model, OPTIONS, "n_batch"))


def without_logits(slots: int) -> str:
    """Why there are none, of a runtime."""
    return f"gives no logits where several prompts run in lock-step (n_batch = {slots})"


def why_no_host_sampling(model: Model, runtime: str, logits: bool, loaded: Loaded | None) -> str | None:
    """Why what the runtime cannot sample by is refused; None when it is not."""
    if not logits:
        return f"RKLLM runtime {runtime} cannot sample by it, and gives no logits to sample from"
    slots = slots_of(model)
    if slots > 1:
        return f"RKLLM runtime {runtime} cannot sample by it, and {without_logits(slots)}"
    if not option(model, OPTIONS, "host_sampling"):
        return "the model's manifest switches sampling from logits off (host_sampling = 0)"
    if loaded is not None and loaded.self_test is not None and loaded.self_test.logits is Verdict.SUSPECT:
        return LOGITS_SUSPECT
    return None
