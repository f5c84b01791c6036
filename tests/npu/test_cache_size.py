"""What a token takes in the cache of an .rkllm model, and by what that is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from npu.cache_size import LIKE_QWEN3, cache_size
from npu.engines import Setup, describe
from npu.manifest import read_manifest
from npu.model import Model
from npu.simulator import SimulatedModel, write_model
from tasks.board.pull.index import read_index

SHAPE = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}


def named(folder: Path, stem: str, *names: str) -> Model:
    return Model(id="m", engine="rkllm", folder=folder, path=folder / f"{stem}.rkllm", names=names)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SHAPE, 36 * 8 * 128 * 4),
        ({"text_config": SHAPE, "vision_config": {}}, 36 * 8 * 128 * 4),
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, 2 * 64 * 4),
        ({"model_type": "rkllm"}, LIKE_QWEN3),
        (SHAPE | {"head_dim": -1}, LIKE_QWEN3),
        (SHAPE | {"num_hidden_layers": 1 << 23}, LIKE_QWEN3),
        (SHAPE | {"num_hidden_layers": "many"}, LIKE_QWEN3),
        ([SHAPE], LIKE_QWEN3),
    ],
)
def test_what_its_makers_say_of_its_shape(tmp_path: Path, config: Any, expected: int) -> None:
    """Where they say it; what is no shape is as none."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cache_size(named(tmp_path, "own-7b")).bytes == expected


def test_the_index_knows_the_others_by_the_name_of_their_file(tmp_path: Path) -> None:
    """Which is believed before names that somebody gave."""
    known = {name: model.cache_bytes_per_token for name, model in read_index().items()}
    assert cache_size(named(tmp_path, "Qwen2.5-3B-Instruct-w8a8-rk3588")).bytes == known["qwen2.5:3b"]
    assert cache_size(named(tmp_path, "weights", "qwen3:4b")).bytes == known["qwen3:4b"]
    assert cache_size(named(tmp_path, "Qwen3-0.6B-rk3588", "qwen3:4b")).bytes == known["qwen3:0.6b"]
    assert cache_size(named(tmp_path, "own-7b")).bytes == LIKE_QWEN3


def test_its_card_says_which(tmp_path: Path) -> None:
    """The figure, and by what; and its memory is reckoned with that."""
    write_model(tmp_path, SimulatedModel(name="tiny"))
    model = read_manifest(tmp_path / "manifest.toml")
    setup = Setup(tmp_path, rkllm_library="simulator-1.3.0", context_length=1024)
    guessed = describe(model, setup)
    assert any("112 KiB" in note and "own are not known" in note for note in guessed.notes)
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    told = describe(model, setup)
    assert any("144 KiB" in note and "config.json" in note for note in told.notes)
    assert told.memory_bytes - guessed.memory_bytes == (36 * 8 * 128 * 4 - LIKE_QWEN3) * 1024
