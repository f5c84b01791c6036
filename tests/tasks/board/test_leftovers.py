"""What broken-off pulls and uploads leave in the models folder, and `rockchipllama models prune`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ops.cli.models import prune as command
from tasks.board.leftovers import leftovers, prune
from tasks.board.staging import clear

HOUR = 3600.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model; of yesterday a pull that broke off, one that goes on, a folder half assembled and a blob; and a blob of now."""
    for name, text in {
        "kept/weights.gguf": "w" * 50,
        ".partial/broken/weights.gguf": "b" * 100,
        ".partial/broken.lock": "",
        ".partial/going/weights.gguf": "g" * 200,
        ".partial/going.lock": "",
        ".partial/.half~/manifest.toml": "m" * 300,
        ".partial/.stages.lock": "",
        ".partial/.blobs/old": "o" * 400,
        ".partial/.blobs/new": "n" * 500,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yesterday = time.time() - 25 * HOUR
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        if path.name not in ("new", ".blobs", ".partial"):
            os.utime(path, (yesterday, yesterday))
    return tmp_path


def test_only_what_nobody_comes_back_for_is_removed(folder: Path) -> None:
    """Neither a model, nor what a pull holds, nor what is new, nor a lock."""
    with (folder / ".partial/going.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = prune(folder, 24 * HOUR)
    assert {each.path.name: each.size for each in found} == {"broken": 100, ".half~": 300, "old": 400}
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {
        *("kept/weights.gguf", ".partial/broken.lock", ".partial/going.lock", ".partial/.stages.lock"),
        *(".partial/going/weights.gguf", ".partial/.blobs/new"),
    }


def test_a_model_whose_place_nothing_took_is_no_leftover(folder: Path) -> None:
    """A board was killed over it, and puts it back when it starts; what another has taken the place of is one."""
    for name in ("gone", "kept"):
        (folder / f".partial/.{name}~.old").mkdir()
    assert {each.path.name for each in prune(folder, 0)} >= {".kept~.old"}
    assert (folder / ".partial/.gone~.old").is_dir()
    clear(folder)
    assert (folder / "gone").is_dir() and not (folder / ".partial/.gone~.old").exists()


def test_a_pull_that_still_writes_is_no_leftover(folder: Path) -> None:
    """Whatever its folder's own age: that of its newest file counts."""
    os.utime(folder / ".partial/broken/weights.gguf")
    assert "broken" not in {each.path.name for each in leftovers(folder, 24 * HOUR)}


def test_no_pull_comes_to_what_is_being_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until it is gone, and begins anew; one that went on meanwhile keeps what it has."""
    remove, removed = shutil.rmtree, []

    def look(path: Path) -> None:
        removed.append(path.name)
        if path.name == "broken":
            with (folder / ".partial/broken.lock").open() as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.utime(folder / ".partial/going/weights.gguf")
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", look)
    prune(folder, 24 * HOUR)
    assert sorted(removed) == [".half~", "broken"]


def test_what_somebody_is_at_is_never_removed(folder: Path) -> None:
    """However little age is asked for: a pull and the files beside it, a model that is being made, an upload, and the fetch of
    the demo model."""
    (folder / ".partial/going.whl.etag").touch()
    held = (".partial/going.lock", ".partial/.blobs/new", ".partial/.stages.lock")
    with ExitStack() as locks:
        for name in held:
            fcntl.flock(locks.enter_context((folder / name).open()), fcntl.LOCK_EX)
        assert sorted(each.path.name for each in prune(folder, 0)) == ["broken", "old"]
    assert sorted(each.path.name for each in prune(folder, 0)) == [".half~", "going", "going.whl.etag", "new"]


def test_there_may_be_nothing(tmp_path: Path) -> None:
    """In a folder into which nothing was pulled."""
    assert leftovers(tmp_path, 0) == []


def test_the_command_can_only_say_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --dry-run, and as JSON."""
    monkeypatch.setenv("ROCKCHIPLLAMA_MODELS_DIR", str(folder))
    command(dry_run=True, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["removed"] == {} and said["bytes"] == 1000 and ".partial/.blobs/old" in said["found"]
    assert (folder / ".partial/.blobs/old").exists()
    command()
    assert capsys.readouterr().out.splitlines()[-1].strip() == "0 MB  freed"
    assert not (folder / ".partial/.blobs/old").exists()
