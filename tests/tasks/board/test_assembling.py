"""Models made of files that were sent: what they are then, and what makes none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from npu.catalog import find_models
from tasks.blobs import FOLDER, blob_path
from tasks.board.assembling import assemble
from tasks.board.shelving import remove
from tasks.commands import CommandCode, Create
from tasks.errors import CommandFailed
from tests.npu.tiny_model import SPM_BYTES, UNKNOWN, tiny_model

NOTHING = "sha256:" + "0" * 64


def send(models: Path, data: bytes) -> str:
    """As the API does it."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    (models / FOLDER).mkdir(parents=True, exist_ok=True)
    blob_path(models, digest).write_bytes(data)
    return digest


@pytest.fixture
def gguf(tmp_path: Path) -> bytes:
    path = tiny_model(tmp_path, {"model": "llama"}, [("<unk>", UNKNOWN), *SPM_BYTES]).path
    assert path is not None
    return path.read_bytes()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def sent(models: Path) -> list[str]:
    return sorted(path.name for path in (models / FOLDER).iterdir())


def test_a_gguf_becomes_a_model(models: Path, gguf: bytes) -> None:
    """With what was asked of it; the file is the model's own from then on, and goes with it."""
    digest = send(models, gguf)
    wanted = Create("Mine:1b", files={"model-1B-Q4_K_M.gguf": digest}, system="Hm.", sampling={"top_k": 3})
    assemble(models, wanted)
    catalog = find_models(models)
    assert (catalog.problems, catalog.clashes) == ((), ())
    model = catalog.find("mine:1b")
    assert model is not None and model.path is not None
    assert (model.id, model.engine, model.system, model.base) == ("mine-1b", "llamacpp", "Hm.", "")
    assert (model.sampling().top_k, model.parameters, model.quantization) == (3, "1B", "Q4_K_M")
    assert (model.path.read_bytes(), sent(models)) == (gguf, [])
    remove(models, "mine-1b")
    assert find_models(models).models == ()


def test_an_rkllm_comes_with_its_tokenizer_and_an_adapter(models: Path) -> None:
    """Which speaks when a request names none."""
    wanted = Create(
        "npu",
        files={"Qwen3-0.6B_w8a8_rk3588.rkllm": send(models, b"weights"), "tokenizer.json": send(models, b"{}")},
        adapters={"Poet_lora.rkllm": send(models, b"lora")},
    )
    model = assemble(models, wanted)
    assert (model.id, model.engine, model.soc, model.adapter) == ("npu", "rkllm", "rk3588", "poet")
    assert sorted(path.name for path in (models / "npu").iterdir()) == [
        "Qwen3-0.6B_w8a8_rk3588.rkllm",
        "manifest.toml",
        "poet_lora.rkllm",
        "tokenizer.json",
    ]
    assert find_models(models).find("npu:poet") is not None


@pytest.mark.parametrize(
    ("files", "adapters", "says"),
    [
        ({"model.safetensors": NOTHING}, {}, "one .gguf or .rkllm file"),
        ({"../x.gguf": NOTHING}, {}, "no file that it can be made of"),
        ({"tokenizer.json": NOTHING}, {}, "one file of weights"),
        ({"a-00001-of-00002.gguf": NOTHING}, {}, "Join the parts"),
        ({"a.gguf": NOTHING, "tokenizer.json": NOTHING}, {}, "same digest"),
        ({"a.gguf": NOTHING}, {"b.gguf": "sha256:" + "1" * 64}, "only .rkllm adapters"),
    ],
)
def test_what_makes_no_model_is_refused(
    models: Path, files: dict[str, str], adapters: dict[str, str], says: str
) -> None:
    """By name, before anything is looked for."""
    with pytest.raises(CommandFailed, match=says) as caught:
        assemble(models, Create("x", files=files, adapters=adapters))
    assert caught.value.code == CommandCode.NOT_POSSIBLE


def test_a_file_that_was_not_sent_here_is_missed(models: Path) -> None:
    """It may lie on another machine."""
    with pytest.raises(CommandFailed, match="another machine") as caught:
        assemble(models, Create("x", files={"a.gguf": NOTHING}))
    assert caught.value.code == CommandCode.FILE_MISSING


def test_what_comes_to_nothing_leaves_the_files(models: Path, gguf: bytes) -> None:
    """A page of a web server is no model, and a mistake in a template costs no second upload."""
    page, good = send(models, b"<html>" * 100), send(models, gguf)
    before = sent(models)
    for wanted in (
        Create("x", files={"a.gguf": page}),
        Create("x", files={"a.gguf": good}, template="{% for %}"),
        Create("x", files={"a.gguf": good}, context_length=0),
    ):
        with pytest.raises(CommandFailed, match="cannot be made"):
            assemble(models, wanted)
        assert (sent(models), find_models(models).models) == (before, ())
    assemble(models, Create("x", files={"a.gguf": good}))
    again = send(models, gguf)
    with pytest.raises(CommandFailed, match="is taken"):
        assemble(models, Create("x", files={"a.gguf": again}))
