"""Models are found, and what is wrong with one hides no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from npu.catalog import find_models


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_manifests_and_bare_files_in_the_order_of_their_ids(models: Path) -> None:
    put(models / "zebra" / "manifest.toml", 'engine = "echo"')
    put(models / "Qwen3-0.6B-Q8_0.gguf")
    put(models / "hub" / "someone" / "Alpha-1B.gguf")
    catalog = find_models(models)
    assert [model.id for model in catalog.models] == ["alpha-1b", "qwen3-0.6b", "zebra"]
    assert (catalog.clashes, catalog.problems) == ((), ())


def test_names_lead_to_their_model(models: Path) -> None:
    put(models / "Qwen3-0.6B-Q8_0.gguf")
    catalog = find_models(models)
    for name in ("qwen3-0.6b", "QWEN3:0.6B", "Qwen3-0.6B-Q8_0"):
        found = catalog.find(name)
        assert found is not None
        assert found.id == "qwen3-0.6b"
    assert catalog.find("../../etc/passwd") is None


def test_hidden_and_partial_files_are_no_models(models: Path) -> None:
    for name in (
        ".hidden.gguf",
        "half.gguf.partial",
        ".git/deep.gguf",
        "README.md",
        "mmproj-F16.gguf",
        "big-00002-of-00003.gguf",
    ):
        put(models / name)
    assert find_models(models).models == ()


def test_a_split_file_is_one_model(models: Path) -> None:
    for number in (1, 2, 3):
        put(models / f"Big-7B-Q4_0-0000{number}-of-00003.gguf")
    assert [model.id for model in find_models(models).models] == ["big-7b"]


def test_a_broken_manifest_is_a_sentence(models: Path) -> None:
    put(models / "bad" / "manifest.toml", "colour = 1")
    put(models / "bad" / "weights.gguf")
    put(models / "good.gguf")
    catalog = find_models(models)
    assert [model.id for model in catalog.models] == ["good"]
    assert len(catalog.problems) == 1
    assert "colour" in catalog.problems[0]
    (models / "bad" / "manifest.toml").write_bytes(b"id = 'caf\xe9'\n")
    [problem] = find_models(models).problems
    assert "its byte 10 is no text in UTF-8" in problem


def test_what_is_refused_is_known_by_the_names_it_would_have(models: Path) -> None:
    """A folder's with a broken manifest, a file's with a link to nowhere; not of what is no model anyway."""
    put(models / "Bad-1B" / "manifest.toml", "colour = 1")
    put(models / "Half_lora.rkllm")
    (models / "Gone-1B-Q4_0.gguf").symlink_to(models / "nowhere")
    catalog = find_models(models)
    assert set(catalog.refused) == {"bad-1b", "bad:1b", "gone-1b", "gone:1b", "gone-1b-q4_0"}
    assert "colour" in catalog.refused["bad-1b"]
    assert "link" in catalog.refused["gone-1b-q4_0"]
    assert catalog.unusable == {"bad-1b": ("bad:1b",), "gone-1b": ("gone-1b-q4_0", "gone:1b")}


def test_each_refused_model_goes_by_names_of_its_own(models: Path) -> None:
    """Also where two are refused for the same reason, or would have the same id."""
    for name in ("one", "two"):
        put(models / name / "manifest.toml", 'base = "gone"')
    for quantization in ("Q4_0", "Q8_0"):
        (models / f"X-1B-{quantization}.gguf").symlink_to(models / "nowhere")
    catalog = find_models(models)
    assert set(catalog.unusable) == {"one", "two", "x-1b", "x-1b-q8_0"}
    assert "Q4_0" in catalog.refused["x-1b"] and "Q8_0" in catalog.refused["x-1b-q8_0"]


def test_no_model_hides_what_the_api_has(models: Path) -> None:
    """Neither by its id, nor by the name of a file that has another one."""
    put(models / "Load.gguf")
    put(models / "fine" / "loaded.gguf")
    put(models / "fine" / "manifest.toml", 'id = "fine"')
    catalog = find_models(models)
    assert [(model.id, "loaded" in model.names) for model in catalog.models] == [("fine", False)]
    assert "no model can be called 'load'" in catalog.problems[0]


def test_two_models_with_one_id(models: Path) -> None:
    first = put(models / "a" / "Same-1B-Q4_0.gguf")
    second = put(models / "b" / "Same-1B-Q8_0.gguf")
    catalog = find_models(models)
    assert [model.path for model in catalog.models] == [first]
    assert str(second) in catalog.clashes[0]
    assert "same-1b" in catalog.clashes[0]


def test_two_models_with_one_name(models: Path) -> None:
    """The base model keeps the name its tuned sibling would be shortened to."""
    put(models / "Tiny-1B-Instruct.gguf")
    put(models / "Tiny-1B.gguf")
    catalog = find_models(models)
    found = catalog.find("tiny:1b")
    assert found is not None
    assert found.id == "tiny-1b"
    assert len(catalog.clashes) == 1


def test_a_file_no_engine_runs_is_a_sentence(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npu.catalog.ENGINES", {"llamacpp": "somewhere:Else"})
    put(models / "Qwen3-0.6B-w8a8-rk3588.rkllm")
    catalog = find_models(models)
    assert catalog.models == ()
    assert "no engine here can run .rkllm" in catalog.problems[0]


def test_links_to_files_are_followed_and_links_to_folders_are_not(models: Path, tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "disk" / "weights.gguf")
    models.mkdir()
    (models / "linked.gguf").symlink_to(elsewhere)
    (models / "folder").symlink_to(tmp_path / "disk")
    (models / "loop").symlink_to(models)
    (models / "gone.gguf").symlink_to(tmp_path / "nowhere")
    catalog = find_models(models)
    assert [model.id for model in catalog.models] == ["linked"]
    assert len(catalog.problems) == 3


def test_a_weight_file_beside_a_manifest_that_means_another(models: Path) -> None:
    put(models / "a" / "manifest.toml", 'file = "one.gguf"')
    put(models / "a" / "one.gguf")
    put(models / "a" / "two.gguf")
    catalog = find_models(models)
    assert [model.id for model in catalog.models] == ["one"]
    assert "two.gguf" in catalog.problems[0]


def test_depth_is_bounded(models: Path) -> None:
    put(models / "1" / "2" / "3" / "seen.gguf")
    put(models / "1" / "2" / "3" / "4" / "unseen.gguf")
    assert [model.id for model in find_models(models).models] == ["seen"]


def test_a_name_that_is_no_text_is_a_sentence_in_text(models: Path) -> None:
    """In a folder of its own, beside a manifest, and of a folder; what is told of them can be sent and printed."""
    put(models / "Good-1B-Q4_0.gguf")
    put(models / os.fsdecode(b"caf\xe9-1B-Q4_0.gguf"))
    put(models / os.fsdecode(b"caf\xe9_lora.rkllm"))
    put(models / os.fsdecode(b"th\xe9") / "manifest.toml", 'engine = "nonsense"')
    put(models / "beside" / os.fsdecode(b"\xe9-1B.gguf"))
    put(models / "beside" / "manifest.toml", 'engine = "llamacpp"')
    put(models / os.fsdecode(b"notes\xe9.txt"))
    os.symlink("nowhere", models / os.fsdecode(b"link\xe9"))
    catalog = find_models(models)
    assert [model.id for model in catalog.models] == ["good-1b"]
    said = "\n".join(catalog.problems)
    for name, why in (
        (r"caf\xe9-1B-Q4_0.gguf", "left alone"),
        (r"th\xe9", "no model in it"),
        (r"\xe9-1B.gguf", "left"),
    ):
        assert f"{name} has a name that is not UTF-8, so " in said
        assert why in said
    assert len(catalog.problems) == 6, catalog.problems
    for told in (said, *catalog.refused.items(), *catalog.unusable):
        "".join(told).encode()
    assert "caf-1b" in catalog.refused


def test_no_folder_is_a_sentence(models: Path) -> None:
    assert "cannot be read" in find_models(models).problems[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_a_sentence(models: Path) -> None:
    put(models / "closed" / "x.gguf")
    put(models / "open.gguf")
    (models / "closed").chmod(0)
    catalog = find_models(models)
    (models / "closed").chmod(0o700)
    assert [model.id for model in catalog.models] == ["open"]
    assert len(catalog.problems) == 1


def test_an_adapter_is_no_model(models: Path) -> None:
    """One that a manifest names goes with it, in whatever folder below; one that nobody names is a sentence."""
    put(models / "a" / "manifest.toml", '[adapters]\npoet = "loras/poet.rkllm"\nbard = "bard.gguf"')
    for name in ("one.rkllm", "loras/poet.rkllm", "bard.gguf", "lost_lora.rkllm"):
        put(models / "a" / name)
    put(models / "bare" / "two.rkllm")
    put(models / "bare" / "two_lora.rkllm")
    catalog = find_models(models)
    assert [model.id for model in catalog.models] == ["one", "two"]
    assert len(catalog.problems) == 2
    for problem, name in zip(catalog.problems, ("lost_lora.rkllm", "two_lora.rkllm"), strict=True):
        assert name in problem and "`[adapters]`" in problem


def test_a_name_with_an_adapter_leads_to_its_model(models: Path) -> None:
    """By any of the model's names; a model whose name it is keeps it, and that is told."""
    adapters = '[adapters]\npoet = "one_lora.rkllm"\nbard = "one_lora.rkllm"'
    put(models / "a" / "manifest.toml", f'id = "tiny"\nnames = ["small"]\nfile = "one.rkllm"\n{adapters}')
    put(models / "a" / "one.rkllm")
    put(models / "a" / "one_lora.rkllm")
    put(models / "b" / "manifest.toml", 'id = "other"\nengine = "echo"\nnames = ["tiny:bard"]')
    catalog = find_models(models)
    meant = {"tiny:poet": "tiny", "Small:Poet": "tiny", "tiny:bard": "other", "tiny:painter": None, ":poet": None}
    found = {name: catalog.find(name) for name in meant}
    assert {name: model and model.id for name, model in found.items()} == meant
    assert len(catalog.clashes) == 1 and "tiny:bard" in catalog.clashes[0]
