"""Loads an .rkllm model with its adapters, as its manifest and the board say."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from npu.cache_size import cache_size
from npu.context_length import AUTO, largest_that_fits, story
from npu.engines import Setup, option
from npu.engines.rkllm.facts import Loaded, digest_of_tested, weights_of
from npu.engines.rkllm.options import OPTIONS, slots_of
from npu.engines.rkllm.sampling import to_native
from npu.errors import ModelRefused
from npu.hardware import read_big_cores
from npu.memory_domains import DOMAINS
from npu.model import Model
from npu.rkllm.abi import Settings
from npu.rkllm.handle import Handle
from npu.rkllm.init_log import InitFacts
from npu.rkllm.library import Identity
from npu.rkllm.loading import load, load_adapter
from npu.tokenizer_file import FileTokenizer, open_tokenizer_file

log = logging.getLogger("rockchipllama.rkllm")

CONTEXT_LENGTH = 4096
"""What a model gets when nobody said: its cache is allocated when it loads, and most files are converted for this."""
OVERHEAD_BYTES = 200 << 20
MOST_CPUS = 8
LIBRARY_CPUS = 4
"""Processor cores the library takes unasked."""


def tokenizer_of(model: Model) -> FileTokenizer:
    """From the `tokenizer.json` beside the weights. Raises `ModelRefused` when there is none."""
    found = open_tokenizer_file(model.folder)
    if found is None:
        raise ModelRefused(
            f"{model.id}: there is no tokenizer.json in {model.folder}. Copy it there, with tokenizer_config.json, from the "
            "model it was converted from."
        )
    return found


def context_length(model: Model, setup: Setup, identity: Identity, loaded: Loaded | None) -> int:
    """Tokens its context gets, by the settings, the manifest, and what its last load told."""
    length = setup.context_length or model.context_length or CONTEXT_LENGTH
    told = loaded.max_context if loaded is not None else None
    if length != AUTO:
        return min(length, told or length)
    # More than was known before the first load it does not get later either: its worker has what its card says.
    known = model.made_for if model.context_length in (None, AUTO) else model.context_length
    limit = identity.family.CAPABILITIES.max_context
    most = min(int(known or CONTEXT_LENGTH), told or limit, limit)
    return largest_that_fits(most, setup.model_memory, lambda context: memory_bytes(model, context))


def context_story(model: Model, setup: Setup, loaded: Loaded | None, length: int) -> Iterator[str]:
    """Notes for the model's user on its memory, and on a context that was chosen for it."""
    each = cache_size(model)
    yield f"Its memory is estimated with {each.bytes / 1024:,.0f} KiB for each token of its context, {each.source}."
    if (setup.context_length or model.context_length) != AUTO:
        return
    yield story(length, setup.model_memory, memory_bytes(model, length))
    told = loaded.max_context if loaded is not None else None
    if told is not None and told > length and not model.made_for and not isinstance(model.context_length, int):
        yield (
            f"It was converted for {told} tokens, which its name does not tell; `context_length = {told}` in its manifest "
            "gives it more."
        )


def memory_bytes(model: Model, context: int) -> int:
    """What it takes once loaded, with a context of that many tokens: an estimate, on the high side."""
    files = [weights_of(model), *(adapter.path for adapter in model.adapters)]
    return memory_needed(sum(file.stat().st_size for file in files), cache_size(model).bytes, context * slots_of(model))


def memory_needed(weights: int, each: int, tokens: int) -> int:
    """The same for so many bytes of weights, and so many tokens in its cache of so many bytes each."""
    return weights + each * tokens + OVERHEAD_BYTES


def memory_domains(model: Model, identity: Identity) -> Sequence[int]:
    """Those that it may be put into."""
    named = int(option(model, OPTIONS, "memory_domain"))
    if named >= 0:
        return (named,)
    return range(DOMAINS) if identity.family.CAPABILITIES.memory_domains else (0,)


def memory_domain(model: Model, setup: Setup) -> int:
    """The one it is put into: its manifest's, else the one that the board chose, else the first."""
    named = int(option(model, OPTIONS, "memory_domain"))
    return named if named >= 0 else setup.memory_domain or 0


def load_model(
    model: Model, setup: Setup, identity: Identity, context: int, vocabulary_size: int
) -> tuple[Handle, InitFacts]:
    """The model without its adapters, and what the library told. Blocks for seconds to a minute. Raises `ModelRefused`."""
    can = identity.family.CAPABILITIES
    settings = Settings(
        model=weights_of(model),
        context_length=context,
        max_tokens=context,
        sampling=to_native(model.sampling(), vocabulary_size),
        memory_domain=memory_domain(model, setup),
        embed_flash=bool(option(model, OPTIONS, "embed_flash")) if can.embed_flash else None,
        cpus=helping_cores(model) if can.cpu_choice else (),
        slots=slots_of(model),
    )
    return load(identity, settings, int(option(model, OPTIONS, "log_level")))


def load_adapters(model: Model, handle: Handle) -> dict[str, str | None]:
    """Load the model's adapters, which must be before its first run: why each is not there, None of those that are."""
    failures = {}
    for adapter in model.adapters:
        why = failures[adapter.name] = load_adapter(handle, adapter.path, adapter.name, adapter.scale)
        if why is not None:
            log.error("%s: the adapter %s could not be loaded: %s", model.id, adapter.name, why)
    return failures


def loaded_facts(model: Model, identity: Identity, facts: InitFacts, adapters: dict[str, str | None]) -> Loaded:
    """What the load told, for the next one and for the model's card."""
    return Loaded(
        runtime=facts.runtime or identity.version or "",
        driver=facts.driver,
        platform=facts.platform,
        toolkit=facts.toolkit,
        max_context=facts.max_context_limit,
        npu_cores=facts.npu_cores,
        dtype=facts.dtype,
        adapters={name: why for name, why in adapters.items() if why is not None},
        tested=digest_of_tested(model),
    )


def helping_cores(model: Model) -> tuple[int, ...]:
    """Numbers of the processor cores that help the NPU with a model; empty leaves it to the library."""
    big = tuple(core for core in read_big_cores() if core < MOST_CPUS)
    chosen = int(option(model, OPTIONS, "cpus"))
    if chosen:
        return big[:chosen]
    # Fewer than the NPU has cores would not do, so a machine without enough is left to the library's default.
    return big if len(big) >= LIBRARY_CPUS else ()
