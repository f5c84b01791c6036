"""Which files are chosen for a machine, and what is refused before anything is fetched."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from npu.manifest import read_manifest
from npu.model import is_model_id
from tasks.board.pull.asked import Address, Asked, Name, Place, Repository, parse
from tasks.board.pull.download import opener
from tasks.board.pull.errors import PullFailed
from tasks.board.pull.fetch import pull
from tasks.board.pull.hub import Hub as Client
from tasks.board.pull.index import PATH, IndexFault, read_index
from tasks.board.pull.machine import Machine, release
from tasks.board.pull.plan import Plan, make_plan
from tasks.board.pull.shelf import Shelf
from tasks.commands import CommandCode
from tests.fakes.hub import Hub, Repo

BOARD = Machine("rk3588", "1.2.3", 8 << 30)
LAPTOP = Machine(None, None, 8 << 30)
CONVERTED = "maker/Qwen3-0.6B-rk3588-1.2.1"
QUANTIZED = "maker/Qwen3-0.6B-GGUF"
BESIDE = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "README.md": b""}
INDEX = """
[[model]]
name = "qwen3:0.6b"
licence = "Apache-2.0"
[[model.file]]
engine = "rkllm"
repository = "maker/Qwen3-0.6B-rk3588-1.2.1"
revision = "main"
file = "Qwen3-0.6B-rk3588-w8a8-opt-1-hybrid-ratio-0.0.rkllm"
sha256 = "unverified"
soc = "rk3588"
dtype = "w8a8"
toolkit = "1.2.1"
context = 4096
memory_mb = 800
tokenizer = { repository = "Qwen/Qwen3-0.6B", revision = "main" }
[[model.file]]
engine = "llamacpp"
repository = "maker/Qwen3-0.6B-GGUF"
revision = "main"
file = "Qwen3-0.6B-Q8_0.gguf"
sha256 = "unverified"
size = 6
dtype = "Q8_0"
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Hub()
    name = "Qwen3-0.6B-rk3588-w8a8-opt-1-hybrid-ratio-0.0.rkllm"
    made.repos[CONVERTED] = Repo({name: b"w8a8", "sub/x.txt": b""}, card={"base_model": "Qwen/Qwen3-0.6B"})
    made.repos["Qwen/Qwen3-0.6B"] = Repo(dict(BESIDE))
    files = [f"Qwen3-0.6B-{each}.gguf" for each in ("Q8_0", "BF16", "Q4_K_M", "Q2_K")]
    made.repos[QUANTIZED] = Repo({**dict.fromkeys(files, b"GGUF.."), "mmproj-Qwen3.gguf": b"GGUF"})
    with made.serving():
        yield made


def plan(hub: Hub, what: str, machine: Machine, index: Path = PATH) -> Plan:
    return make_plan(parse(what, local=True), machine, Client(opener(), hub.url), read_index(index))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    (tmp_path / "index.toml").write_text(INDEX)
    return tmp_path / "index.toml"


@pytest.mark.parametrize(
    ("machine", "weights", "why"),
    [
        (BOARD, "Qwen3-0.6B-rk3588-w8a8-opt-1-hybrid-ratio-0.0.rkllm", "for the NPU of the rk3588"),
        (LAPTOP, "Qwen3-0.6B-Q8_0.gguf", "this machine has no NPU we know"),
        (Machine("rk3576", "1.2.3", 8 << 30), "Qwen3-0.6B-Q8_0.gguf", "this board has the rk3576"),
        (Machine("rk3588", "1.2.0", 8 << 30), "Qwen3-0.6B-Q8_0.gguf", "toolkit 1.2.1, and the runtime here is 1.2.0"),
        (Machine("rk3588", None, 8 << 30), "Qwen3-0.6B-Q8_0.gguf", "needs Rockchip's library"),
        (Machine("rk3588", "1.2.3", 700 << 20), "Qwen3-0.6B-Q8_0.gguf", "about 800 MiB of memory"),
    ],
)
def test_a_name_is_the_file_that_fits(hub: Hub, index: Path, machine: Machine, weights: str, why: str) -> None:
    """Chip, runtime and memory decide, and what was passed over is told."""
    found = plan(hub, "qwen3:0.6b", machine, index)
    assert (found.files[0].name, found.id) == (weights, "qwen3-0.6b")
    assert why in found.why


def test_the_tokenizer_comes_from_the_model_it_was_made_of(hub: Hub, index: Path, tmp_path: Path) -> None:
    """For an index entry where it says, for a repository where its card does; and the whole is a model."""
    for what in ("qwen3:0.6b", CONVERTED):
        found = plan(hub, what, BOARD, index)
        assert [file.name for file in found.files[1:]] == ["tokenizer.json", "tokenizer_config.json"], what
        assert all(file.repository == "Qwen/Qwen3-0.6B" for file in found.files[1:])
    shelf = Shelf(tmp_path / "models", lambda: BOARD, Client(opener(), hub.url), index)
    list(pull("qwen3:0.6b", shelf, pull_id="p", local=False))
    model = read_manifest(tmp_path / "models" / "qwen3-0.6b" / "manifest.toml")
    assert (model.engine, model.context_length, model.soc, model.names[0]) == ("rkllm", 4096, "rk3588", "qwen3:0.6b")


def test_without_a_tokenizer_the_model_says_so(hub: Hub) -> None:
    """Rather than a pull that fails over what one can add later."""
    hub.repos["Qwen/Qwen3-0.6B"].gated = True
    del hub.repos["Qwen/Qwen3-0.6B"].files["tokenizer.json"]
    found = plan(hub, CONVERTED, BOARD)
    assert found.manifest is not None
    assert "No tokenizer.json came with it" in found.manifest["notes"][0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("what", "file"),
    [
        (QUANTIZED, "Qwen3-0.6B-Q4_K_M.gguf"),
        (f"hf.co/{QUANTIZED}", "Qwen3-0.6B-Q4_K_M.gguf"),
        (f"{QUANTIZED}:latest", "Qwen3-0.6B-Q4_K_M.gguf"),
        (f"hf.co/{QUANTIZED}:q8_0", "Qwen3-0.6B-Q8_0.gguf"),
        (f"{QUANTIZED}/Qwen3-0.6B-BF16.gguf", "Qwen3-0.6B-BF16.gguf"),
    ],
)
def test_a_quantization_is_picked(hub: Hub, what: str, file: str) -> None:
    """A sensible one, or the one that is named."""
    assert plan(hub, what, LAPTOP).files[0].name == file


def test_what_was_picked_is_told(hub: Hub) -> None:
    """And how to have another."""
    found = plan(hub, QUANTIZED, LAPTOP)
    assert "chosen among 4 files" in found.why and "name another behind a colon" in found.why


def test_all_parts_of_a_split_file_are_fetched(hub: Hub) -> None:
    """In order, since the engine opens the first; and one that lacks a part is refused."""
    parts = [f"Big-7B-Q4_K_M-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    hub.repos["maker/Big"] = Repo(dict.fromkeys(parts, b"GGUF"))
    assert [file.name for file in plan(hub, "maker/Big", LAPTOP).files] == parts
    del hub.repos["maker/Big"].files[parts[1]]
    with pytest.raises(PullFailed, match="lacks"):
        plan(hub, "maker/Big", LAPTOP)


@pytest.mark.parametrize(
    ("what", "machine", "why"),
    [
        (CONVERTED, LAPTOP, "this machine has no NPU"),
        (CONVERTED, Machine("rk3576", "1.2.3", 8 << 30), "is for the rk3588, and this board has the rk3576"),
        (CONVERTED, Machine("rk3588", "1.1.4", 8 << 30), "made with toolkit 1.2.1"),
        (QUANTIZED, Machine(None, None, 1 << 20), "of memory"),
    ],
)
def test_what_cannot_run_here_is_refused(hub: Hub, what: str, machine: Machine, why: str) -> None:
    """Before anything is fetched, with the figures."""
    with pytest.raises(PullFailed, match=why) as caught:
        plan(hub, what, machine)
    assert caught.value.code == CommandCode.DOES_NOT_FIT
    assert hub.ranges() == []


def test_a_name_that_the_api_has_is_none(hub: Hub) -> None:
    """Before anything is fetched."""
    hub.repos["maker/Loaded"] = Repo({"loaded-Q8_0.gguf": b"GGUF"})
    with pytest.raises(PullFailed, match="would be called 'loaded'") as caught:
        plan(hub, "maker/Loaded", LAPTOP)
    assert caught.value.code == CommandCode.NAME_REFUSED
    assert hub.ranges() == []


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("qwen3", "comes in several sizes. Name one: qwen3:0.6b"),
        ("qwen3:latest", "comes in several sizes"),
        ("qwen3:0.66b", "Did you mean qwen3:0.6b?"),
        ("Qwen/Qwen3-0.6B", "has no file .gguf or .rkllm"),
        (f"{QUANTIZED}:Q9", "has no file in Q9. It has BF16, Q2_K, Q4_K_M, Q8_0"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(hub: Hub, what: str, why: str) -> None:
    """One sentence to go on from."""
    with pytest.raises(PullFailed) as caught:
        plan(hub, what, LAPTOP)
    assert why in str(caught.value)
    assert caught.value.code == CommandCode.SOURCE_MISSING


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Qwen3:0.6B", Name("qwen3:0.6b")),
        ("a/b:Q4_0", Repository("a/b", "Q4_0")),
        ("hf.co/a/b/c/d.gguf", Repository("a/b", file="c/d.gguf")),
        ("https://huggingface.co/a/b", Repository("a/b")),
        ("https://huggingface.co/a/b/resolve/v1/c.gguf?download=true", Repository("a/b", file="c.gguf", revision="v1")),
        ("https://example.org/c.gguf", Address("https://example.org/c.gguf")),
        ("./a/b", Place(Path("a/b"))),
    ],
)
def test_what_is_asked_for_is_understood(text: str, meant: Asked) -> None:
    """As people write it."""
    assert parse(text, local=True) == meant


@pytest.mark.parametrize(
    "text",
    [
        *("/etc/passwd", "../x.gguf", "https://example.org/c.gguf", "~/x", ".", "file:///x", ""),
        *("https://huggingface.co/a/b%3Fc", "https://huggingface.co/%2e%2e/whoami", "https://hf.co/a/b%0A"),
    ],
)
def test_no_client_reads_files_or_addresses_through_a_board(text: str) -> None:
    """Nor anything with a path in it that is none of a repository."""
    with pytest.raises(PullFailed):
        parse(text, local=False)


@pytest.mark.parametrize("text", ["a/../b", "a/b/../c.gguf", "a/b/.hidden", "a b/c", "a/b:c/d", "ä/b", "x" * 2000])
def test_odd_names_are_nothing(text: str) -> None:
    """What is no name, no repository and no path."""
    with pytest.raises(PullFailed):
        parse(text, local=True)


def test_the_index_that_comes_along_is_right() -> None:
    """Every name becomes an id, and what needs a tokenizer has one."""
    models = read_index()
    assert {"qwen3:0.6b", "gemma3:1b", "smollm2:135m"} <= set(models)
    for model in models.values():
        assert is_model_id(model.name.replace(":", "-"))
        assert any(file.engine == "llamacpp" for file in model.file), f"{model.name} runs on no machine without an NPU"
        assert all(file.tokenizer for file in model.file if file.engine == "rkllm")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('soc = "rk3588"\n', ""),
        ('soc = "rk3588"', 'soc = "rk1"'),
        ('sha256 = "unverified"', 'sha256 = "abc"'),
        ('file = "Qwen3-0.6B-Q8_0.gguf"', 'file = "../../etc/passwd"'),
        ("size = 6", "size = -6"),
        ("size = 6", "sizes = 6"),
        ('repository = "maker/Qwen3-0.6B-GGUF"', 'repository = "maker"'),
        ("[[model]]", "[[model"),
    ],
)
def test_an_index_with_a_mistake_is_refused(index: Path, old: str, new: str) -> None:
    """With the file, and what is wrong."""
    assert tomllib.loads(INDEX) and read_index(index)
    index.write_text(INDEX.replace(old, new))
    with pytest.raises(IndexFault, match=r"index\.toml"):
        read_index(index)


def test_a_name_that_is_no_text_is_not_copied(hub: Hub, tmp_path: Path) -> None:
    """Neither that of the weights, nor of a folder, nor of what lies beside a manifest: a record and a manifest name them."""
    odd = os.fsdecode(b"caf\xe9-1B-Q4_0.gguf")
    folders = tmp_path / "bare", tmp_path / "whole", tmp_path / os.fsdecode(b"th\xe9")
    files = folders[0] / odd, folders[1] / "Fine-1B.gguf", folders[2] / "Fine-1B.gguf"
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"GGUF")
    (folders[1] / "manifest.toml").write_text('engine = "llamacpp"')
    (folders[1] / os.fsdecode(b"notes\xe9.txt")).touch()
    for place in (*folders, files[0], files[2]):
        with pytest.raises(
            PullFailed, match=r"\\xe9\S* has a name that is not UTF-8, so it is not copied\. Rename it"
        ) as no:
            plan(hub, str(place), LAPTOP)
        str(no.value).encode()


def test_releases_compare_as_numbers() -> None:
    """1.10 comes after 1.9, and a beta is of its release."""
    assert release("1.10.0") > release("1.9.9")
    assert release("1.2.1b1") == (1, 2, 1)
