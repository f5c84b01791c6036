"""Runs .rkllm models on a Rockchip NPU, through the vendor's librkllmrt or its simulator."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from npu.chat_template import ChatTemplate
from npu.engine import Prompt, Sampling
from npu.engines import Facts, Option, Setup, option
from npu.engines.rkllm_cache import Cache
from npu.engines.rkllm_generation import SLICE_SECONDS, SLICE_STEP, RkllmGeneration
from npu.engines.rkllm_sampling import beyond_native, refuse, to_native
from npu.errors import ContextTooLong, EngineFailed, ModelRefused, PromptRefused
from npu.hardware import read_big_cores
from npu.model import Model
from npu.model_files import find_template
from npu.rkllm.abi import FAMILIES, Abi, Settings
from npu.rkllm.handle import Handle
from npu.rkllm.init_log import InitFacts
from npu.rkllm.library import Identity, find_library, identify
from npu.rkllm.loading import load
from npu.sampling import check_sampling
from npu.tokenizer_file import FileTokenizer, open_tokenizer_file

log = logging.getLogger("rockchipllama.rkllm")

CONTEXT_LENGTH = 4096
"""What a model gets when nobody said: its cache is allocated when it loads, and most files are converted for this."""
CACHE_BYTES_PER_TOKEN = 114_688
"""Of Qwen3-0.6B (28 layers, 8 heads of 128, keys and values in 16 bits): 16K tokens take 1.9 GB."""
OVERHEAD_BYTES = 200 << 20
FACTS_FILE = "rkllm.json"
"""In the model's folder of the runtime directory: what its last load told."""
SIMULATOR = "simulator"
"""As the library's path: the simulator of this project, of the newest version, or of the one named after a dash."""
MOST_CPUS = 8
LIBRARY_CPUS = 4
"""Processor cores the library takes unasked."""
PROBE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a model's last load told, kept for cards: nothing else can say it without loading."""

    runtime: str
    driver: str | None
    platform: str | None
    toolkit: str | None
    max_context: int | None
    npu_cores: int | None
    dtype: str | None
    reuse: bool | None
    """Whether a prompt that begins as the last one is not prefilled from its start."""


class RkllmEngine:
    """One .rkllm model on the NPU."""

    OPTIONS = {  # noqa: RUF012 - a constant
        "memory_domain": Option(
            0,
            0,
            15,
            "the NPU's memory domain the model is put into; one holds about 4 GB, so give large models their own",
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
    }

    def __init__(self, model: Model, setup: Setup) -> None:
        self._model = model
        self.vocabulary = self.tokenizer = _tokenizer(model)
        identity = library_of(setup)
        self.family: Abi = identity.family
        self._defaults = model.sampling()
        self._closed = False
        self._speed = 0.0
        """Tokens prefilled in a second, as last measured; 0 until then."""
        self.context_length = wanted = _context_length(model, setup, _read_facts(model, setup))
        self.handle, facts = self._load(identity, wanted, setup)
        self.version = f"RKLLM runtime {facts.runtime or _named(identity)}"
        self.cache = Cache(self.handle)
        try:
            self.cache.reuse = self._reuses_prefixes()
        except EngineFailed:
            self.close()
            raise
        _write_facts(
            model,
            setup,
            Loaded(
                runtime=facts.runtime or identity.version or "",
                driver=facts.driver,
                platform=facts.platform,
                toolkit=facts.toolkit,
                max_context=facts.max_context_limit,
                npu_cores=facts.npu_cores,
                dtype=facts.dtype,
                reuse=self.cache.reuse,
            ),
        )

    @staticmethod
    def open(model: Model, setup: Setup) -> RkllmEngine:
        """Load the weights. Raises `ModelRefused`, `OutOfMemory`, `EngineFailed`."""
        return RkllmEngine(model, setup)

    @staticmethod
    def open_tokenizer(model: Model, setup: Setup) -> FileTokenizer:
        """From the `tokenizer.json` beside the weights."""
        return _tokenizer(model)

    @staticmethod
    def describe(model: Model, setup: Setup) -> Facts:
        """From the library, the file's size, and what the last load told."""
        identity = library_of(setup)
        can = identity.family.CAPABILITIES
        loaded = _read_facts(model, setup)
        length = _context_length(model, setup, loaded)
        notes = [*model.notes]
        chat = find_template(model, None) is not None
        if not chat:
            notes.append(
                "There is no chat template beside this model (tokenizer_config.json or chat_template.jinja), so it can "
                "continue text but not chat."
            )
        refused = {}
        if not can.logits or not option(model, RkllmEngine.OPTIONS, "host_sampling"):
            why = (
                f"RKLLM runtime {_named(identity)} cannot sample by it, and gives no logits to sample from"
                if not can.logits
                else "the model's manifest switches sampling from logits off (host_sampling = 0)"
            )
            refused = dict.fromkeys(("seed", "min_p", "typical_p", "logit_bias", "ignore_eos"), why)
        return Facts(
            context_length=length,
            version=f"RKLLM runtime {loaded.runtime if loaded is not None and loaded.runtime else _named(identity)}",
            chat=chat,
            memory_bytes=_weights(model).stat().st_size + CACHE_BYTES_PER_TOKEN * length + OVERHEAD_BYTES,
            family=model.family,
            parameters=model.parameters,
            quantization=model.quantization or (loaded.dtype or "" if loaded is not None else ""),
            refuses=refused,
            notes=(*notes, *(_story(loaded) if loaded is not None else ())),
        )

    @staticmethod
    def chat_template(model: Model) -> ChatTemplate | None:
        """From beside the weights."""
        return find_template(model, None)

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> RkllmGeneration:
        """Prepare one run. Raises `SamplingRefused`, `ContextTooLong`, `PromptRefused`; `EngineFailed` once closed."""
        if self._closed:
            raise EngineFailed("This engine was closed. Open it anew.")
        check_sampling(sampling, len(self.vocabulary))
        if not prompt.tokens:
            raise PromptRefused("The prompt is empty. Send at least one token.")
        if len(prompt.tokens) + prompt.max_tokens > self.context_length:
            raise ContextTooLong(len(prompt.tokens), prompt.max_tokens, self.context_length)
        if max(prompt.tokens) >= len(self.vocabulary) or min(prompt.tokens) < 0:
            last = len(self.vocabulary) - 1
            raise PromptRefused(f"The prompt has a token outside the vocabulary, whose ids go from 0 to {last}.")
        native = to_native(sampling, len(self.vocabulary))
        field = beyond_native(sampling, self._defaults, self.family.CAPABILITIES)
        if field is None:
            return RkllmGeneration(self, prompt, sampling, native, on_prefill)
        if not self.family.CAPABILITIES.logits:
            raise refuse(field, self.version, "samples every request as the model is set up, and gives no logits")
        if not option(self._model, self.OPTIONS, "host_sampling"):
            raise refuse(field, self.version, "cannot sample by it, and the manifest says host_sampling = 0")
        return RkllmGeneration(self, prompt, sampling, None, on_prefill)

    def slices(self, length: int, at: int = 0) -> Iterator[int]:
        """Where to look up while `length` tokens are prefilled from token `at` on: the ends of all slices but the last."""
        while (at := at + self._slice()) < length:
            yield at

    def prefilled(self, tokens: int, milliseconds: float) -> None:
        """Learn the speed from a run that was long enough to tell."""
        if tokens >= SLICE_STEP and milliseconds > 0:
            self._speed = tokens / milliseconds * 1000

    def close(self) -> None:
        """Free the model. Twice is safe; in a forked child it does nothing."""
        self._closed = True
        self.handle.close()

    def _slice(self) -> int:
        fixed = int(option(self._model, self.OPTIONS, "prefill_slice"))
        if fixed:
            return fixed
        if not self._speed:
            return 2 * SLICE_STEP  # short enough on the slowest chip, long enough to measure
        return max(SLICE_STEP, int(self._speed * SLICE_SECONDS) // SLICE_STEP * SLICE_STEP)

    def _load(self, identity: Identity, wanted: int, setup: Setup) -> tuple[Handle, InitFacts]:
        can = self.family.CAPABILITIES
        settings = Settings(
            model=_weights(self._model),
            context_length=wanted,
            max_tokens=wanted,
            sampling=to_native(self._defaults, len(self.vocabulary)),
            memory_domain=int(option(self._model, self.OPTIONS, "memory_domain")),
            embed_flash=bool(option(self._model, self.OPTIONS, "embed_flash")) if can.embed_flash else None,
            cpus=self._cpus() if can.cpu_choice else (),
        )
        return load(identity, settings)

    def _cpus(self) -> tuple[int, ...]:
        big = tuple(core for core in read_big_cores() if core < MOST_CPUS)
        chosen = int(option(self._model, self.OPTIONS, "cpus"))
        if chosen:
            return big[:chosen]
        # Fewer than the NPU has cores would not do, so a machine without enough is left to the library's default.
        return big if len(big) >= LIBRARY_CPUS else ()

    def _reuses_prefixes(self) -> bool | None:
        """Prefill the same short prompt twice: does the runtime skip what it has? Warms it up, too."""
        if not self.family.CAPABILITIES.prefix_reuse:
            return False
        if not self.family.CAPABILITIES.perf:
            return None
        filler = [*range(len(self.vocabulary))][:PROBE_TOKENS]
        prompt = Prompt(filler[: self.context_length - 1], 1)
        for _ in range(2):
            run = self.generate(prompt, self._plain())
            list(run)
        self._speed = 0.0
        return run.stats.cached_tokens > 0

    def _plain(self) -> Sampling:
        return self._defaults


def library_of(setup: Setup) -> Identity:
    """The runtime's library on this machine, identified. Raises `ModelRefused` with what was tried."""
    name, _, version = setup.rkllm_library.partition("-")
    if name == SIMULATOR:
        from npu.simulator import build

        version = version or FAMILIES[-1].RUNTIMES[-1]
        return identify(build(version, setup.runtime_dir / SIMULATOR), version)
    found = find_library(setup.rkllm_library or None, setup.rkllm_fetched)
    return identify(found, setup.rkllm_version or None)


def _named(identity: Identity) -> str:
    """The version, or those it may be of."""
    first, last = identity.family.RUNTIMES[0], identity.family.RUNTIMES[-1]
    return identity.version or (first if first == last else f"{first}–{last}")


def _weights(model: Model) -> Path:
    if model.path is None:
        raise ModelRefused(f'{model.id}: the engine rkllm needs weights. Name the file: `file = "….rkllm"`.')
    return model.path


def _tokenizer(model: Model) -> FileTokenizer:
    found = open_tokenizer_file(model.folder)
    if found is None:
        raise ModelRefused(
            f"{model.id}: there is no tokenizer.json in {model.folder}. Copy it there, with tokenizer_config.json, from the "
            "model it was converted from."
        )
    return found


def _context_length(model: Model, setup: Setup, loaded: Loaded | None) -> int:
    length = setup.context_length or model.context_length or CONTEXT_LENGTH
    return min(length, loaded.max_context) if loaded is not None and loaded.max_context else length


def _story(loaded: Loaded) -> Iterator[str]:
    parts = (
        ("driver", loaded.driver),
        ("platform", loaded.platform),
        ("converted by toolkit", loaded.toolkit),
        ("NPU cores", loaded.npu_cores),
    )
    told = ", ".join(f"{name} {value}" for name, value in parts if value is not None)
    if told:
        yield f"When it was last loaded here: {told}."


def _facts_file(model: Model, setup: Setup) -> Path:
    return setup.runtime_dir / model.id / FACTS_FILE


def _digest(model: Model) -> str:
    stat = _weights(model).stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _read_facts(model: Model, setup: Setup) -> Loaded | None:
    try:
        stored = json.loads(_facts_file(model, setup).read_text())
        return Loaded(**stored["facts"]) if stored["file"] == _digest(model) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never loaded, by another version of this program, or another file


def _write_facts(model: Model, setup: Setup, facts: Loaded) -> None:
    path = _facts_file(model, setup)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"file": _digest(model), "facts": asdict(facts)}))
        draft.replace(path)
    except OSError as error:
        log.warning("what %s told when it was loaded could not be kept: %s", model.id, error)
