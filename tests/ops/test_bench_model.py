"""What `bench model` makes of answers and of what it sees meanwhile; it measures a service in `test_cli_chat.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ops.bench.model import vendor
from ops.bench.model.checks import verdicts
from ops.bench.model.conditions import SWAPPED, Watch
from ops.bench.model.markdown import fenced, markdown
from ops.bench.model.plots import svg
from ops.bench.model.prompts import Asked, PromptsRefused, read_prompts
from ops.bench.model.report import SCHEMA, ReportUnreadable, dumped, read_report, schema
from ops.bench.model.run import _progress, exit_code, file_name, write
from ops.bench.model.sample import Asker, Place
from ops.service import Service
from tests.ops.bench_report import report, sample
from tests.ops.terminal import seen

QUALITY = {asked.id: asked for asked in read_prompts().quality}
GOOD = {
    "rolls": "12 times 15 is 180, and 180 - 41 = 139. 12 bags of 11 are 132, so 7 are left.\n\n**RESULT: 12 bags, 7 left**",
    "record": """Here it is:
```json
{"name": "Marta Lindqvist", "born": 1931, "cities": ["Uppsala", "Bergen", "Porto"], "instruments": 2, "records_sold": 2}
```""",
    "summary": """- A tide mill stores the rising tide behind a dam and grinds while the sea is low.
- Its hours wander around the clock because high tide comes later every day.
- Such mills were common on Atlantic coasts until steam engines replaced them.""",
    "merge": """```python
def merge(left, right):
    merged, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i]); i += 1
        else:
            merged.append(right[j]); j += 1
    return merged + left[i:] + right[j:]
```
The smaller of the two first numbers always comes next, and what is left over is sorted already.""",
    "race": "Emil was before Anna, Anna before Ben, Carl right behind him, Dora last.\nORDER: Emil, Anna, Ben, Carl, Dora",
}
"""An answer to each quality prompt as a good model gives it."""
FLUENT = """That is an excellent question, and there are several ways to look at it. First of all, one has to consider what is
known, and then proceed step by step. In the end, the result follows from careful thought, as it so often does in life.
RESULT: many bags, some left. ORDER: the fastest came first. I hope that this helps, and wish you a wonderful day!"""


def passes(asked: Asked, answer: str, finish_reason: str = "stop") -> bool:
    return all(verdict.passed for verdict in verdicts(asked.checks, answer, finish_reason))


def test_there_are_five_prompts_of_either_kind() -> None:
    """Short ones for speed, detailed ones for quality, and each of these is checked."""
    assert len(read_prompts().performance) == len(QUALITY) == len(GOOD) == 5
    assert all(asked.checks for asked in QUALITY.values())


@pytest.mark.parametrize("name", GOOD)
def test_a_good_answer_passes_and_others_do_not(name: str) -> None:
    """Neither fluent words that miss the point, nor the question said again, nor a model that runs in circles or never ends."""
    asked = QUALITY[name]
    assert passes(asked, GOOD[name])
    for answer in (FLUENT, asked.prompt, "", GOOD[name] + " and so on and on" * 80):
        assert not passes(asked, answer)
    assert not passes(asked, GOOD[name], "length")
    assert not any(passes(other, GOOD[name]) for other in QUALITY.values() if other is not asked)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("rolls", "7 left", "8 left"),
        ("record", "1931", '"1931"'),
        ("record", '"records_sold": 2', '"records_sold": 3'),
        ("summary", "the sea", "the water"),
        ("summary", "\n- Such", " Such"),
        ("merge", "return ", "print("),
        ("merge", "merged + left[i:]", "sorted(left)"),
        ("merge", "(left, right)", "(a, b)"),
        ("race", "Ben, Carl, Dora", "Carl, Ben, Dora"),
    ],
)
def test_one_thing_wrong_is_enough(name: str, old: str, new: str) -> None:
    """Each check can fail by itself."""
    assert old in GOOD[name]
    assert not passes(QUALITY[name], GOOD[name].replace(old, new))


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        '{"performance": [{"id": "a", "prompt": "x", "max_tokens": 1}, {"id": "a", "prompt": "y", "max_tokens": 1}]}',
        '{"quality": [{"id": "a", "prompt": "x", "max_tokens": 1, "checks": [{"kind": "matches", "what": "", "pattern": "("}]}]}',
        '{"speed": []}',
    ],
    ids=["no JSON", "an id twice", "a broken pattern", "an unknown set"],
)
def test_a_file_of_prompts_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    """Before anything is measured."""
    (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(PromptsRefused, match="no file of prompts"):
        read_prompts(tmp_path / "prompts.json")
    with pytest.raises(PromptsRefused, match="cannot be read"):
        read_prompts(tmp_path / "none.json")


def board(**more: Any) -> dict[str, Any]:
    told = {"id": "b", "soc": "rk3588", "machine": None, "driver": None, "version": "1", "temperature": 60.0}
    clock = {"hertz": 1_000_000_000, "highest": 1_000_000_000}
    return {**told, "npu_clock": clock, "throttled": [], "memory": {"available": 5, "swapped": 100}, **more}


class Boards(Service):
    """A service that shows its boards as a script has them."""

    def __init__(self, *looks: dict[str, Any]) -> None:
        self.looks = list(looks)

    def living_boards(self) -> list[dict[str, Any]]:
        """The next look, or the last one again."""
        return [self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]]


@pytest.mark.parametrize(
    ("later", "fault"),
    [
        (board(), None),
        (board(throttled=["thermal-devfreq-0"]), "Heat slowed b down: thermal-devfreq-0"),
        (board(npu_clock={"hertz": 600_000_000, "highest": 1_000_000_000}), "600 of 1000 MHz"),
        (board(memory={"available": 3, "swapped": 101 + SWAPPED}), "b moved 16 MB to swap"),
        (board(memory={"available": 3, "swapped": 100 + SWAPPED}), None),
    ],
    ids=["nothing", "heat", "a slow clock", "swapping", "a little swapping"],
)
def test_heat_and_swapping_make_figures_invalid(later: dict[str, Any], fault: str | None) -> None:
    """In the words of what to do; what went to swap before does not count."""
    with Watch(Boards(board(), later)) as watch:
        pass
    [seen] = watch.seen({"b"})
    assert seen.not_told() == [] and watch.seen({"other"}) == []
    if fault is None:
        assert seen.faults() == []
    else:
        [said] = seen.faults()
        assert fault in said


def test_what_a_board_does_not_tell_is_said() -> None:
    """Rather than taken for good."""
    silent = board(throttled=None, npu_clock=None, memory=None)
    with Watch(Boards(silent)) as watch:
        pass
    assert watch.seen({"b"})[0].not_told() == ["throttling", "swapping", "the NPU's clock"]


def test_the_vendors_row_is_found_by_name_chip_and_type() -> None:
    """`0.6b` is a word of its own: Qwen3.5 0.8B is no Qwen3."""
    found = vendor.find("rk3588", ["my-qwen3-0.6b-chat"], "W8A8")
    assert found is not None and (found["ttft_ms"], found["tokens_per_s"]) == (199.09, 32.91)
    assert vendor.find("rk3588", ["qwen3:0.6b"], "w4a16") is None
    assert vendor.find("rk3588", ["qwen3-10.6b", "qwen30.6b"], "w8a8") is None
    assert vendor.find(None, ["qwen3-0.6b"], "w8a8") is None
    assert vendor.named("RK3588/Qwen3/0.6B/w8a8") == found
    with pytest.raises(vendor.VendorUnknown, match=r"RK3562/Qwen3/0\.6B/w8a8"):
        vendor.named("RK3562/none")


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    """With its statistics, by set and concurrency, and the vendor's figures; what is no report is refused."""
    speeds = [sample(run=run, decode_tokens_per_s=float(run)) for run in range(1, 21)]
    found = report(
        [
            *speeds,
            sample(concurrency=2),
            sample("reference", first_token_ms=220.0, runtime_first_token_ms=200.0),
            sample(error="gone"),
        ]
    )
    files = write(found, tmp_path / "new")
    assert [path.name for path in files] == [f"m-2026-11-28T010203{ending}" for ending in (".json", ".md", ".svg")]
    assert read_report(files[0]) == found
    [row] = [row for row in found.summary if row.measure == "decode_tokens_per_s" and row.set == "performance"][:1]
    assert (row.samples, row.median, row.min, row.max, row.p95) == (20, 10.5, 1.0, 20.0, 19.0)
    assert found.vendor is not None
    ratios = {each.measure: each.ratio for each in found.vendor.compared}
    # The vendor's first token is the runtime's, to which the service adds.
    assert (ratios["runtime_first_token_ms"], ratios["first_token_ms"]) == (
        round(200 / 199.09, 4),
        round(220 / 199.09, 4),
    )
    assert "| first token, by the runtime | 200 ms | 199 ms | 1.005 |\n| first token | 220 ms" in (
        files[1].read_text(encoding="utf-8")
    )
    assert exit_code([found]) == 1
    (tmp_path / "other.json").write_bytes(dumped(msgspec.structs.replace(found, schema=SCHEMA + 1)))
    (tmp_path / "overhead.json").write_text('{"schema": 1, "command": "bench overhead"}')
    for name in ("other.json", "overhead.json", "none.json"):
        with pytest.raises(ReportUnreadable):
            read_report(tmp_path / name)


def test_every_field_of_a_report_is_in_its_schema() -> None:
    """The page of it is checked to be fresh by `ops/check`; `set` of a sample stands for those that are nested."""
    definitions = schema()["$defs"]
    assert set(definitions["Report"]["properties"]) == set(json.loads(dumped(report([sample()]))))
    assert "set" in definitions["Sample"]["required"]


def test_invalid_figures_have_an_exit_code_and_stand_at_the_top() -> None:
    """So that neither a script nor a reader takes them for good."""
    good, hot = report([sample()]), report([sample()], ("Heat slowed b down.",))
    assert (exit_code([good]), exit_code([good, hot])) == (0, 3)
    page = markdown(hot, None)
    assert "**The figures do not count:**\n\n- Heat slowed b down." in page


def test_a_terminal_sees_how_far_a_measurement_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which set it is at, and how many answers of how many are there."""

    def work() -> None:
        with _progress("qwen", 4) as show:
            show("long_context", 3)

    shown = seen(monkeypatch, work)
    assert "\x1b[" in shown and "qwen: long context" in shown and "3/4" in shown


def test_answers_cannot_break_the_page() -> None:
    """Whatever a model says is a block, a cell or a line of the report."""
    evil = "```\n# Not a heading\n````\n<script>"
    page = markdown(
        report([sample(answer=evil), sample("quality", prompt="a|b\n# c", error="<b>|")], model="<i>"), None
    )
    assert fenced(evil) in page and fenced(evil).startswith("`````text\n")
    assert "<i>" not in page and "<b>" not in page and "a\\|b # c" in page


def test_too_little_is_not_drawn() -> None:
    """One answer is no line, and one length no curve."""
    assert svg(report([sample()])) is None
    drawn = svg(report([sample(), sample("long_context", prompt="1"), sample("long_context", prompt_tokens=50)]))
    assert drawn is not None and drawn.count("<polyline") == 1


@pytest.mark.parametrize("name", ["../../etc/passwd", ".hidden", "a/b:c", "", "-rf", "x" * 300, "ä\0\n"])
def test_a_models_name_is_no_path(name: str) -> None:
    """Whatever a service calls its models."""
    made = file_name(name)
    assert made and not set(made) & set("/\\:\0\n") and made[0] not in ".-" and len(made) <= 100


class Interrupted(Service):
    """A service in the middle of whose answer somebody presses Ctrl-C."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    @contextmanager
    def stream(self, method: str, path: str, **more: Any) -> Iterator[Any]:
        """An answer that has begun."""

        def lines() -> Iterator[str]:
            yield 'data: {"model": "m", "choices": [{"delta": {"content": "so"}}]}'
            raise KeyboardInterrupt

        yield SimpleNamespace(headers={"x-job-id": "j"}, status_code=200, iter_lines=lines)

    def cancel_job(self, job: str) -> dict[str, Any]:
        """End it."""
        self.cancelled.append(job)
        return {}


def test_an_interrupted_measurement_ends_its_job() -> None:
    """It was given time for its client to come back, which would keep the board busy for nobody."""
    service = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        Asker(service, "m").ask(Place("performance", "p", 1), [{"role": "user", "content": "Why?"}], 5)
    assert service.cancelled == ["j"]


class Patient(Service):
    """A service whose answers wait for their model."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def stream(self, method: str, path: str, **more: Any) -> Iterator[Any]:
        """One of them."""
        more["extensions"]["trace"]("http11.send_request_headers.started", {})
        names = ("prompt_ms", "predicted_ms", "prompt_per_second", "predicted_per_second", "queued_ms", "load_ms")
        times = {"predicted_n": 1, "prompt_n": 1, "cache_n": 0, **dict.fromkeys(names, 1.0)}
        chunk = {"model": "m", "choices": [{"delta": {"content": "so"}, "finish_reason": "stop"}], "timings": times}
        lines = [": position 1, its model is being loaded", f"data: {json.dumps(chunk)}", "data: [DONE]"]
        yield SimpleNamespace(headers={"x-job-id": "j"}, status_code=200, iter_lines=lambda: iter(lines))

    def job(self, job: str) -> dict[str, Any]:
        """Where it ran."""
        return {"board": "b"}


def test_an_answer_that_waits_is_not_broken_off() -> None:
    """It is told so in its stream, as a connection that breaks is."""
    asked = Asker(Patient(), "m").ask(Place("performance", "p", 1), [{"role": "user", "content": "Why?"}], 5)
    assert (asked.error, asked.answer) == (None, "so")
