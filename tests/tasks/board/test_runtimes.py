"""A board changes its runtime: nothing is switched that was not tried, and what was loaded is loaded again."""

from __future__ import annotations

import platform
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from npu.catalog import Catalog
from npu.engines import Setup
from npu.engines.rkllm.library import library_of
from npu.engines.rkllm.trial import Trial
from npu.errors import OutOfMemory
from npu.model import Model
from npu.rkllm.evidence import NAME
from npu.rkllm.installed import chosen
from npu.simulator import build
from tasks.board import runtimes as module
from tasks.board.runtimes import Runtimes
from tasks.board.workers import Workers
from tasks.commands import BUSY, CommandCode, RuntimeUsed, UseRuntime
from tasks.errors import CommandFailed
from tasks.presence import Runtime
from tasks.prompting.setup import setup_of
from tasks.settings import TaskSettings
from tests.simulators import SIMULATORS
from tests.stack import LIMIT, eventually


class Board:
    """Has two releases and three models, of which `large` is loaded; what a trial finds is what a test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for version in ("1.2.3", "1.3.0"):
            place = folder / "runtime" / version / platform.machine() / NAME
            place.parent.mkdir(parents=True)
            shutil.copy(build(version, SIMULATORS), place)
        self.settings = TaskSettings(data_dir=folder, models_dir=folder, rkllm_library="", rkllm_version="")
        self.setup = setup_of(self.settings)
        sizes = {"small": 1, "large": 3}
        models = [Model(id=name, engine="rkllm", folder=folder, size_bytes=size) for name, size in sizes.items()]
        self.catalog = Catalog((*models, Model(id="echo", engine="echo", folder=folder)))
        self.workers = Workers(lambda _: ["/bin/sleep", "1000"], folder, 60.0, ())
        for model in self.catalog.models[1:]:
            self.workers.start(model, 0)
        self.tried: list[str] = []
        self.problems: dict[str, str] = {}
        self.too_large: set[str] = set()
        self.held: tuple[str, str] | None = None
        """The model whose trial has memory of its own, and the release."""
        self.during: threading.Event | None = None
        self.loaded: list[tuple[str, str | None]] = []
        """What was loaded again, and which release was chosen by then."""
        self.redis_is_away = False
        self.fitting = threading.Lock()
        self.runtimes = self.made(self.settings)
        monkeypatch.setattr(module, "try_out", self._try_out)

    def made(self, settings: TaskSettings) -> Runtimes:
        fixed = (lambda: self.catalog, self.workers, self.fitting, self._load, self._room)
        return Runtimes(settings, setup_of(settings), *fixed, grace=10.0)

    @contextmanager
    def _room(self, model: Model, setup: Setup) -> Iterator[None]:
        if model.id in self.too_large:
            raise OutOfMemory(f"{model.id} needs 7 MiB")
        self.held = (model.id, setup.rkllm_version)
        yield
        self.held = None

    def _load(self, model: Model) -> None:
        assert not self.runtimes.changing
        self.loaded.append((model.id, chosen(self.setup.rkllm_fetched)))
        if self.redis_is_away:
            raise redis.ConnectionError

    def _try_out(self, model: Model, models_dir: Path, library: Path, version: str, setup: object) -> Trial:
        assert self.runtimes.changing and not self.workers.has("large") and self.workers.has("echo")
        assert library.parts[-3] == version
        assert self.held == (model.id, version) and self.workers.leaving() == set()
        self.tried.append(model.id)
        if self.during is not None:
            assert self.during.wait(60)
        return Trial(self.problems.get(model.id, ""))

    def version(self) -> str | None:
        return library_of(self.setup).version


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    made = Board(tmp_path, monkeypatch)
    yield made
    made.workers.stop_all(0.0)


def refusal(board: Board, wanted: UseRuntime) -> str:
    with pytest.raises(CommandFailed) as refused:
        board.runtimes.use(wanted)
    assert refused.value.code == CommandCode.RUNTIME_REFUSED
    return str(refused.value)


def test_a_release_that_will_do_is_used(board: Board) -> None:
    """By all that is started from then on; the newest one no longer counts."""
    assert board.runtimes.told() == Runtime(version="1.3.0", installed=("1.3.0", "1.2.3"))
    done = board.runtimes.use(UseRuntime("1.2.3"))
    assert done == RuntimeUsed(version="1.2.3", before="1.3.0", tried=("large",))
    assert board.loaded == [("large", "1.2.3")] and board.version() == "1.2.3"
    assert board.runtimes.use(UseRuntime("v1.3.0", "small")).tried == ("small",)
    assert board.version() == "1.3.0"


def test_a_change_is_no_failure_because_redis_is_away(board: Board) -> None:
    """Each model is tried to be loaded again."""
    board.workers.start(board.catalog.models[0], 0)
    board.redis_is_away = True
    assert board.runtimes.use(UseRuntime("1.2.3", "small")).version == "1.2.3"
    assert sorted(name for name, _ in board.loaded) == ["large", "small"]


def test_one_that_will_not_do_changes_nothing(board: Board) -> None:
    """The model is loaded again as it was, and the refusal says which one it was about."""
    board.problems["large"] = "large says nonsense"
    assert "stays with 1.3.0" in (why := refusal(board, UseRuntime("1.2.3"))) and "large says nonsense" in why
    assert board.loaded == [("large", None)] and board.version() == "1.3.0"


def test_one_that_there_is_no_room_to_try_changes_nothing(board: Board) -> None:
    """The refusal has the figures."""
    board.too_large.add("large")
    assert "stays with 1.3.0" in (why := refusal(board, UseRuntime("1.2.3"))) and "large needs 7 MiB" in why
    assert board.loaded == [("large", None)] and board.tried == []


def test_a_model_that_leaves_the_npu_is_waited_for(board: Board, tmp_path: Path) -> None:
    """Its job in hand may go on for a while, and what is tried would find no memory beside it."""
    board.workers.stop("large", 10.0)
    ready, gone = tmp_path / "ready", tmp_path / "gone"
    stays = f"trap '' TERM; touch {ready}; until [ -e {gone} ]; do sleep 0.1; done"
    board.workers.command = lambda _: ["/bin/sh", "-c", stays]
    board.workers.start(board.catalog.models[1], 0)
    eventually(ready.exists, what="a worker that takes its time")
    board.workers.stop_behind("large", LIMIT, lambda: None)
    changing = threading.Thread(target=lambda: eventually(lambda: board.runtimes.changing) and gone.touch())
    changing.start()
    assert board.runtimes.use(UseRuntime("1.2.3")).tried == ("small",)
    changing.join()


def test_where_nothing_is_loaded_the_smallest_is_tried(board: Board) -> None:
    """And where there is no model for the NPU, nothing."""
    board.workers.stop("large", 10.0)
    assert board.runtimes.use(UseRuntime("1.2.3")).tried == ("small",)
    board.catalog = Catalog(board.catalog.models[2:])
    assert board.runtimes.use(UseRuntime("1.3.0")).tried == ()
    assert board.version() == "1.3.0" and board.loaded == []


def test_what_cannot_be_begun_unloads_nothing(board: Board, tmp_path: Path) -> None:
    """A release that is not there, a file that is another, a model that is none, a library that the settings name."""
    assert "ops/fetch-runtime 1.2.0" in refusal(board, UseRuntime("1.2.0"))
    wrong = tmp_path / "runtime" / "1.1.4" / NAME
    wrong.parent.mkdir()
    shutil.copy(build("1.3.0", SIMULATORS), wrong)
    assert "1.1.4" in refusal(board, UseRuntime("1.1.4"))
    assert "no model 'echo' for the NPU" in refusal(board, UseRuntime("1.2.3", "echo"))
    board.runtimes = board.made(board.settings.model_copy(update={"rkllm_library": "simulator"}))
    assert "ROCKCHIPLLAMA_RKLLM_LIBRARY=simulator" in refusal(board, UseRuntime("1.2.3"))
    assert board.workers.has("large") and board.tried == []


def test_a_choice_that_is_gone_is_said(board: Board, tmp_path: Path) -> None:
    """Nothing else is taken in its place."""
    board.runtimes.use(UseRuntime("1.2.3"))
    shutil.rmtree(tmp_path / "runtime" / "1.2.3")
    assert board.runtimes.told() == Runtime(version="", installed=("1.3.0",))
    board.runtimes.use(UseRuntime("1.3.0"))
    assert board.version() == "1.3.0"


def test_files_that_are_no_library_for_this_machine_are_no_releases(board: Board, tmp_path: Path) -> None:
    """They are told with the reason, refused by name, and something else that was installed meanwhile is noticed."""
    board.runtimes.told()
    assert not board.runtimes.changed
    for version, content in {"1.2.1": b"404: Not Found\n", "1.2.2": _of_another_machine()}.items():
        (tmp_path / "runtime" / version).mkdir()
        (tmp_path / "runtime" / version / NAME).write_bytes(content)
    assert board.runtimes.changed
    told = board.runtimes.told()
    assert told is not None and told.installed == ("1.3.0", "1.2.3") and not board.runtimes.changed
    assert "text file" in told.unusable["1.2.1"] and "MIPS" in told.unusable["1.2.2"]
    assert "cannot be used: it is a text file" in refusal(board, UseRuntime("1.2.1")) and board.tried == []


def _of_another_machine() -> bytes:
    library = bytearray(build("1.3.0", SIMULATORS).read_bytes())
    library[18] = 8
    return bytes(library)


def test_one_change_at_a_time(board: Board) -> None:
    """Whoever comes second is told so."""
    board.during = threading.Event()
    first = threading.Thread(target=board.runtimes.use, args=(UseRuntime("1.2.3"),))
    first.start()
    try:
        while not board.tried:
            assert first.is_alive()
        with pytest.raises(CommandFailed) as refused:
            board.runtimes.use(UseRuntime("1.3.0"))
        assert refused.value.code == BUSY
    finally:
        board.during.set()
        first.join(60)
    assert board.version() == "1.2.3"
