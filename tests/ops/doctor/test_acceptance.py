"""`doctor --acceptance` from the command to the report, with the simulator in the board's place; `tests/device` runs in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from npu.hardware import read_board
from npu.rkllm.acceptance import MEASURES, QUESTIONS
from npu.simulator import Profile, SimulatedModel, write_model
from ops import environment
from ops.doctor.device_tests import run_device_tests
from tasks.settings import ROOT
from tests.device import test_board
from tests.npu.boards import KINDS, make_board, put_in_container
from tests.stack import LIMIT, eventually

DOCTOR = (sys.executable, "-m", "ops.cli.main", "doctor")


def board(folder: Path) -> dict[str, str]:
    """The environment of a board whose files lie in a folder."""
    return environment.for_child(
        {
            "ROCKCHIPLLAMA_RKLLM_LIBRARY": "simulator-1.3.0",
            "ROCKCHIPLLAMA_MODELS_DIR": str(folder / "models"),
            "ROCKCHIPLLAMA_DATA_DIR": str(folder / "data"),
        }
    )


def doctor(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DOCTOR, *words],
        env=board(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


pytestmark = pytest.mark.full  # its questions have tests of their own, in tests/npu/rkllm


@dataclass
class Taken:
    """One acceptance, and what it left."""

    folder: Path
    status: int
    told: list[str]
    json: dict[str, Any]
    page: str


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Taken:
    """Of a model whose switches are not the default ones, beside one for embeddings."""
    folder = tmp_path_factory.mktemp("board")
    switches = {"callback_thread": "own", "eos_delivered": "no", "logits_rows": "last"}
    profile = Profile(prefill_tps=20_000, decode_tps=2_000)
    chosen = SimulatedModel(name="talks", profile=profile, switches=switches, max_context_limit=1024)
    write_model(folder / "models/talks", chosen)
    write_model(folder / "models/embeds", SimulatedModel(name="embeds"))
    manifest = folder / "models/embeds/manifest.toml"
    manifest.write_text('abilities = ["embedding"]\n' + manifest.read_text())
    done = doctor(folder, "--acceptance", "talks", "--json", "--report-dir", str(folder / "reports"))
    (page,) = (folder / "reports").glob("talks-*.md")
    return Taken(folder, done.returncode, done.stderr.splitlines(), json.loads(done.stdout), page.read_text())


def test_everything_is_asked(taken: Taken) -> None:
    """And told on the way; the answers are those of the simulator's switches."""
    assert taken.status == 0, taken.told
    answers = {one["name"]: one["answer"] for one in taken.json["questions"]}
    assert list(answers) == [question.name for question in QUESTIONS]
    assert (answers["callback_thread"], answers["eos_delivered"], answers["logits_rows"]) == ("own", "no", "last")
    assert [one["name"] for one in taken.json["measures"]] == [measure.name for measure in MEASURES]
    assert all(one["rows"] for one in taken.json["measures"])
    assert [line.split(":")[0] for line in taken.told] == [
        *(one["name"] for one in (*taken.json["questions"], *taken.json["measures"])),
        "tests/device",
    ]


def test_the_device_tests_run_on_the_simulator(taken: Taken) -> None:
    """None fails, and only what needs a board, or another kind of model, is left out."""
    tests = taken.json["device_tests"]
    assert tests["why_not"] == ""
    outcomes = {test["name"]: (test["outcome"], test["why"]) for test in tests["tests"]}
    parked = "test_a_conversation_that_was_displaced_is_loaded[talks]"  # where loading is faster than reading on this machine
    assert {name for name, (outcome, _) in outcomes.items() if outcome == "passed"} - {parked} == {
        *("test_it_loads[talks]", "test_it_answers[talks]", "test_an_abort_ends_it[talks]"),
        *("test_a_second_turn_is_not_prefilled_from_its_start[talks]", "test_a_seed_gives_the_same_again[talks]"),
        *("test_it_loads[embeds]", "test_it_embeds[embeds]", "test_two_models_answer_side_by_side"),
    }
    known = ("no Rockchip NPU", "is not made for", "conversations are not parked")
    assert all(any(words in why for words in known) for _, why in outcomes.values() if why)
    assert {outcome for outcome, _ in outcomes.values()} == {"passed", "skipped"}


def test_the_report_has_all_of_it_and_nobody_in_it(taken: Taken) -> None:
    """Machine, library, model with its self-test; and neither folders nor the machine's name."""
    assert (taken.json["format"], taken.json["model"]["id"]) == (1, "talks")
    assert taken.json["model"]["self_test"]["text"] == "sane"
    assert taken.json["model"]["last_load"]["runtime"] == taken.json["library"]["version"] == "1.3.0"
    assert re.fullmatch(r"[0-9a-f]{64}", taken.json["library"]["sha256"])
    for question in (*QUESTIONS, *MEASURES):
        assert question.asks in taken.page
    assert "**own**" in taken.page and "| test_it_loads[talks] | passed |" in taken.page
    (data,) = (taken.folder / "reports").glob("talks-*.json")
    assert json.loads(data.read_text()) == taken.json
    for private in (str(taken.folder), str(Path.home()) + os.sep, socket.gethostname()):
        assert private not in taken.page and private not in json.dumps(taken.json)


def test_a_model_that_cannot_be_asked_is_named(taken: Taken) -> None:
    """With those that can; and no option is accepted that would mean nothing."""
    done = doctor(taken.folder, "--acceptance", "walks")
    assert done.returncode == 1
    assert "'walks'" in done.stderr and "talks" in done.stderr and "Traceback" not in done.stderr
    assert doctor(taken.folder, "--report-dir", str(taken.folder)).returncode == 2
    assert doctor(taken.folder, "--acceptance", "talks", "--soc", "rk3588").returncode == 2


def test_elsewhere_the_device_tests_say_why_they_are_skipped(tmp_path: Path) -> None:
    """On a machine that is no board, or has no model."""
    (tmp_path / "models").mkdir()
    given = {"ROCKCHIPLLAMA_MODELS_DIR": str(tmp_path / "models"), "ROCKCHIPLLAMA_RKLLM_LIBRARY": "simulator"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-m", "npu", "tests/device"],
        env=environment.for_child(given),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    assert "there is no .rkllm model in models" in done.stdout and "passed" not in done.stdout


@pytest.mark.full
def test_a_crash_leaves_the_other_device_tests_their_answers(tmp_path: Path) -> None:
    """A model that takes its process down fails alone."""
    write_model(tmp_path / "models/sound", SimulatedModel(name="sound"))
    write_model(tmp_path / "models/breaks", SimulatedModel(name="breaks", segfault_after=6))
    found = run_device_tests(board(tmp_path))
    outcomes = {test.name: test for test in found.tests}
    assert outcomes["test_it_answers[sound]"].outcome == "passed"
    assert outcomes["test_it_answers[breaks]"].outcome == "failed"
    assert "the process ended with -11" in outcomes["test_it_answers[breaks]"].why
    assert found.failed


@pytest.mark.parametrize("chip", KINDS)
def test_the_device_tests_of_a_board_pass_on_one(tmp_path: Path, chip: str) -> None:
    """Built out of files, since the simulator is no kernel; and fail in a container that was not given the NPU."""
    root = make_board(tmp_path, chip, governor="performance")
    test_board.test_the_driver_is_there_and_open(read_board(root))
    test_board.test_the_performance_mode_can_be_read(read_board(root), root)
    put_in_container(root)
    with pytest.raises(AssertionError):
        test_board.test_the_driver_is_there_and_open(read_board(root))


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    """Not even the process of a question that hangs, which has a session of its own."""
    write_model(tmp_path / "models/hangs", SimulatedModel(name="hangs", hang_after=0))
    with subprocess.Popen([*DOCTOR, "--acceptance", "hangs"], env=board(tmp_path), stderr=subprocess.PIPE) as command:
        (child,) = eventually(lambda: asking(command.pid), what="a question")
        command.send_signal(signal.SIGINT)
        assert command.wait(LIMIT) == 130
        psutil.wait_procs([child], LIMIT)
        assert not child.is_running()


def asking(process: int) -> list[psutil.Process]:
    """The processes of questions that it has."""
    found = []
    for child in psutil.Process(process).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "npu.rkllm.acceptance.child" in child.cmdline():
                found.append(child)
    return found
