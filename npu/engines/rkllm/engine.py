"""Runs .rkllm models on a Rockchip NPU, through the vendor's librkllmrt or its simulator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from npu.chat_template import ChatTemplate
from npu.engine import Ability, Prompt, Sampling
from npu.engines import Facts, Setup, option
from npu.engines.rkllm.embedding import RkllmEmbedding
from npu.engines.rkllm.facts import (
    Loaded,
    read_loaded,
    suspicion,
    write_loaded,
)
from npu.engines.rkllm.generation import RkllmGeneration
from npu.engines.rkllm.kept_prefix import open_prompt_cache, read_kept
from npu.engines.rkllm.library import library_of, named
from npu.engines.rkllm.load import (
    context_length,
    context_story,
    load_adapters,
    load_model,
    loaded_facts,
    memory_bytes,
    memory_domains,
    tokenizer_of,
)
from npu.engines.rkllm.loaded_model import LoadedModel
from npu.engines.rkllm.options import (
    LOGITS_SUSPECT,
    OPTIONS,
    check_options,
    slots_of,
    why_no_host_sampling,
    without_logits,
)
from npu.engines.rkllm.parking import most_parked, open_parking
from npu.engines.rkllm.parking_trial import try_parking
from npu.engines.rkllm.sampling import OURS_ALONE, beyond_native, refuse, to_native
from npu.engines.rkllm.score import RkllmScore
from npu.engines.rkllm.self_test import SECONDS, SelfTester
from npu.engines.rkllm.text import RkllmTextEngine, describe_text, has_tokenizer
from npu.engines.rkllm.together import RkllmSlot, RkllmTogether
from npu.errors import AdapterMissing, ContextTooLong, EngineFailed, ModelRefused, NpuError, PromptRefused
from npu.hidden_tokenizer import HiddenTokenizer
from npu.matcher import Matchers
from npu.model import Model
from npu.sampling import check_sampling
from npu.template_search import find_template
from npu.tokenizer_file import FileTokenizer, open_tokenizer_file

log = logging.getLogger("rockchipllama.rkllm")


class RkllmEngine:
    """One .rkllm model on the NPU."""

    ABILITIES = frozenset(Ability)
    ADAPTERS = True
    CACHES_PROMPTS = True
    OPTIONS = OPTIONS

    def __init__(self, model: Model, setup: Setup) -> None:
        self._model = model
        self.vocabulary = self.tokenizer = tokenizer_of(model)
        self._matchers = Matchers(self.vocabulary, self.tokenizer)
        identity = library_of(setup)
        check_options(model, identity)
        self._closed = False
        self._template = find_template(model, None)
        self.context_length = wanted = context_length(model, setup, identity, read_loaded(model, setup))
        handle, facts = load_model(model, setup, identity, wanted, len(self.vocabulary))
        self.version = f"RKLLM runtime {facts.runtime or named(identity)}"
        self.loaded = LoadedModel(model, handle, self.vocabulary, wanted, self.version)
        self.slots = self.loaded.slots
        self._adapters = load_adapters(model, handle)
        try:
            if Ability.EMBEDDING in model.abilities:
                self.loaded.embedding_length = self._width()
            told = loaded_facts(model, identity, facts, self._adapters)
            told = replace(told, embedding_length=self.embedding_length or None)
            if Ability.TEXT in model.abilities and option(model, self.OPTIONS, "self_test"):
                told = self._try_out(told, setup)
            write_loaded(model, setup, told)
            self._refuse_if_suspect(told)
            self.loaded.cache.file = open_prompt_cache(self.loaded, model, setup)
            self.loaded.cache.parking = open_parking(self.loaded, model, told.self_test)
        except NpuError:
            self.close()
            raise

    @staticmethod
    def open(model: Model, setup: Setup) -> RkllmEngine | RkllmTextEngine:
        """Load the weights. Raises `ModelRefused`, `OutOfMemory`, `EngineFailed`."""
        return RkllmEngine(model, setup) if has_tokenizer(model) else RkllmTextEngine(model, setup)

    @staticmethod
    def open_tokenizer(model: Model, setup: Setup) -> FileTokenizer | HiddenTokenizer:
        """From the `tokenizer.json` beside the weights; without one, what refuses in its place."""
        return open_tokenizer_file(model.folder) or HiddenTokenizer(model.id)

    @staticmethod
    def describe(model: Model, setup: Setup) -> Facts:
        """From the library, the file's size, and what the last load told."""
        if not has_tokenizer(model):
            return describe_text(model, setup)
        identity = library_of(setup)
        check_options(model, identity)
        can = identity.family.CAPABILITIES
        loaded = read_loaded(model, setup, identity.version)
        length = context_length(model, setup, identity, loaded)
        notes = [*context_story(model, setup, loaded, length), *model.notes]
        template = find_template(model, None)
        if template is None:
            notes.append(
                "There is no chat template beside this model (tokenizer_config.json or chat_template.jinja), so it can "
                "continue text but not chat."
            )
        why = why_no_host_sampling(model, named(identity), can.logits, loaded)
        refused = dict.fromkeys(OURS_ALONE, why) if why else {}
        slots = slots_of(model)
        if slots > 1:
            notes.append(
                f"Up to {slots} prompts run in lock-step (n_batch = {slots}): its cache takes {slots} times the memory, "
                "the next ones wait until the longest answer has ended, and what only logits can sample (seed, min_p) is refused."
            )
        kept = read_kept(model, setup) if model.cached_system_prompt is not None else None
        if kept is not None:
            notes.append(kept.story())
        doubt = suspicion(model, loaded) if loaded is not None else None
        if doubt is not None:
            notes.append(doubt)
        return Facts(
            context_length=length,
            version=f"RKLLM runtime {loaded.runtime if loaded is not None and loaded.runtime else named(identity)}",
            chat=template is not None,
            template=template,
            memory_bytes=memory_bytes(model, length),
            memory_domains=memory_domains(model, identity),
            family=model.family,
            parameters=model.parameters,
            quantization=model.quantization or (loaded.dtype or "" if loaded is not None else ""),
            embedding_length=loaded.embedding_length if loaded is not None else None,
            refuses=refused,
            notes=(*notes, *(loaded.story() if loaded is not None else ())),
            last_load=loaded.last_load() if loaded is not None else None,
            self_test=loaded.self_test if loaded is not None else None,
        )

    @staticmethod
    def chat_template(model: Model) -> ChatTemplate | None:
        """From beside the weights."""
        return find_template(model, None)

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> RkllmGeneration:
        """Prepare one run. Raises `SamplingRefused`, `ContextTooLong`, `AdapterMissing`, `PromptRefused`; `EngineFailed` once
        closed."""
        check_sampling(sampling, len(self.vocabulary))
        self._check_prompt(prompt)
        native = to_native(sampling, len(self.vocabulary))
        field = beyond_native(sampling, self.loaded.defaults, self.loaded.family.CAPABILITIES, len(self.vocabulary))
        if field is None:
            return RkllmGeneration(self.loaded, prompt, sampling, native, on_prefill)
        if not self.loaded.family.CAPABILITIES.logits:
            raise refuse(field, self.version, "samples every request as the model is set up, and gives no logits")
        if not option(self._model, self.OPTIONS, "host_sampling"):
            raise refuse(field, self.version, "cannot sample by it, and the manifest says host_sampling = 0")
        if self.slots > 1:
            raise refuse(field, self.version, f"cannot sample by it, and {without_logits(self.slots)}")
        if not self.loaded.samples_on_host:
            raise refuse(field, self.version, f"cannot sample by it, and {LOGITS_SUSPECT}")
        matcher = None
        if sampling.constraint is not None:
            matcher = self._matchers.match(sampling.constraint, prompt.tokens[len(prompt.tokens) - prompt.said :])
        return RkllmGeneration(self.loaded, prompt, sampling, None, on_prefill, matcher)

    def fitting(self, prompts: Sequence[Prompt]) -> int:
        """How many of them one run should take."""
        longest, total = self.loaded.slice, 0
        for place, prompt in enumerate(prompts[: self.slots]):
            total += len(prompt.tokens) - (
                self.loaded.cache.shared(prompt.tokens, place) if self.loaded.cache.reuse else 0
            )
            if place and total > longest:
                return place
        return min(self.slots, len(prompts))

    def generate_together(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[RkllmSlot]:
        """Prepare one run. Raises `SamplingRefused`, `ContextTooLong`, `AdapterMissing`, `PromptRefused`; `EngineFailed` once
        closed."""
        check_sampling(sampling, len(self.vocabulary))
        if not 1 <= len(prompts) <= self.slots:
            raise PromptRefused(f"{len(prompts)} prompts do not fit into the {self.slots} slots of a run (n_batch).")
        for prompt in prompts:
            self._check_prompt(prompt)
        if len({prompt.adapter for prompt in prompts}) > 1:
            raise PromptRefused("Prompts that run together are all answered with the same adapter, or all without one.")
        field = beyond_native(sampling, self.loaded.defaults, self.loaded.family.CAPABILITIES, len(self.vocabulary))
        if field is not None:
            raise refuse(
                field, self.version, f"cannot sample several prompts at once by it, and {without_logits(self.slots)}"
            )
        return RkllmTogether(self.loaded, prompts, to_native(sampling, len(self.vocabulary))).slots

    def embed(self, tokens: Sequence[int]) -> RkllmEmbedding:
        """Prepare one vector. Raises `ContextTooLong`, `PromptRefused`; `EngineFailed` once closed."""
        self._check(tokens, None)
        return RkllmEmbedding(self.loaded, tokens, self._model.pooling)

    def score(self, tokens: Sequence[int], yes: int, no: int) -> RkllmScore:
        """Prepare one score. Raises `ContextTooLong`, `PromptRefused`; `EngineFailed` once closed."""
        self._check([*tokens, yes], None)
        self._check([no], None)
        return RkllmScore(self.loaded, tokens, yes, no)

    @property
    def embedding_length(self) -> int:
        """How long a vector is; 0 of a model that gives none."""
        return self.loaded.embedding_length

    @property
    def parks(self) -> bool:
        """See `ParkingEngine`."""
        return self.loaded.cache.parking is not None and self.loaded.cache.parking.works

    @property
    def parked_bytes(self) -> int:
        """See `ParkingEngine`."""
        return self.loaded.cache.parking.size if self.loaded.cache.parking is not None else 0

    def park(self) -> float:
        """See `ParkingEngine`."""
        return self.loaded.cache.park()

    def unpark(self) -> None:
        """See `ParkingEngine`."""
        if self.loaded.cache.parking is not None:
            self.loaded.cache.parking.empty()

    def pause_parking(self, seconds: float) -> None:
        """See `ParkingEngine`."""
        if self.loaded.cache.parking is not None:
            self.loaded.cache.parking.pause(seconds)

    def close(self) -> None:
        """Free the model. Twice is safe; in a forked child it does nothing."""
        self._closed = True
        self.loaded.handle.close()
        if self.loaded.cache.parking is not None:
            self.loaded.cache.parking.close()

    def _check_prompt(self, prompt: Prompt) -> None:
        self._check(prompt.tokens, prompt.max_tokens)
        if prompt.adapter is not None and (why := self._adapters.get(prompt.adapter, "")) is not None:
            raise AdapterMissing(self._model.id, prompt.adapter, why)

    def _check(self, tokens: Sequence[int], max_tokens: int | None) -> None:
        if self._closed:
            raise EngineFailed("This engine was closed. Open it anew.")
        if not tokens:
            raise PromptRefused("The prompt is empty. Send at least one token.")
        if len(tokens) + (max_tokens or 0) > self.context_length:
            raise ContextTooLong(len(tokens), max_tokens, self.context_length)
        if max(tokens) >= len(self.vocabulary) or min(tokens) < 0:
            last = len(self.vocabulary) - 1
            raise PromptRefused(f"The prompt has a token outside the vocabulary, whose ids go from 0 to {last}.")

    def _width(self) -> int:
        """How long a row of the last hidden layer is, which nothing but a row can tell."""
        row = self.embed([0]).result()
        assert row is not None  # nobody could abort it
        return len(row)

    def _try_out(self, told: Loaded, setup: Setup) -> Loaded:
        """The self-test, or what it showed the last time with the same weights, runtime, driver, template, tokenizer and
        options, gone on with where there was no time; what is loaded is set by it."""
        known = read_loaded(self._model, setup, told.runtime)
        test = known.self_test if known is not None and known.driver == told.driver else None
        if test is None or not test.in_time:
            test = SelfTester(self.loaded, self._template, SECONDS, test).run()
        self.loaded.go_by(test)
        if most_parked(self._model):
            test = try_parking(self.loaded, test, setup.runtime_dir / self._model.id)
        return replace(told, self_test=test)

    def _refuse_if_suspect(self, told: Loaded) -> None:
        doubt = suspicion(self._model, told)
        if doubt is None:
            return
        log.warning("%s: %s", self._model.id, doubt)
        if option(self._model, self.OPTIONS, "refuse_suspect"):
            raise ModelRefused(
                f"{self._model.id} is not served, for its manifest says refuse_suspect = 1. {doubt} "
                "Once mended it is tried again; without refuse_suspect it is served as it is."
            )
