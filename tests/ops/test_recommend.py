"""Which models are recommended for a board: those that a pull would fetch for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npu.simulator.profile import profile_of
from ops.recommend import advise, table
from tasks.board.pull.index import read_index
from tasks.board.pull.machine import Machine

BOARD = Machine("rk3588", "1.3.0", 6 << 30)
INDEX = read_index()


def test_what_a_pull_would_fetch_is_recommended() -> None:
    """For the NPU first, with what is known of each; nothing is made up where the vendor measured nothing."""
    found = advise(BOARD, INDEX)
    assert {each.name for each in found} == set(INDEX)
    by_name = {each.name: each for each in found}
    small = by_name["qwen3:0.6b"]
    measured = profile_of("RK3588", "Qwen3", "0.6B", "w8a8").decode_tps
    assert (small.engine, small.memory_mib, small.context, small.tokens_per_s) == ("rkllm", 792, 16384, measured)
    assert by_name["qwen3:8b"].engine == "llamacpp" and by_name["qwen3:8b"].tokens_per_s is None
    engines = [each.engine for each in found if each.runs]
    assert engines == sorted(engines, key=lambda engine: engine != "rkllm")
    assert all(each.memory_mib is None or each.memory_mib <= BOARD.memory >> 20 for each in found if each.runs)


def test_what_cannot_run_says_why() -> None:
    """Too large for the memory, and nothing for an NPU that is not there."""
    machine = Machine(None, None, 1 << 30)
    found = advise(machine, INDEX)
    assert {each.engine for each in found if each.runs} == {"llamacpp"}
    [large] = [each for each in found if each.name == "qwen3:8b"]
    assert not large.runs and large.why_not is not None and "MiB of memory" in large.why_not
    told = table(machine, found)
    assert large.why_not in told
    assert "qwen2.5:0.5b" in told and "CPU" in told


def test_the_context_is_the_one_that_the_board_would_choose() -> None:
    """Of each model, by the memory that is there; one with which not even the shortest fits says so."""
    found = {each.name: each for each in advise(BOARD, INDEX)}
    assert all(each.context for each in found.values() if each.runs)
    assert found["smollm2:135m"].context == 8192  # what it was made for
    assert found["qwen3:1.7b"].context == 4096  # its file's name does not tell more
    small = {each.name: each for each in advise(replace(BOARD, memory=5 << 29), INDEX)}
    assert (found["llama3.2:3b"].engine, small["llama3.2:3b"].engine) == ("rkllm", "llamacpp")
    assert small["llama3.2:3b"].context == 4096 < small["qwen2.5:0.5b"].context == 16384
    tight = {each.name: each for each in advise(Machine(None, None, 2200 << 20), INDEX)}
    assert not tight["llama3.2:3b"].runs and "with a context of 2048 tokens" in str(tight["llama3.2:3b"].why_not)
    assert "?" not in table(BOARD, [found["gemma3:4b"]]).splitlines()[3][:-1]


@pytest.mark.parametrize("width", [40, 50, 70, 80])
def test_the_table_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the figures that matter, however narrow it is."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = table(BOARD, advise(BOARD, INDEX)).splitlines()
    assert max(len(line) for line in lines if "`" not in line) <= width  # commands are whole, to be copied
    assert any(line.startswith("qwen3:0.6b") and "16,384" in line for line in lines)


def test_where_no_size_is_told_the_weights_are_counted() -> None:
    """Four thousand millions of eight bits do not fit into two GiB, whatever the file is like."""
    [large] = [each for each in advise(replace(BOARD, memory=2 << 30), INDEX) if each.name == "qwen3:4b"]
    assert not large.runs and large.why_not is not None and "4070 MiB" in large.why_not
