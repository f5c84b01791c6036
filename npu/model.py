"""What is known of a model that lies in the models folder, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from npu.context_length import Wanted
from npu.engine import Ability, Pooling, Sampling

Value = str | int | float | bool
"""What an option of a manifest may be."""

SAMPLING_DEFAULTS: Mapping[str, float | int] = {
    "temperature": 0.8,
    "top_p": 0.9,
    "top_k": 20,
    "repeat_penalty": 1.1,
}
"""How a model is sampled when neither its manifest nor the request says otherwise. The rest stays neutral."""

RESERVED = frozenset({"available", "loaded", "load", "unload"})
"""What no model is called: the API has something else where a model of that name would be (`/v1/models/loaded`)."""

_ID = re.compile(r"[a-z0-9][a-z0-9._-]*")


def is_model_id(text: str) -> bool:
    """Whether `text` may be an id: lower-case letters, digits, `.`, `_`, `-`, first a letter or digit, at most 100."""
    return len(text) <= 100 and _ID.fullmatch(text) is not None


MOST_INSTANCES = 8
"""Workers that a board may have of one model."""


class LoadWhen(StrEnum):
    """When a model is loaded."""

    ON_DEMAND = "on-demand"
    """With the first request for it."""
    PRELOAD = "preload"
    """When the board starts."""
    MANUAL = "manual"
    """When somebody says so; requests do not load it."""


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """Low-rank weights that change how a model speaks, for the requests that ask for them."""

    name: str
    """Fit for an id; `model:name` is what clients call the two together."""
    path: Path
    scale: float = 1.0
    """How strongly it speaks; 1 is what it was trained to."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model: where its files are, how it is called, which engine runs it and how."""

    id: str
    """The short name, such as `qwen3-0.6b`."""
    engine: str
    folder: Path
    """The folder it lies in; templates and tokenizer files are looked for here."""
    names: tuple[str, ...] = ()
    """Other names it answers to, `name:tag` first, then the stem of its file."""
    path: Path | None = None
    """The weights; None for an engine that needs none."""
    context_length: Wanted | None = None
    """Tokens the context is to hold; None leaves it to the file."""
    made_for: int | None = None
    """Tokens its context may hold at most, as its file's name tells."""
    family: str = ""
    parameters: str = ""
    """Such as `0.6B`."""
    quantization: str = ""
    soc: str | None = None
    """The chip the weights were made for, such as `rk3588`; None when they run anywhere."""
    created: int = 0
    """When the weights were last changed, in Unix seconds."""
    size_bytes: int = 0
    sampling_defaults: Mapping[str, float | int | bool] = field(default_factory=lambda: dict(SAMPLING_DEFAULTS))
    """Fields of `Sampling` by name."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, besides those of the request."""
    template: str | None = None
    """The text of a chat template that replaces the model's own."""
    template_options: Mapping[str, Value] = field(default_factory=dict)
    """Variables handed to the template, such as `enable_thinking`."""
    tool_format: str | None = None
    """How it writes calls of tools: one of `ToolFormat`, or `none`. None leaves it to the template, as below."""
    thinking_format: str | None = None
    """How it marks its thoughts: one of `ThinkingFormat`, or `none`."""
    engine_options: Mapping[str, Value] = field(default_factory=dict)
    adapters: tuple[LoraAdapter, ...] = ()
    """Each loaded with the model, and applied to the requests that name it."""
    abilities: frozenset[Ability] = frozenset({Ability.TEXT})
    """What it may be asked for."""
    pooling: Pooling = Pooling.LAST
    cached_system_prompt: str | None = None
    """The text most requests begin with: what the model has read of it is kept in a file."""
    rerank_template: str | None = None
    """The text of a template for `query` and `document`, instead of a chat that asks whether they belong together."""
    fill_in_middle: tuple[str, ...] | None = None
    """The control tokens before a text with a gap, in the gap, and before what fills it. None leaves it to the vocabulary;
    empty is a model that fills none."""
    load: LoadWhen = LoadWhen.ON_DEMAND
    instances: int = 1
    """Workers that a board has of it, where they fit."""
    pin: bool = False
    """Once loaded, it stays until somebody unloads it."""
    notes: tuple[str, ...] = ()
    """What its user should know."""
    system: str | None = None
    """The system message of chats that have none."""
    adapter: str | None = None
    """The one of its adapters that answers when a request names none."""
    base: str = ""
    """The id of the model it was made from; empty for one with weights of its own."""
    manifest: Path | None = None
    """What describes it; None for a bare file."""

    def sampling(self, **chosen: object) -> Sampling:
        """The model's sampling with the `chosen` fields instead of its defaults. Raises `TypeError` on an unknown field."""
        return replace(Sampling(), **{**self.sampling_defaults, **chosen})  # type: ignore[arg-type]
