"""The engines there are, and the ways to open one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from npu.chat_template import ChatTemplate
from npu.context_length import Wanted
from npu.engine import Ability, TextEngine, Tokenizer
from npu.errors import ModelRefused
from npu.model import Model
from npu.self_test import SelfTest

ENGINES: dict[str, str] = {
    "echo": "npu.engines.echo:EchoEngine",
    "llamacpp": "npu.engines.llamacpp.engine:LlamaCppEngine",
    "rkllm": "npu.engines.rkllm.engine:RkllmEngine",
}
"""The one table: an engine's name in a manifest, and its class."""


@dataclass(frozen=True, slots=True)
class Option:
    """One entry an engine allows in `[engine_options]`: a number of the default's type, between two bounds."""

    default: int | float
    low: float
    high: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Setup:
    """What the engines of one board share, whatever the model."""

    runtime_dir: Path
    """A private directory (mode 0700) where engine and tokenizers of one service on one board meet."""
    threads: int | None = None
    """Threads that compute; None leaves some cores free."""
    context_length: Wanted | None = None
    """Tokens of context to reserve where a model allows more; None is what its manifest or file says."""
    model_memory: int | None = None
    """Bytes that models may have on this board; None where that is not bounded."""
    memory_domain: int | None = None
    """The NPU's memory domain that the board chose for the model; None where it chose none."""
    rkllm_library: str = ""
    """The vendor's library: its path, `simulator`, or empty to look for it."""
    rkllm_version: str = ""
    """Its version, where it cannot be found out."""
    rkllm_fetched: Path | None = None
    """Where fetched libraries lie, in a folder for each version."""


@dataclass(frozen=True, slots=True)
class LastLoad:
    """What a model's last load on this board told of its runtime. None is what the runtime did not tell."""

    runtime: str
    """Version of the runtime; empty where nobody could tell."""
    driver: str | None
    """Version of the NPU's driver in the kernel."""
    platform: str | None
    """The chip, as the runtime names it."""
    toolkit: str | None
    """Version of the converter that made the model."""
    max_context: int | None
    """Tokens the longest context of this model may have."""
    npu_cores: int | None
    """NPU cores the model was made for."""
    dtype: str | None
    """How its weights are kept, such as `w8a8`."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What can be said of a model without loading its weights."""

    context_length: int
    version: str
    """Of the engine."""
    chat: bool
    """Whether it has a chat template."""
    memory_bytes: int
    """What it will take once loaded, its KV cache included: an estimate, on the high side."""
    memory_domains: Sequence[int] = ()
    """The memory domains of the NPU that it may be put into; none for an engine that has no use for them."""
    template: ChatTemplate | None = None
    """That template; None also where only the runtime knows it."""
    completion: bool = True
    """Whether it can continue a text."""
    family: str = ""
    parameters: str = ""
    quantization: str = ""
    embedding_length: int | None = None
    """Numbers in each of its vectors; None while that is not known, and for models that do not embed."""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """Fields of `Sampling` it cannot honour, each with the reason."""
    notes: tuple[str, ...] = ()
    """What its user should know."""
    last_load: LastLoad | None = None
    """None before the first load, and of engines whose loads tell nothing."""
    self_test: SelfTest | None = None
    """None where the model was not tried out."""


class EngineClass(Protocol):
    """What `ENGINES` points to. Its module must import cheaply: native libraries only when an engine is opened."""

    OPTIONS: Mapping[str, Option]
    ABILITIES: frozenset[Ability]
    """What its models may be asked for, as far as the engine goes."""
    ADAPTERS: bool
    """Whether it can apply LoRA adapters."""
    CACHES_PROMPTS: bool
    """Whether it can keep in a file what it has read of a system prompt."""

    @staticmethod
    def open(model: Model, setup: Setup) -> TextEngine: ...

    @staticmethod
    def open_tokenizer(model: Model, setup: Setup) -> Tokenizer: ...

    @staticmethod
    def describe(model: Model, setup: Setup) -> Facts: ...

    @staticmethod
    def chat_template(model: Model) -> ChatTemplate | None: ...


def engine_class(name: str) -> EngineClass:
    """The class behind an engine's name. Raises `ModelRefused` on an unknown one."""
    try:
        module, _, attribute = ENGINES[name].partition(":")
    except KeyError:
        raise ModelRefused(f"There is no engine {name!r}; the engines are: {', '.join(sorted(ENGINES))}.") from None
    return cast(EngineClass, getattr(import_module(module), attribute))


def open_engine(model: Model, setup: Setup) -> TextEngine:
    """Load the model and wait until it can run. Raises `ModelRefused`, `OutOfMemory`, `EngineFailed`."""
    return engine_class(model.engine).open(model, setup)


def open_tokenizer(model: Model, setup: Setup) -> Tokenizer:
    """The model's tokenizer, also in another process than the engine's, without loading the weights.

    For some engines its methods raise `EngineFailed` while no engine is loaded under the same `setup.runtime_dir`.
    Raises `ModelRefused` when the model's files are damaged.
    """
    return engine_class(model.engine).open_tokenizer(model, setup)


def describe(model: Model, setup: Setup) -> Facts:
    """What can be said without loading. Raises `ModelRefused`."""
    return engine_class(model.engine).describe(model, setup)


def chat_template(model: Model) -> ChatTemplate | None:
    """The template the model's chats are rendered with; None for a base model. Raises `ModelRefused` on a damaged file."""
    return engine_class(model.engine).chat_template(model)


def option(model: Model, options: Mapping[str, Option], name: str) -> int | float:
    """The value of one engine option: the manifest's, or its default."""
    value = model.engine_options.get(name, options[name].default)
    assert isinstance(value, (int, float))
    return value
