"""What `bench overhead` makes of what it measures; the measurements themselves run in `ops/test --all`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ops import environment
from ops.bench import report
from ops.bench.budgets import BUDGETS, BY_ID
from ops.bench.client import Line, chat
from ops.bench.figures import Figure, median, percentile
from ops.bench.processes import CpuMeter, Member, cpu_seconds, of_one_model, pss, size


@pytest.mark.parametrize(("share", "expected"), [(0, 1), (0.5, 5), (0.9, 9), (0.99, 10), (1, 10)])
def test_a_percentile_is_one_of_the_values(share: float, expected: int) -> None:
    """By nearest rank, whatever their order."""
    assert percentile([10, 1, 9, 2, 8, 3, 7, 4, 6, 5], share) == expected


def test_of_two_values_the_lower_is_the_median() -> None:
    """And of none there is none."""
    assert median([2, 1]) == 1
    with pytest.raises(ValueError, match="no values"):
        median([])


def test_budgets_bind_in_their_own_direction() -> None:
    """Most are the most that is allowed, some the least that is wanted, some bind nothing."""
    assert BY_ID["ready"].within(5) is True
    assert BY_ID["ready"].within(5.1) is False
    assert BY_ID["share"].within(0.99) is True
    assert BY_ID["share"].within(0.98) is False
    assert BY_ID["memory_board"].within(1e9) is None
    assert len(BY_ID) == len(BUDGETS)


def test_the_table_has_a_line_for_each_budget() -> None:
    """Also for what could not be measured."""
    lines = list(report.table({"ready": Figure("ready", 1.5), "share": Figure("share", 0.5)}))
    assert len(lines) == 1 + len(BUDGETS)
    assert "1.500 s" in lines[1] and lines[1].endswith("within")
    assert any(line.endswith("OVER") for line in lines)
    assert sum(line.endswith("not measured") for line in lines) == len(BUDGETS) - 2


def test_the_json_report_keeps_its_shape() -> None:
    """Programs read it; a changed meaning needs a new schema number."""
    figures = {"ready": Figure("ready", 2.5, 3, {"slowest_s": 4.0})}
    said = report.as_json(figures, {"memory": "OSError: gone"}, {"cores": 2}, quick=True, seconds=1.23)
    assert list(said) == [
        *("schema", "command", "version", "taken_at", "quick", "seconds", "machine", "rows", "failures"),
    ]
    assert said["schema"] == 1
    assert said["failures"] == {"memory": "OSError: gone"}
    assert [row["id"] for row in said["rows"]] == [budget.id for budget in BUDGETS]
    assert said["rows"][0] == {
        "id": "ready",
        "what": "`up` to ready, model load aside",
        "unit": "s",
        "measured": 2.5,
        "budget": 5,
        "at_least": False,
        "ratio": 0.5,
        "within": True,
        "samples": 3,
        "detail": {"slowest_s": 4.0},
    }
    json.dumps(said)


def test_the_clock_of_a_process_runs_with_its_work() -> None:
    """And of one that is gone it reads 0."""
    meter = CpuMeter([Member(os.getpid(), "api")])
    before = cpu_seconds(os.getpid())
    sum(range(2_000_000))
    assert cpu_seconds(os.getpid()) > before > 0
    assert meter.read()["all"] > 0
    assert cpu_seconds(2**22 + 1) == 0


def test_other_models_workers_are_left_out() -> None:
    """What belongs to no model belongs to each."""
    api, mine, other = Member(1, "api"), Member(2, "child", "a"), Member(3, "child", "b")
    assert of_one_model([api, mine, other], "a") == [api, mine]
    assert pss([Member(os.getpid(), "api")], "api") > 1
    assert pss([Member(os.getpid(), "api")], "board") == 0


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    """All the way down."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"12")
    assert size(tmp_path) == 5


def test_the_client_reads_a_stream_however_it_is_cut() -> None:
    """Chunks may arrive in pieces; text, times and timings come out whole."""
    frames = [
        b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"lo"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{}}],"timings":{"prompt_ms":1.5}}\n\ndata: [DONE]\n\n',
    ]
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire += b"".join(b"%x\r\n%s\r\n" % (len(frame), frame) for frame in frames) + b"0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(65536))
                for start in range(0, len(wire), 7):
                    connection.sendall(wire[start : start + 7])

        thread = threading.Thread(target=serve)
        thread.start()
        with Line(server.getsockname()[1]) as line:
            stream = line.stream(chat("m", "Hi", max_tokens=2))
        thread.join()
    assert json.loads(heard[0].partition(b"\r\n\r\n")[2])["messages"] == [{"role": "user", "content": "Hi"}]
    assert stream.text == "Hello"
    assert len(stream.deltas) == 2
    assert stream.timings == {"prompt_ms": 1.5}


@pytest.mark.full
def test_a_quick_run_measures_everything(tmp_path: Path) -> None:
    """On the real service, which is gone afterwards; whether a budget is kept is nothing a test asserts."""
    report_file = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli.main", "bench", "overhead", "--quick", "--json", str(report_file)],
        env=environment.for_child({"TMPDIR": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=False,
        timeout=380,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(report_file.read_text(encoding="utf-8"))
    assert said["failures"] == {}
    assert all(row["measured"] is not None for row in said["rows"])
    assert next(row["measured"] for row in said["rows"] if row["id"] == "streams") == 1
    assert list(tmp_path.iterdir()) == [report_file]
