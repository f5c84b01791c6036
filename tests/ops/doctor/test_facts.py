"""What the checks look at is gathered from real files and a real Redis."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from npu.engines.rkllm.engine import RkllmEngine
from npu.manifest import read_manifest
from npu.self_test import Verdict
from npu.simulator import SimulatedModel, write_model
from ops import configuration
from ops.doctor.facts import Library, ask_redis, gather, read_disk, read_python
from ops.doctor.library import library_facts
from tasks.prompting.setup import setup_of
from tasks.settings import TaskSettings
from tests.npu.boards import make_board
from tests.npu.demo import demo_model
from tests.stack import free_port


def settings(folder: Path, **changes: Any) -> TaskSettings:
    return TaskSettings(models_dir=folder / "models", data_dir=folder / "data", **changes)


def test_models_are_described(tmp_path: Path) -> None:
    """A folder's name tells the converter, a file's name the rest; what is no model is a sentence."""
    converted = tmp_path / "models/DeepSeek-R1-Distill-Qwen-1.5B-rk3588-1.2.3"
    converted.mkdir(parents=True)
    (converted / "DeepSeek-R1-Distill-Qwen-1.5B-rk3588-w8a8_g128-npu3.rkllm").write_bytes(b"x" * 10)
    (tmp_path / "models/Qwen3-0.6B-Base_W4A16_RK3576.rkllm").write_bytes(b"x")
    (tmp_path / "models/Qwen3-0.6B-Base_W4A16_RK3576_lora.rkllm").write_bytes(b"x")
    (tmp_path / "models/broken.gguf").write_bytes(b"no GGUF")
    found = gather(settings(tmp_path), root=make_board(tmp_path / "board", "rk3588"))
    models = {model.id: model for model in found.npu_models}
    assert len(models) == 2 and not any(model.tokenizer for model in models.values())
    deepseek, qwen = models["deepseek-r1-distill-qwen-1.5b"], models["qwen3-0.6b-base"]
    assert (deepseek.soc, deepseek.dtype, deepseek.cores, deepseek.toolkit) == ("rk3588", "w8a8_g128", 3, "1.2.3")
    assert deepseek.size_bytes == 10
    assert (qwen.soc, qwen.dtype, qwen.cores, qwen.toolkit, qwen.chat) == ("rk3576", "w4a16", None, None, False)
    assert any("broken.gguf" in sentence for sentence in found.complaints)
    assert found.board.soc is not None and found.redis is None


def test_a_model_is_described_by_its_last_load(tmp_path: Path) -> None:
    """Converter and self-test, as the engine kept them."""
    write_model(tmp_path / "models/simulated", SimulatedModel(garbage=True, toolkit="1.2.2"))
    chosen = settings(tmp_path).model_copy(update={"rkllm_library": "simulator"})
    (before,) = gather(chosen, root=tmp_path / "board").npu_models
    assert (before.toolkit, before.last_load, before.self_test, before.doubt) == (None, None, None, "")
    RkllmEngine.open(read_manifest(tmp_path / "models/simulated/manifest.toml"), setup_of(chosen)).close()
    (after,) = gather(chosen, root=tmp_path / "board").npu_models
    assert after.self_test is not None and after.self_test.text is Verdict.SUSPECT
    assert after.last_load is not None and after.toolkit == after.last_load.toolkit == "1.2.2"
    assert "does not stop" in after.doubt
    (other,) = gather(chosen, root=tmp_path / "board", library=Library(None, simulated="1.2.3")).npu_models
    assert (other.self_test, other.doubt, other.tried_with) == (None, "", after.last_load.runtime)
    (same,) = gather(chosen, root=tmp_path / "board", library=Library(None, simulated=other.tried_with)).npu_models
    assert (same.self_test, same.tried_with) == (after.self_test, "")


@pytest.mark.parametrize("name", ["Qwen2.5-1.5B-Instruct-w8a8", "gemma-3-1b-it-1.2.34-w8a8", "llama-13.2.1-w8a8"])
def test_not_every_number_is_a_converters_version(tmp_path: Path, name: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / f"models/{name}.rkllm").write_bytes(b"x")
    assert [model.toolkit for model in gather(settings(tmp_path), root=tmp_path).models] == [None]


@pytest.mark.model
def test_a_model_for_the_cpu_is_described_by_its_file(tmp_path: Path) -> None:
    """What it takes once loaded, and that it can chat."""
    (tmp_path / "models").mkdir()
    weights = demo_model("llamacpp").path
    assert weights is not None
    (tmp_path / "models" / weights.name).symlink_to(weights)
    (model,) = gather(settings(tmp_path), root=tmp_path).models
    assert model.engine == "llamacpp" and model.chat is True
    assert model.memory_bytes is not None and model.memory_bytes > model.size_bytes > 0
    assert model.context_length == 8192


def test_names_in_the_settings_that_mean_no_model(tmp_path: Path) -> None:
    """Ids, further names and aliases count, in any case of letters."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/Tiny-1B-w8a8.rkllm").write_bytes(b"x")
    given = settings(tmp_path, aliases={"Fast": "TINY:1b", "lost": "nothing"})
    for default, count in {"fast": 0, "tiny-1b": 0, "gone": 1}.items():
        told = gather(given.model_copy(update={"default_model": default}), root=tmp_path).dangling
        assert ["'lost'" in sentence and "'nothing'" in sentence for sentence in told[count:]] == [True]
        assert all(f"'{default}'" in sentence for sentence in told[:count])


def test_no_folder_of_models(tmp_path: Path) -> None:
    found = gather(settings(tmp_path), root=tmp_path)
    assert found.models == () and found.complaints


def test_a_redis_that_answers(valkey_url: str) -> None:
    assert ask_redis(valkey_url).error == ""


def test_a_redis_that_does_not(tmp_path: Path) -> None:
    """The reason is told, the password is not."""
    found = ask_redis(f"redis://user:hunter2@127.0.0.1:{free_port()}/0")
    assert "refused" in found.error
    assert "hunter2" not in repr(found) and "user" in found.url
    assert ask_redis(f"unix://{tmp_path}/none.sock").error


@pytest.mark.parametrize(
    "url", ["redis://:hunter2/x@127.0.0.1/0", "redis://127.0.0.1/0?db=1&pasword=hunter2", "redis://:hunter2@[::1/0"]
)
def test_a_redis_url_that_is_none(url: str) -> None:
    """A slash in a password moves the rest of it to where the port should be, and the library quotes what it refuses."""
    found = ask_redis(url)
    assert found.error == "the URL cannot be understood"
    assert "hunter2" not in found.error


def test_a_password_behind_the_url() -> None:
    """The library takes it there as well."""
    assert "hunter2" not in repr(ask_redis(f"redis://127.0.0.1:{free_port()}/0?password=hunter2&db=1"))


def test_the_folder_need_not_be_there(tmp_path: Path) -> None:
    """Then the nearest one above it counts."""
    found = read_disk(tmp_path / "a/b")
    assert found.path == tmp_path / "a/b"
    assert found.writable and found.free


def test_this_interpreter() -> None:
    found = read_python()
    assert found.version == sys.version_info[:2] and found.bits == 64 and found.private


def test_settings_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCKCHIPLLAMA_PROT", "1")
    assert list(gather(settings(tmp_path), root=tmp_path).unknown_settings) == configuration.unknown()
    assert any("ROCKCHIPLLAMA_PROT" in sentence for sentence in configuration.unknown())


def test_what_a_runtime_needs(tmp_path: Path) -> None:
    """Its name stands in the file; it may lie beside it, or wherever the loader looks."""
    library = tmp_path / "opt/librkllmrt.so"
    library.parent.mkdir()
    library.write_bytes(b"\x7fELF\0libc.so.6\0libomp.so.5\0")
    root = tmp_path / "root"
    root.mkdir()
    assert library_facts(library, "1.2.3", "as set", root).missing == ("libomp.so.5",)
    for place in (library.parent, root / "usr/lib/aarch64-linux-gnu", root / "opt/llvm"):
        place.mkdir(parents=True, exist_ok=True)
        if place.name == "llvm":
            (root / "etc/ld.so.conf.d").mkdir(parents=True)
            (root / "etc/ld.so.conf.d/llvm.conf").write_text("# LLVM\n/opt/llvm\n")
        (place / "libomp.so.5").touch()
        found = library_facts(library, "1.2.3", "as set", root)
        assert (found.path, found.version, found.why, found.missing) == (library, "1.2.3", "as set", ())
        (place / "libomp.so.5").unlink()
    library.write_bytes(b"")
    assert library_facts(library, None, root=root).missing == ()
