"""Models made from others, and removed: what may be, and what stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from npu.catalog import find_models
from npu.model import Model
from tasks.board.shelving import copy, create, remove
from tasks.board.staging import clear, stage
from tasks.commands import CommandCode, Create
from tasks.errors import CommandFailed

ECHO = (
    'engine = "echo"\nid = "echo"\ncontext_length = 4096\nstop = ["base"]\n[sampling]\ntemperature = 0.5\ntop_k = 7\n'
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "echo").mkdir()
    (tmp_path / "echo" / "manifest.toml").write_text(ECHO)
    return tmp_path


def found(models: Path, name: str) -> Model:
    catalog = find_models(models)
    assert (catalog.problems, catalog.clashes) == ((), ())
    model = catalog.find(name)
    assert model is not None
    return model


def refusal(code: CommandCode, models: Path, wanted: Create) -> str:
    before = sorted(models.rglob("manifest.toml"))
    with pytest.raises(CommandFailed) as caught:
        create(models, wanted)
    assert caught.value.code == code, caught.value
    assert sorted(models.rglob("manifest.toml")) == before
    return str(caught.value)


def test_what_is_not_said_is_the_bases(models: Path) -> None:
    """And what is said is the new model's own, strings with quotes and line breaks included."""
    system = 'Say "hello",\n\tand nothing else. \x7f\\'
    wanted = Create(
        "Mario:V1", "echo:latest", system=system, template="{{ messages }}", sampling={"top_k": 3}, context_length=512
    )
    create(models, wanted)
    model = found(models, "mario:v1")
    assert (model.id, model.base, model.engine, model.system) == ("mario-v1", "echo", "echo", system)
    assert (model.stop, model.context_length, model.template) == (("base",), 512, "{{ messages }}")
    assert (model.sampling().temperature, model.sampling().top_k) == (0.5, 3)
    assert found(models, "echo").system is None


def test_a_copy_is_as_its_model_and_may_be_copied(models: Path) -> None:
    """However long the chain is."""
    copy(models, "echo", "b")
    copy(models, "b", "a:latest")
    model = found(models, "a")
    assert (model.base, model.context_length, model.stop) == ("b", 4096, ("base",))
    assert "a:latest" in model.names


def test_a_model_that_was_made_may_be_made_anew(models: Path) -> None:
    """As people do who try out system messages."""
    create(models, Create("mario", "echo", system="one", template="{{ 1 }}"))
    create(models, Create("mario", "echo", system="two"))
    assert (found(models, "mario").system, found(models, "mario").template) == ("two", None)
    assert [path.name for path in (models / "mario").iterdir()] == ["manifest.toml"]


@pytest.mark.parametrize(
    "name", ["echo", "../x", "a b", ".hidden", "", "x" * 101, "a//../b", "user/ä", "Loaded:latest"]
)
def test_a_name_that_is_taken_or_none_is_refused(models: Path, name: str) -> None:
    """And names never become paths elsewhere."""
    refusal(CommandCode.NAME_REFUSED, models, Create(name, "echo"))


def test_what_lies_there_already_is_not_overwritten(models: Path) -> None:
    """A folder of somebody's is no model made from another."""
    (models / "mine").mkdir()
    (models / "mine" / "notes.txt").write_text("dear diary")
    assert "something else" in refusal(CommandCode.NAME_REFUSED, models, Create("mine", "echo"))


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (Create("x", "echo", sampling={"warmth": 1.0}), "warmth"),
        (Create("x", "echo", sampling={"top_p": 7.0}), "top_p"),
        (Create("x", "echo", sampling={"a = 1\n[b]": 1.0}), "cannot be made so"),
        (Create("x", "echo", context_length=0), "context_length"),
        (Create("x", "echo", template="{{ .System }}"), "cannot be made so"),
        (Create("x", "echo", adapter="poet"), "adapters are: none"),
    ],
)
def test_what_its_engine_or_base_cannot_do_is_refused(models: Path, wanted: Create, why: str) -> None:
    """By name, and nothing is left of it."""
    assert why in refusal(CommandCode.NOT_POSSIBLE, models, wanted)


def test_a_base_that_is_not_there_is_refused(models: Path) -> None:
    """With what there is."""
    assert "It has echo" in refusal(CommandCode.MODEL_MISSING, models, Create("x", "nobody"))


def test_no_model_is_made_from_itself(models: Path) -> None:
    """Directly or by way of another."""
    copy(models, "echo", "a")
    copy(models, "a", "b")
    refusal(CommandCode.NOT_POSSIBLE, models, Create("a", "b"))
    refusal(CommandCode.NOT_POSSIBLE, models, Create("a", "a"))


def test_a_base_stays_while_others_need_it(models: Path) -> None:
    """And is removed after them, with all its files."""
    copy(models, "echo", "a")
    with pytest.raises(CommandFailed, match="is what a is made from") as caught:
        remove(models, "echo")
    assert caught.value.code == CommandCode.MODEL_IN_USE
    remove(models, "a:latest")
    assert found(models, "echo").id == "echo"
    remove(models, "echo")
    assert [path.name for path in models.iterdir()] == [".partial"]
    with pytest.raises(CommandFailed) as caught:
        remove(models, "echo")
    assert caught.value.code == CommandCode.MODEL_MISSING


def test_a_model_that_is_removed_by_half_is_told(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no model any more, but its files take their room until the board is started anew."""

    def fails(path: Path, ignore_errors: bool = False, **_: Any) -> None:
        if not ignore_errors:
            raise OSError("the card is worn out")

    monkeypatch.setattr(shutil, "rmtree", fails)
    with pytest.raises(OSError, match="worn out"):
        remove(models, "echo")
    assert find_models(models).models == ()


def test_of_a_bare_file_that_file_is_removed(models: Path) -> None:
    """With its further parts, and nothing else of the folder."""
    folder = models / "files"
    folder.mkdir()
    parts = [folder / f"Big-7B-Q4_0-{number:05d}-of-00002.gguf" for number in (1, 2)]
    other = folder / "Other-1B-Q4_0.gguf"
    for path in (*parts, other):
        path.write_bytes(b"GGUF")
    remove(models, "big:7b")
    assert list(folder.iterdir()) == [other]


def test_what_cannot_be_used_is_removed_all_the_same(models: Path) -> None:
    """A folder with a broken manifest, a file whose name is no text; by any name by which it is told of."""
    (models / "Bad-1B").mkdir()
    (models / "Bad-1B" / "manifest.toml").write_text("id = ")
    odd = models / os.fsdecode(b"caf\xe9-1B-Q4_0.gguf")
    odd.write_bytes(b"GGUF")
    assert remove(models, "bad:1b").manifest == models / "Bad-1B" / "manifest.toml"
    assert remove(models, "caf-1b").path == odd
    assert sorted(path.name for path in models.iterdir()) == [".partial", "echo"]
    assert found(models, "echo").id == "echo"


def test_a_folder_with_other_models_in_it_stays(models: Path) -> None:
    """Nobody asked for those to go."""
    inner = models / "echo" / "inner"
    inner.mkdir()
    (inner / "manifest.toml").write_text('engine = "echo"\n')
    with pytest.raises(CommandFailed, match="other models in it: inner"):
        remove(models, "echo")


def test_a_base_that_is_gone_is_told_with_the_line(models: Path) -> None:
    """The model made from it is refused, and nothing else; two that name each other, too."""
    for name, base in (("a", "gone"), ("b", "c"), ("c", "b")):
        (models / name).mkdir()
        (models / name / "manifest.toml").write_text(f'# made by hand\nbase = "{base}"\n')
    catalog = find_models(models)
    assert [model.id for model in catalog.models] == ["echo"]
    assert len(catalog.problems) == 3
    assert "manifest.toml, line 2: `base` is 'gone', and there is no such model here." in catalog.problems[0]


def test_what_belongs_to_the_weights_cannot_be_said_differently(models: Path) -> None:
    """A model made from another has its engine, its file and its adapters."""
    (models / "a").mkdir()
    (models / "a" / "manifest.toml").write_text('base = "echo"\nengine = "llamacpp"\n')
    assert "`engine` belongs to the weights" in find_models(models).problems[0]


def test_what_a_killed_board_left_is_cleared_by_the_next(models: Path) -> None:
    """A model half made or half removed is gone; one whose place another was just taking is there again. Not while somebody is
    at it, which may be a board that shares the folder."""
    for model in ("kept", "replaced"):
        create(models, Create(model, "echo"))
    (models / "replaced").rename(models / ".partial" / ".replaced~.old")
    (models / ".partial" / "a-pull").mkdir()
    with stage(models, "half") as half:
        (half / "manifest.toml").write_text("id = ")
        clear(models)
        assert half.exists()
    for name in (".half~", ".replaced~", ".kept~.old"):
        (models / ".partial" / name).mkdir()
    clear(models)
    assert {path.name for path in (models / ".partial").iterdir()} == {".stages.lock", "a-pull"}
    assert {model.id for model in find_models(models).models} == {"echo", "kept", "replaced"}
    clear(models / "nowhere")
