"""Runs .rkllm models without a tokenizer beside them: the RKLLM runtime renders and cuts a user's message by itself."""

from __future__ import annotations

from collections.abc import Callable

from npu.engine import Ability, Prompt, Sampling
from npu.engines import Facts, Setup, option
from npu.engines.rkllm.facts import read_loaded, write_loaded
from npu.engines.rkllm.library import library_of, named
from npu.engines.rkllm.load import (
    context_length,
    context_story,
    load_adapters,
    load_model,
    loaded_facts,
    memory_bytes,
    memory_domains,
)
from npu.engines.rkllm.options import OPTIONS, slots_of
from npu.engines.rkllm.sampling import OURS_ALONE, beyond_native, refuse, to_native
from npu.engines.rkllm.text_generation import RkllmTextGeneration
from npu.errors import AdapterMissing, ContextTooLong, EngineFailed, ModelRefused, PromptRefused
from npu.hidden_tokenizer import HiddenTokenizer
from npu.model import Model
from npu.rkllm.abi import Abi, Capabilities
from npu.rkllm.abi.refusals import text_for_c
from npu.rkllm.library import Identity
from npu.sampling import check_sampling

VOCABULARY_SIZE = 262_144
"""At least as many tokens as any model of today has, where all of them are to be chosen from."""
BYTES_PER_TOKEN = 16
"""No text of that many bytes for each token of the context fits into it."""
HIDDEN = (
    "There is no tokenizer.json beside this model, so the NPU's runtime renders and cuts its prompts. It answers a single "
    "message of a user: no system message, no earlier turns, no text to continue. Its prompts are counted only when they are "
    "answered (from runtime 1.2.1 on), a long one is prefilled in one go that nobody can end, and an answer that does not fit "
    "into the context goes on without its beginning. Copy tokenizer.json and tokenizer_config.json from the model it was "
    "converted from into its folder to mend all that."
)
NO_LOGITS = "there is no tokenizer.json beside the model, so its tokens are not known here"


def has_tokenizer(model: Model) -> bool:
    """Whether the model's tokenizer lies beside it."""
    return (model.folder / "tokenizer.json").exists()


class RkllmTextEngine:
    """One .rkllm model on the NPU, asked in text. See `npu.engine.TextEngine`."""

    def __init__(self, model: Model, setup: Setup) -> None:
        """Load the weights. Raises `ModelRefused`, `OutOfMemory`, `EngineFailed`."""
        self._model = model
        self.tokenizer = HiddenTokenizer(model.id)
        identity = library_of(setup)
        _check(model, identity)
        self.family: Abi = identity.family
        self._defaults = model.sampling()
        self._closed = False
        self.context_length = context_length(model, setup, identity, read_loaded(model, setup))
        self.handle, facts = load_model(model, setup, identity, self.context_length, VOCABULARY_SIZE)
        if any("auto-parsing failed" in warning for warning in facts.warnings):
            self.handle.close()
            raise ModelRefused(
                f"{model.id}: the RKLLM runtime cannot read the chat template in {model.path}, and there is no tokenizer.json "
                "beside it. Copy it there, with tokenizer_config.json, from the model it was converted from."
            )
        self.version = f"RKLLM runtime {facts.runtime or named(identity)}"
        self._adapters = load_adapters(model, self.handle)
        write_loaded(model, setup, loaded_facts(model, identity, facts, self._adapters))

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> RkllmTextGeneration:
        """Prepare one run; nothing tells how far its prefill is. Raises `SamplingRefused`, `ContextTooLong`,
        `AdapterMissing`, `PromptRefused`; `EngineFailed` once closed."""
        if self._closed:
            raise EngineFailed("This engine was closed. Open it anew.")
        field = beyond_native(sampling, self._defaults, self.family.CAPABILITIES, VOCABULARY_SIZE)
        if field is not None:
            raise refuse(field, self.version, f"cannot sample by it, and {NO_LOGITS}")
        check_sampling(sampling, 0)
        if prompt.turn is None:
            raise self.tokenizer.refusal("read tokens")
        if not prompt.turn.text:
            raise PromptRefused("The message is empty. Send at least one character.")
        if len(text_for_c(prompt.turn.text)) > BYTES_PER_TOKEN * self.context_length:
            raise ContextTooLong(self.context_length, None, self.context_length, at_least=True)
        _check_thinking(self.tokenizer, self.family.CAPABILITIES, prompt.turn.thinking)
        if prompt.adapter is not None and (why := self._adapters.get(prompt.adapter, "")) is not None:
            raise AdapterMissing(self._model.id, prompt.adapter, why)
        native = to_native(sampling, VOCABULARY_SIZE)
        return RkllmTextGeneration(self.handle, self.context_length, prompt, prompt.turn, native)

    def close(self) -> None:
        """Free the model. Twice is safe; in a forked child it does nothing."""
        self._closed = True
        self.handle.close()


def describe_text(model: Model, setup: Setup) -> Facts:
    """The facts of such a model. Raises `ModelRefused` when its runtime has no template of its own, or something needs the
    tokenizer."""
    identity = library_of(setup)
    _check(model, identity)
    loaded = read_loaded(model, setup, identity.version)
    length = context_length(model, setup, identity, loaded)
    return Facts(
        context_length=length,
        version=f"RKLLM runtime {loaded.runtime if loaded is not None and loaded.runtime else named(identity)}",
        chat=True,
        completion=False,
        memory_bytes=memory_bytes(model, length),
        memory_domains=memory_domains(model, identity),
        family=model.family,
        parameters=model.parameters,
        quantization=model.quantization or (loaded.dtype or "" if loaded is not None else ""),
        refuses=dict.fromkeys(OURS_ALONE, NO_LOGITS),
        notes=(
            *context_story(model, setup, loaded, length),
            *model.notes,
            HIDDEN,
            *(loaded.story() if loaded is not None else ()),
        ),
        last_load=loaded.last_load() if loaded is not None else None,
    )


def _check(model: Model, identity: Identity) -> None:
    can = identity.family.CAPABILITIES
    options = set(model.template_options)
    for needed, what in (
        (not can.chat_template, f"RKLLM runtime {named(identity)} has no chat template of its own"),
        (model.abilities != {Ability.TEXT}, "embedding and reranking need it"),
        (model.template is not None, "the manifest's chat_template needs it"),
        (bool(options - {"enable_thinking"}), "of template_options all but enable_thinking need it"),
        (model.cached_system_prompt is not None, "the manifest's cached_system_prompt needs it"),
        (slots_of(model) > 1, "n_batch needs it"),
        (bool(option(model, OPTIONS, "prefill_slice")), "prefill_slice needs it"),
        (bool(option(model, OPTIONS, "refuse_suspect")), "refuse_suspect = 1 needs the self-test, which needs it"),
    ):
        if needed:
            raise ModelRefused(
                f"{model.id}: there is no tokenizer.json in {model.folder}, and {what}. Copy it there, with "
                "tokenizer_config.json, from the model it was converted from."
            )
    if model.template_options.get("enable_thinking", True) is False and not can.thinking_flag:
        raise ModelRefused(
            f"{model.id}: RKLLM runtime {named(identity)} cannot switch thinking off in its own template. Leave "
            "enable_thinking out, install 1.2.1 or newer, or copy tokenizer.json into the model's folder."
        )


def _check_thinking(tokenizer: HiddenTokenizer, can: Capabilities, thinking: bool) -> None:
    if not thinking and not can.thinking_flag:
        raise tokenizer.refusal("be kept from thinking by this runtime (older than 1.2.1)")
