"""What is refused before the long work begins, with the key and the line to mend."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from ops.convert.convert import main
from tests.npu.test_gguf import gguf
from tests.ops.convert.conftest import RECIPE


def refused(folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence. The toolkit was not told to do anything, and nothing was written."""
    before = sorted(folder.rglob("*"))
    assert main([str(folder / "recipe.toml")]) == 2
    assert not toolkit.CALLS
    assert sorted(folder.rglob("*")) == before
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "line", "sentence"),
    [
        ('"rk3588"\n', '"rk9999"\n', 5, "`build.target_platform` cannot be: there is no chip 'rk9999'"),
        ('"w8a8"', '"w4a16"', 6, "`build.dtype` is 'w4a16': an rk3588 runs fp16, w8a8"),
        ('"w8a8"', '"w8a8_g512"', 6, "groups of 512, which do not divide the model's hidden_size 640"),
        ('"w8a8"', "8", 6, "`build.dtype` must be a string"),
        ('dtype = "w8a8"', 'dtype = "w8a8"\ncores = 4', 7, "`build.cores` is 4: the NPU of an rk3588 has 1 to 3"),
        ("max_context = 2048", "max_context = 2047", 7, "multiple of 32"),
        ("max_context = 2048", "max_context = 32768", 7, "at most 16384"),
        ("max_context = 2048", "optimization_level = 2", 7, "`build.optimization_level` must be 0"),
        ("max_context = 2048", "hybrid_rate = 1.0", 7, "less than 1"),
        ("max_context = 2048", 'algorithm = "best"', 7, "there are `normal` and `grq`"),
        ("max_context = 2048", 'algorithm = "normal_r65"', 7, "`_r1` to `_r64`"),
        ("max_context = 2048", 'algorithm = "gdq"', 7, "no longer has since 1.3.0"),
        ("max_context = 2048", 'algorithm = "grq"', 7, "needs CUDA"),
        ("max_context = 2048", "seed = 3", 7, "`build.seed` is not known here. There are: target_platform"),
        ("max_context = 2048", 'extra_qparams = "none"', 7, "is not there"),
        ('"w8a8"', '"fp16"\nhybrid_rate = 0.5', 7, "means nothing where dtype is `fp16`"),
        ('"w8a8"', '"fp16"', 10, "`calibration.file` means nothing where nothing is quantized"),
        ('file = "calibration.jsonl"', "", 9, "`calibration.file` is missing"),
        ('"calibration.jsonl"', '"other.jsonl"', 10, "cannot be read"),
        ('"text.txt"', '"other.txt"', 13, "cannot be read"),
        ("tokens = 16", "tokens = 4", 14, "between 16 and"),
        ("tokens = 16", "tokens = 500", 13, "fewer than `evaluation.tokens` (500)"),
        ('id = "tiny"', 'id = "Tiny One"', 18, "`manifest.id` may have lower-case"),
        ('id = "tiny"', 'id = "load"', 18, "`manifest.id` cannot be any of available"),
        ('id = "tiny"', "", 17, "`manifest.id` is missing"),
        ('id = "tiny"', 'id = "tiny"\nsampling = { heat = 1 }', 19, "`manifest.sampling.heat` is not known"),
        ('id = "tiny"', 'id = "tiny"\nsampling = { top_p = 7.0 }', 19, "top_p"),
        ('source = "Tiny"', 'source = "Other"', 1, "where there is no config.json"),
        ('source = "Tiny"', 'source = "other.gguf"', 1, "there is no such file"),
        ('source = "Tiny"', 'source = "text.txt"', 1, "where there is no config.json"),
        ('output = "tiny-rk3588"', 'output = "Tiny"', 2, "is there already"),
        ('output = "tiny-rk3588"', 'output = "x"\nlora = "nowhere"', 3, "is not there"),
    ],
)
def test_a_key_that_cannot_be(
    folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str], old: str, new: str, line: int, sentence: str
) -> None:
    """The file, its line and the key are named."""
    path = folder / "recipe.toml"
    assert RECIPE.count(old) == 1
    path.write_text(RECIPE.replace(old, new))
    said = refused(folder, toolkit, capsys)
    if "heat" in new:  # an inline table has no line of its own for each key
        line = 0
    assert sentence in said
    assert said.startswith(f"{path}, line {line}: `" if line and "top_p" not in new else str(path))


def test_a_line_of_the_calibration_data(folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One without an answer, and one that is no JSON."""
    data = folder / "calibration.jsonl"
    for bad in (
        '{"messages": [{"role": "user", "content": "Why?"}]}',
        "Why?",
        '{"messages": []}',
        '{"text": "x"}',
        "3",
    ):
        data.write_text(data.read_text().splitlines()[0] + "\n" + bad + "\n")
        assert f"{data}, line 2: this is no conversation" in refused(folder, toolkit, capsys)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer_config.json", None, "no tokenizer_config.json"),
        ("tokenizer_config.json", "{}", "no chat template"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", json.dumps({"chat_template": "{% if %}"}), "chat template"),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read"),
        ("config.json", "[]", "config.json that cannot be read"),
        ("model.safetensors", None, "holds no weights"),
    ],
)
def test_a_model_that_is_not_whole(
    folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str], name: str, content: str | None, sentence: str
) -> None:
    """Half a download, or a base model."""
    path = folder / "Tiny" / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert sentence in refused(folder, toolkit, capsys)


@pytest.mark.parametrize(
    ("number", "more", "sentence"),
    [
        (2, "", "`build.dtype` must be w4a16_g32"),
        (15, "", "the toolkit reads Q4_0 and F16 only"),
        (1, '[load]\ndtype = "float16"\n', "`load.dtype` is not taken by the toolkit for a GGUF"),
    ],
)
def test_a_gguf_that_cannot_be(
    folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str], number: int, more: str, sentence: str
) -> None:
    """By the type its weights have."""
    (folder / "tiny.gguf").write_bytes(gguf({"general.architecture": "llama", "general.file_type": number}))
    text = RECIPE.replace('source = "Tiny"', 'source = "tiny.gguf"\ntokenizer = "Tiny"')
    (folder / "recipe.toml").write_text(text + more)
    assert sentence in refused(folder, toolkit, capsys)


def test_a_gguf_without_a_tokenizer(folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The board needs tokenizer.json, which a GGUF does not hold."""
    (folder / "tiny.gguf").write_bytes(gguf({"general.architecture": "llama", "general.file_type": 1}))
    (folder / "recipe.toml").write_text(RECIPE.replace('"Tiny"', '"tiny.gguf"'))
    assert "`tokenizer` is missing" in refused(folder, toolkit, capsys)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("", "`evaluation` cannot be chosen for a file that is only updated"),
        ("hybrid_rate = 0.5\n", "`build.hybrid_rate` cannot be changed by an update"),
    ],
)
def test_an_update_changes_nothing_else(
    folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str], more: str, sentence: str
) -> None:
    """What was settled when the file was built stays."""
    (folder / "old.rkllm").write_bytes(b"old")
    evaluation = "" if more else '[evaluation]\ntext = "text.txt"\n'
    text = f'[build]\ntarget_platform = "rk3588"\ndtype = "w8a8"\n{more}{evaluation}[manifest]\nid = "old"\n'
    (folder / "recipe.toml").write_text(f'source = "old.rkllm"\noutput = "new"\ntokenizer = "Tiny"\n{text}')
    assert sentence in refused(folder, toolkit, capsys)


def test_no_toml(folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """TOML's own words have the line."""
    (folder / "recipe.toml").write_text("source = \n")
    assert "is not TOML" in refused(folder, toolkit, capsys)
    (folder / "recipe.toml").unlink()
    assert "cannot be read" in refused(folder, toolkit, capsys)


def test_no_toolkit(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It says where its wheel is."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert main([str(folder / "recipe.toml")]) == 2
    assert "has no rkllm-toolkit" in capsys.readouterr().err
    assert "rkllm.api" not in sys.modules


def test_a_board_is_no_pc(
    folder: Path, toolkit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no toolkit for it."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "Convert on a PC" in refused(folder, toolkit, capsys)


@pytest.mark.parametrize(
    ("version", "sentence"), [("1.1.4", "too old. Install 1.2.0"), ("1.2.3", "`export.embedding` cannot be false")]
)
def test_an_old_toolkit(
    folder: Path,
    toolkit: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: str,
    sentence: str,
) -> None:
    """By what it cannot do yet."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with (folder / "recipe.toml").open("a") as file:
        file.write("[export]\nembedding = false\n")
    assert sentence in refused(folder, toolkit, capsys)


def test_a_toolkit_that_takes_less(
    folder: Path, toolkit: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own signatures are looked at before the first call."""
    monkeypatch.setattr(toolkit.RKLLM, "build", lambda self, do_quantization, dataset: 0)
    assert "build of rkllm-toolkit 1.3.0 takes no `optimization_level`" in refused(folder, toolkit, capsys)
    monkeypatch.delattr(toolkit.RKLLM, "build")
    assert "has no build" in refused(folder, toolkit, capsys)


def test_check_stops_before_the_work(folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 0 when all is in order."""
    assert main([str(folder / "recipe.toml"), "--check"]) == 0
    assert "is in order" in capsys.readouterr().out
    assert not toolkit.CALLS
