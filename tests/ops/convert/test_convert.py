"""Conversions from recipe to model folder, with a stand-in for the toolkit."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tomllib
import venv
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pytest

from npu.manifest import read_manifest
from npu.model import SAMPLING_DEFAULTS
from npu.template_search import find_template
from ops.convert.convert import main
from ops.convert.recipe import read_recipe
from tasks.board.pull.download import digest
from tasks.settings import ROOT
from tests.npu.test_gguf import gguf
from tests.ops.convert.conftest import TEMPLATE, install

RECIPES = sorted((ROOT / "ops/convert/recipes").glob("*.toml"))


def convert(folder: Path, *words: str) -> int:
    return main([str(folder / "recipe.toml"), *words])


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "recipe.toml").read_text()
    assert old in text
    (folder / "recipe.toml").write_text(text.replace(old, new))


def named(toolkit: Any, name: str) -> list[dict[str, Any]]:
    return [arguments for call, arguments in toolkit.CALLS if call == name]


def test_a_model_folder_is_written(folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Which the board's own reader takes: weights, tokenizer, template, manifest and record."""
    assert convert(folder) == 0
    output = folder / "tiny-rk3588"
    model = read_manifest(output / "manifest.toml")
    assert (model.id, model.engine, model.context_length, model.soc) == ("tiny", "rkllm", 2048, "rk3588")
    assert (model.quantization, model.family) == ("W8A8", "tiny")
    assert model.path is not None
    assert model.path.name == "tiny-w8a8-opt0-hybrid0-npu3-ctx2048-rk3588.rkllm"
    assert model.sampling_defaults == SAMPLING_DEFAULTS
    assert model.template_options == {"enable_thinking": False}
    template = find_template(model, None)
    assert template is not None and template.source == TEMPLATE
    assert (output / "tokenizer.json").read_bytes() == (folder / "Tiny/tokenizer.json").read_bytes()
    assert (output / "LICENSE").exists()
    record = json.loads((output / "conversion.json").read_text())
    assert record["toolkit"] == "1.3.0" and record["dtype"] == "w8a8"
    assert record["sha256"] == {model.path.name: digest(model.path)}
    assert digest(model.path) in model.notes[0] and "rkllm-toolkit 1.3.0" in model.notes[0]
    assert not list(folder.glob(".*")), "no draft is left"
    assert "is ready" in capsys.readouterr().out


def test_what_the_toolkit_is_told(folder: Path, toolkit: Any) -> None:
    """Each documented argument, and calibration rendered by the model's own template and options."""
    assert convert(folder) == 0
    assert [name for name, _ in toolkit.CALLS] == [
        "load_huggingface",
        "chat_model",
        "build",
        "chat_model",
        "export_rkllm",
    ]
    (loaded,) = named(toolkit, "load_huggingface")
    assert (loaded["model"], loaded["device"], loaded["dtype"]) == (str(folder / "Tiny"), "cpu", "float32")
    (built,) = named(toolkit, "build")
    assert {key: built[key] for key in ("quantized_dtype", "num_npu_core", "max_context", "target_platform")} == {
        "quantized_dtype": "w8a8",
        "num_npu_core": 3,
        "max_context": 2048,
        "target_platform": "rk3588",
    }
    assert (built["optimization_level"], built["quantized_algorithm"], built["hybrid_rate"]) == (0, "normal", 0.0)
    pair = {"input": "<s><user>Why?\n<assistant></think>", "target": "Because."}
    assert built["pairs"] == [pair, pair]
    assert named(toolkit, "chat_model")[0]["message"] == "<s><user>Capital?\n<assistant></think>"


def test_quality_before_and_after(folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that finds 8, then 16 words equally likely has just these perplexities."""
    assert convert(folder) == 0
    measured = json.loads((folder / "tiny-rk3588/conversion.json").read_text())["measured"]
    assert measured["before"]["perplexity"] == pytest.approx(8)
    assert measured["after"]["perplexity"] == pytest.approx(16)
    assert measured["before"]["answers"] == {"Capital?": "Paris."}
    assert measured["after"]["answers"] == {"Capital?": "Paris, more or less."}
    assert "8.000 before quantization, 16.000 after" in read_manifest(folder / "tiny-rk3588/manifest.toml").notes[1]
    assert "after quantization: perplexity 16.000" in capsys.readouterr().out


def test_a_simulation_that_fails_is_told_and_ends_nothing(folder: Path, toolkit: Any) -> None:
    """What was not measured says why, in the record."""
    toolkit.TROUBLE.update({"get_logits": RuntimeError("not now"), "chat_model": " "})
    assert convert(folder) == 0
    measured = json.loads((folder / "tiny-rk3588/conversion.json").read_text())["measured"]["after"]
    assert measured["perplexity"] == "not measured: RuntimeError: not now"
    assert measured["answers"]["Capital?"].startswith("not measured: ValueError: chat_model answered")
    assert len(read_manifest(folder / "tiny-rk3588/manifest.toml").notes) == 1


def test_measuring_before_can_be_left_out(folder: Path, toolkit: Any) -> None:
    """For a toolkit that cannot do it."""
    edit(folder, "tokens = 16", "tokens = 16\nbefore = false")
    assert convert(folder) == 0
    assert list(json.loads((folder / "tiny-rk3588/conversion.json").read_text())["measured"]) == ["after"]


def test_fp16_is_not_quantized(folder: Path, toolkit: Any) -> None:
    """No type, algorithm or data is named to the toolkit."""
    edit(folder, '"w8a8"', '"fp16"')
    edit(folder, '[calibration]\nfile = "calibration.jsonl"\n', "")
    assert convert(folder) == 0
    (built,) = named(toolkit, "build")
    assert (built["do_quantization"], built["dataset"]) == (False, None)
    assert read_manifest(folder / "tiny-rk3588/manifest.toml").quantization == "FP16"


def test_every_key_reaches_the_toolkit(folder: Path, toolkit: Any) -> None:
    """Those a plain recipe leaves out."""
    (folder / "lora").mkdir()
    for name in ("custom.json", "q.qparams"):
        (folder / name).write_text("{}")
    edit(folder, 'output = "tiny-rk3588"', 'output = "tiny-rk3588"\nlora = "lora"')
    build = 'cores = 1\noptimization_level = 1\nalgorithm = "grq_r8"\nhybrid_rate = 0.25\nextra_qparams = "q.qparams"'
    edit(folder, "max_context = 2048", f"max_context = 2048\n{build}")
    with (folder / "recipe.toml").open("a") as file:
        file.write('[load]\ndevice = "cuda"\ndtype = "bfloat16"\ncustom_config = "custom.json"\n')
        file.write("[export]\ntokenizer = false\nembedding = false\n")
    assert convert(folder) == 0
    (loaded,) = named(toolkit, "load_huggingface")
    assert loaded["model_lora"] == str(folder / "lora") and loaded["custom_config"] == str(folder / "custom.json")
    assert (loaded["device"], loaded["dtype"]) == ("cuda", "bfloat16")
    (built,) = named(toolkit, "build")
    assert (built["num_npu_core"], built["optimization_level"], built["hybrid_rate"]) == (1, 1, 0.25)
    assert (built["quantized_algorithm"], built["extra_qparams"]) == ("grq_r8", str(folder / "q.qparams"))
    (exported,) = named(toolkit, "export_rkllm")
    assert (exported["export_tokenizer"], exported["export_embedding"]) == (False, False)
    record = json.loads((folder / "tiny-rk3588/conversion.json").read_text())
    assert [name.endswith("_lora.rkllm") for name in record["sha256"]] == [False, True]
    model = read_manifest(folder / "tiny-rk3588/manifest.toml")
    assert [(its.name, its.path.name) for its in model.adapters] == [("lora", list(record["sha256"])[1])]
    assert any(f"{model.id}:lora" in note for note in model.notes)
    assert any("embedding" in note for note in read_manifest(folder / "tiny-rk3588/manifest.toml").notes)


def file_type(number: int, **more: object) -> bytes:
    return gguf({"general.architecture": "llama", "general.file_type": number, **more})


def test_a_gguf(folder: Path, toolkit: Any) -> None:
    """Q4_0 becomes w4a16_g32 and is not calibrated; tokenizer and template come from the folder that is named."""
    (folder / "tiny.gguf").write_bytes(file_type(2))
    edit(folder, 'source = "Tiny"', 'source = "tiny.gguf"\ntokenizer = "Tiny"')
    edit(folder, '"rk3588"\ndtype = "w8a8"', '"rk3576"\ndtype = "w4a16_g32"')
    edit(folder, '[calibration]\nfile = "calibration.jsonl"\n', "")
    assert convert(folder) == 0
    assert named(toolkit, "load_gguf")[0]["model"] == str(folder / "tiny.gguf")
    assert named(toolkit, "build")[0]["dataset"] is None
    assert read_manifest(folder / "tiny-rk3588/manifest.toml").soc == "rk3576"


def test_an_adapter_in_gguf_is_no_model(folder: Path, toolkit: Any) -> None:
    """It gets weights and a record, and no manifest."""
    (folder / "style.gguf").write_bytes(file_type(1, **{"general.type": "adapter"}))
    text = '[build]\ntarget_platform = "rk3588"\ndtype = "fp16"\n[manifest]\nid = "style"\n'
    (folder / "recipe.toml").write_text('source = "style.gguf"\noutput = "style"\n' + text)
    assert convert(folder) == 0
    names = sorted(path.name for path in (folder / "style").iterdir())
    assert names == ["conversion.json", "style-fp16-opt0-hybrid0-npu3-ctx4096-rk3588_lora.rkllm"]


@pytest.mark.parametrize("how", ["beside", "in place"])
def test_an_old_file_is_updated(folder: Path, toolkit: Any, how: str) -> None:
    """Wherever the toolkit leaves its result; the old file itself is not touched."""
    toolkit.TROUBLE["update_rkllm"] = how
    write_update(folder)
    assert convert(folder) == 0
    model = read_manifest(folder / "new/manifest.toml")
    assert model.path is not None
    assert model.path.read_bytes().endswith(b"updated")
    assert "brought up to date" in model.notes[0]
    assert (folder / "old.rkllm").read_bytes() == b"old"


def test_an_update_that_changes_nothing_fails(folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Instead of passing the old file off as a new one."""
    toolkit.TROUBLE["update_rkllm"] = "not at all"
    write_update(folder)
    assert convert(folder) == 1
    assert "neither changed the file" in capsys.readouterr().err
    assert not (folder / "new").exists()


def write_update(folder: Path) -> None:
    (folder / "old.rkllm").write_bytes(b"old")
    text = '[build]\ntarget_platform = "rk3588"\ndtype = "w8a8"\n[manifest]\nid = "old"\n'
    (folder / "recipe.toml").write_text('source = "old.rkllm"\noutput = "new"\ntokenizer = "Tiny"\n' + text)


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ({"load_huggingface": -1}, "load_huggingface of rkllm-toolkit failed"),
        ({"build": -1}, "build of rkllm-toolkit failed"),
        ({"export_rkllm": "nothing"}, "wrote no tiny-w8a8"),
    ],
)
def test_a_toolkit_that_fails(
    folder: Path, toolkit: Any, capsys: pytest.CaptureFixture[str], trouble: dict[str, Any], sentence: str
) -> None:
    """A sentence, exit code 1, and no half a model folder."""
    toolkit.TROUBLE.update(trouble)
    assert convert(folder) == 1
    assert sentence in capsys.readouterr().err
    assert not (folder / "tiny-rk3588").exists() and not list(folder.glob(".*"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the toolkit runs on x86-64 only")
def test_it_needs_only_jinja2_beside_the_toolkit(folder: Path, tmp_path: Path) -> None:
    """In a Python that has nothing of ours; `tokenizers` is what measuring perplexity takes, and comes with the toolkit."""
    edit(folder, 'text = "text.txt"\n', "")
    home = tmp_path / "toolkit-python"
    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python*/site-packages"))
    install(site)
    for package in (jinja2, markupsafe):
        shutil.copytree(Path(package.__path__[0]), site / package.__name__)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [home / "bin/python", ROOT / "ops/convert/convert.py", "work/recipe.toml", "--output", "made"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert read_manifest(tmp_path / "made/manifest.toml").id == "tiny"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_are_in_order(path: Path, folder: Path, toolkit: Any) -> None:
    """All but the model, which is not at hand: with a tiny one in its place they convert, and say the house's sampling."""
    given = tomllib.loads(path.read_text())
    assert given["manifest"]["sampling"] == SAMPLING_DEFAULTS
    recipe = tmp_recipe(path, folder)
    assert main([str(recipe), "--source", str(folder / "Tiny"), "--output", str(folder / "out")]) == 0
    model = read_manifest(folder / "out/manifest.toml")
    assert path.stem == f"{model.id}-{model.soc}"
    assert model.template_options == ({"enable_thinking": True} if "qwen3" in model.id else {})
    assert named(toolkit, "build")[0]["num_npu_core"] == {"rk3588": 3, "rk3576": 2}[model.soc or ""]
    assert len(named(toolkit, "build")[0]["pairs"]) == 20
    assert read_recipe(path).source.name == given["source"]


def tmp_recipe(path: Path, folder: Path) -> Path:
    """The recipe and its data, with a text that the tiny tokenizer's few words do for."""
    shutil.copytree(path.parent, folder / "recipes")
    return folder / "recipes" / path.name
