"""The engines there are, and the ways to open one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from npu.chat_template import ChatTemplate
from npu.engine import TextEngine, Tokenizer
from npu.errors import ModelRefused
from npu.model import Model

ENGINES: dict[str, str] = {
    "echo": "npu.engines.echo:EchoEngine",
    "llamacpp": "npu.engines.llamacpp:LlamaCppEngine",
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
class Facts:
    """What can be said of a model without loading its weights."""

    context_length: int
    version: str
    """Of the engine."""
    chat: bool
    """Whether it has a chat template."""
    memory_bytes: int
    """What it will take once loaded, its KV cache included: an estimate, on the high side."""
    family: str = ""
    parameters: str = ""
    quantization: str = ""
    refuses: Mapping[str, str] = field(default_factory=dict)
    """Fields of `Sampling` it cannot honour, each with the reason."""
    notes: tuple[str, ...] = ()
    """What its user should know."""


class EngineClass(Protocol):
    """What `ENGINES` points to. Its module must import cheaply: native libraries only when an engine is opened."""

    OPTIONS: Mapping[str, Option]

    @staticmethod
    def open(model: Model, runtime_dir: Path, threads: int | None, context_length: int | None) -> TextEngine: ...

    @staticmethod
    def open_tokenizer(model: Model, runtime_dir: Path) -> Tokenizer: ...

    @staticmethod
    def describe(model: Model, context_length: int | None) -> Facts: ...

    @staticmethod
    def chat_template(model: Model) -> ChatTemplate | None: ...


def engine_class(name: str) -> EngineClass:
    """The class behind an engine's name. Raises `ModelRefused` on an unknown one."""
    try:
        module, _, attribute = ENGINES[name].partition(":")
    except KeyError:
        raise ModelRefused(f"There is no engine {name!r}; the engines are: {', '.join(sorted(ENGINES))}.") from None
    return cast(EngineClass, getattr(import_module(module), attribute))


def open_engine(
    model: Model, runtime_dir: Path, threads: int | None = None, context_length: int | None = None
) -> TextEngine:
    """Load the model and wait until it can run.

    `runtime_dir` is a private directory (mode 0700) where engine and tokenizers of one service on one board meet. `threads`
    None leaves some cores free; `context_length` None takes the model's. Raises `ModelRefused`, `OutOfMemory`, `EngineFailed`.
    """
    return engine_class(model.engine).open(model, runtime_dir, threads, context_length)


def open_tokenizer(model: Model, runtime_dir: Path) -> Tokenizer:
    """The model's tokenizer, also in another process than the engine's, without loading the weights.

    For some engines its methods raise `EngineFailed` while no engine is loaded under the same `runtime_dir`.
    Raises `ModelRefused` when the model's files are damaged.
    """
    return engine_class(model.engine).open_tokenizer(model, runtime_dir)


def describe(model: Model, context_length: int | None = None) -> Facts:
    """What can be said without loading. `context_length` as for `open_engine`. Raises `ModelRefused`."""
    return engine_class(model.engine).describe(model, context_length)


def chat_template(model: Model) -> ChatTemplate | None:
    """The template the model's chats are rendered with; None for a base model. Raises `ModelRefused` on a damaged file."""
    return engine_class(model.engine).chat_template(model)


def option(model: Model, options: Mapping[str, Option], name: str) -> int | float:
    """The value of one engine option: the manifest's, or its default."""
    value = model.engine_options.get(name, options[name].default)
    assert isinstance(value, (int, float))
    return value
