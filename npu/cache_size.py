"""What one token takes in the KV cache of a model whose file does not tell, by what lies beside it or is known of its name."""

from __future__ import annotations

import json
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from npu.model import Model
from npu.model_name import parse_model_name

INDEX: Final = Path(__file__).parents[1] / "external/models.toml"
LIKE_QWEN3: Final = 114_688
"""Bytes of Qwen3-0.6B: 28 layers, 8 heads of 128, keys and values in 16 bits. More than most models take below 3B."""
CONFIG: Final = "config.json"
"""What a model's makers say of its shape, in the form of the library transformers."""
_MOST_CONFIG = 1 << 20
_MOST = 1 << 24
"""Bytes for one token; no model takes as much."""
_BOTH_IN_16_BITS = 4


class CacheSize(NamedTuple):
    """Bytes for each token, and where that is from, in words that go on a sentence."""

    bytes: int
    source: str


def cache_size(model: Model) -> CacheSize:
    """What is told by `config.json` beside the weights, else by the index for the name of their file or of the model, else of
    another model."""
    assert model.path is not None
    told = _configured(model.path.with_name(CONFIG))
    if told is not None:
        return CacheSize(told, f"by the {CONFIG} beside it")
    known = _known()
    for name in (*parse_model_name(model.path.stem).tags, *model.names):
        if name in known:
            return CacheSize(known[name], f"as the index of models has it for {name}")
    return CacheSize(LIKE_QWEN3, f"as Qwen3-0.6B has, for its own are not known; a {CONFIG} beside it would tell")


def _configured(path: Path) -> int | None:
    """None where there is no such file, or one of another form."""
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_MOST_CONFIG))
        # Of a model that sees as well, the part that writes.
        shape = config.get("text_config", config)
        heads = _number(shape["num_attention_heads"])
        each = _number(shape.get("head_dim") or _number(shape["hidden_size"]) // heads)
        found = (
            _number(shape["num_hidden_layers"]) * _number(shape.get("num_key_value_heads") or heads) * each
        ) * _BOTH_IN_16_BITS
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found if found <= _MOST else None


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MOST:
        raise ValueError(f"{value!r} is no number of anything")
    return value


@lru_cache(maxsize=1)
def _known() -> dict[str, int]:
    """By the names of the index; nothing where there is none, which a pull would refuse with the reason."""
    try:
        models = tomllib.loads(INDEX.read_text(encoding="utf-8"))["model"]
        return {model["name"]: model["cache_bytes_per_token"] for model in models if "cache_bytes_per_token" in model}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
