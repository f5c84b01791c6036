"""`rockchipllama boards`, as people read it."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from rich.console import Console

from ops.cli import boards as module
from ops.cli.boards import lines_of, nobody_else_has
from ops.fold import fold
from ops.program import program
from ops.top import view
from tasks.boards import overview
from tasks.presence import Machine, Presence, breathe
from tasks.roster import read_roster

RK3588 = Machine(
    soc="rk3588", driver="0.9.8", npu_load=(87, 0, 5), temperature=61.2, memory=8 << 30, memory_available=3 << 30
)


def boards(client: redis.Redis) -> list[dict[str, Any]]:
    return overview(read_roster(client))


def test_versions_that_differ_are_told(client: redis.Redis) -> None:
    """Once, below the list; one version is no news."""
    breathe(client, Presence(name="board:one", board="one", version="1.0", machine=RK3588))
    assert list(lines_of(boards(client))) == [
        "one: rk3588, driver 0.9.8, NPU 87 % 0 % 5 %, 61 °C, 3072 of 8192 MiB free, version 1.0"
    ]
    hot = Machine(soc="rk3588", temperature=86.4, hot=True, memory=8 << 30, memory_available=3 << 30)
    breathe(client, Presence(name="board:two", board="two", version="1.1", machine=hot))
    told = list(lines_of(boards(client)))
    assert "two: rk3588, 86 °C, slowed down by heat, 3072 of 8192 MiB free, version 1.1" in told
    assert "different versions (1.0, 1.1)" in told[-1]
    assert list(lines_of([])) == [f"No board is there. `{program()} board` starts one."]


def test_files_that_cannot_be_used_are_told(client: redis.Redis) -> None:
    """Once, however many names a model would have."""
    torn = "torn.gguf is cut off."
    breathe(client, Presence(name="board:one", board="one", version="1", refused={"torn": torn, "torn:q4": torn}))
    assert list(lines_of(boards(client)))[1:] == [f"  cannot be used: {torn}"]


def test_the_live_view_tells_which_board_is_hot(client: redis.Redis) -> None:
    """Beside its temperature; an older service says nothing of that."""
    for name, hot in (("cool", False), ("warm", True)):
        machine = Machine(temperature=86.4, hot=hot, memory=8 << 30, memory_available=3 << 30)
        breathe(client, Presence(name=f"board:{name}", board=name, machine=machine))
    found = boards(client)
    del found[0]["hot"]
    console = Console(width=120, file=io.StringIO())
    console.print(view({"boards": found, "queues": [], "jobs": []}))
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # it is the one above
    [cool, warm] = [line for line in shown if "86" in line]
    assert "86 (hot)" in warm and "hot" not in cool


def test_a_narrow_terminal_gets_what_matters_most() -> None:
    """Whole words in forty columns, rather than all columns in pieces; lists are broken between words there."""
    queue = {
        "id": "smollm2-135m-instruct",
        "state": "draining",
        "waiting": 64,
        "running": 1,
        "estimated_wait": 3.0,
        "boards": [],
    }
    job = {
        "id": "q6ceqjnkdrasskcnab4juo",
        "model": "m",
        "lane": "batch",
        "state": "queued",
        "phase": None,
        "position": 12,
    }
    job |= {"waits_for": "load", "started_at": None, "created_at": 1.0, "board": None}
    console = Console(width=40, file=io.StringIO())
    console.print(view({"boards": [], "queues": [queue], "jobs": [job]}, 40))
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is the one above
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 40
    assert "smollm2-135m-instruct  draining  64" in " ".join(shown.split("\n")).replace("\n", "")
    assert "q6ceqjnkdrasskcnab4juo" in shown


def test_lines_are_folded_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between words and indented; a pipe gets them whole."""
    line = "model: it is shorter than a header. Fetch the file again."
    monkeypatch.setattr("ops.fold.columns", lambda *_: 30)
    assert fold(line, 4).splitlines() == ["model: it is shorter than a", "    header. Fetch the file", "    again."]
    monkeypatch.setattr("ops.fold.columns", lambda *_: None)
    assert fold(line, 4) == line


def test_models_that_wait_for_a_drained_board_are_named() -> None:
    """Those that no other board serves: one that is drained as well serves none."""
    has = {"one": ["a", "b", "c"], "two": ["a"], "three": ["b"]}
    found = [
        {"id": name, "drained": name == "three", "models": [{"id": model} for model in models]}
        for name, models in has.items()
    ]
    assert nobody_else_has(found, "one") == ["b", "c"]
    assert nobody_else_has(found, "two") == []


def test_a_drained_board_is_resumed_at_the_same_service(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that is told is for the one that was asked."""
    service = SimpleNamespace(drain_board=lambda name: {"id": name}, living_boards=list)
    monkeypatch.setattr(module, "service_of", lambda *_: service)
    module.drain("second", url="http://kitchen:8080")
    assert f"until `{program()} boards resume second --url http://kitchen:8080`." in capsys.readouterr().out
    module.drain("second")
    assert f"until `{program()} boards resume second`." in capsys.readouterr().out
