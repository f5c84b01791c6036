"""A context that is chosen is the longest that the model was made for and that fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from npu.cache_size import LIKE_QWEN3
from npu.context_length import largest_that_fits
from npu.engines import Setup, describe
from npu.engines.rkllm.facts import Loaded, write_loaded
from npu.engines.rkllm.load import memory_needed
from npu.manifest import read_manifest
from npu.model import Model
from npu.simulator import SimulatedModel, write_model
from tests.npu.test_gguf import gguf

MIB = 1 << 20
KINDS = {
    "general.architecture": "tiny",
    "tiny.context_length": 12000,
    "tiny.block_count": 32,
    "tiny.embedding_length": 4096,
    "tiny.attention.head_count": 1,
}
"""Of a file whose cache takes half a mebibyte for each token."""


@pytest.mark.parametrize(
    ("most", "memory", "length"),
    [
        (131072, None, 16384),
        (131072, 16384, 16384),
        (131072, 16383, 8192),
        (131072, 2047, 2048),  # which fits nowhere, and is refused when it loads
        (8192, None, 8192),
        (8191, None, 4096),
        (1500, 10, 1500),
    ],
)
def test_the_largest_step_that_fits(most: int, memory: int | None, length: int) -> None:
    """A byte for each token here."""
    assert largest_that_fits(most, memory, lambda context: context) == length


def test_of_a_gguf(tmp_path: Path) -> None:
    """By what its file says it was made for; a number in its manifest is the most where the setting asks for the longest."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf(KINDS))
    model = Model(id="tiny", engine="llamacpp", folder=tmp_path, path=path, context_length="auto")
    roomy = describe(model, Setup(tmp_path, model_memory=8192 * MIB))
    assert roomy.context_length == 8192  # not 16384, for which it was not made
    small = describe(model, Setup(tmp_path, model_memory=3000 * MIB))
    assert small.context_length == 4096 and small.memory_bytes <= 3000 * MIB
    assert any("4096 tokens was chosen" in note and "3000 MiB" in note for note in small.notes)
    least = describe(model, Setup(tmp_path, model_memory=900 * MIB))
    assert least.context_length == 2048
    assert any("needs about 1152 MiB, and models may have 900 MiB" in note for note in least.notes)
    limited = replace(model, context_length=2048)
    assert describe(limited, Setup(tmp_path, context_length="auto", model_memory=8192 * MIB)).context_length == 2048


@pytest.mark.parametrize(
    ("ctx", "runtime", "memory", "length"),
    [
        ("-ctx16384", "1.3.0", 3, 16384),
        ("-ctx16384", "1.3.0", 1.3, 8192),
        ("-ctx16384", "1.1.4", 3, 4096),
        ("", "1.3.0", 3, 4096),
    ],
)
def test_of_an_rkllm(tmp_path: Path, ctx: str, runtime: str, memory: float, length: int) -> None:
    """By what its name tells, which is all that is known before it is loaded, and what the runtime can."""
    written = write_model(tmp_path, SimulatedModel(name="tiny"))
    weights = written.rename(tmp_path / f"tiny-1b-w8a8{ctx}-rk3588.rkllm")
    (tmp_path / "manifest.toml").write_text(f'file = "{weights.name}"\ncontext_length = "auto"\n')
    model = read_manifest(tmp_path / "manifest.toml")
    budget = int(memory * (1 << 30))
    facts = describe(model, Setup(tmp_path, rkllm_library=f"simulator-{runtime}", model_memory=budget))
    assert facts.context_length == length
    assert memory_needed(weights.stat().st_size, LIKE_QWEN3, length) == facts.memory_bytes <= budget


def test_what_a_load_told_later_changes_no_context(tmp_path: Path) -> None:
    """Its worker has what its card says; a note tells that there could be more."""
    write_model(tmp_path, SimulatedModel(name="tiny"))
    model = replace(read_manifest(tmp_path / "manifest.toml"), context_length="auto")
    setup = Setup(tmp_path, rkllm_library="simulator-1.3.0", model_memory=8 << 30)
    told = Loaded(
        runtime="1.3.0", driver=None, platform=None, toolkit=None, max_context=16384, npu_cores=None, dtype=None
    )
    write_loaded(model, setup, told)
    facts = describe(model, setup)
    assert facts.context_length == 4096
    assert any("converted for 16384 tokens" in note for note in facts.notes)
    write_loaded(model, setup, replace(told, max_context=2048))
    assert describe(model, setup).context_length == 2048
