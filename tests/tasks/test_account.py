"""Where the time of a job went."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tasks.account import PartKind, account
from tasks.events import Failed, FailureCode, Timings, Usage
from tasks.jobs import Before, EndedClaim, JobState, JobView, Lane

TIMES = Timings(load_ms=2000.0, prefill_ms=1000.0, decode_ms=3000.0)


def view(**changed: Any) -> JobView:
    """A job that was accepted at 100, handed back once, and ended at 120."""
    fields: dict[str, Any] = {
        "id": "j",
        "model": "m",
        "kind": "chat",
        "lane": Lane.INTERACTIVE,
        "state": JobState.FINISHED,
        "created_at": 100.0,
        "started_at": 112.0,
        "ended_at": 120.0,
        "waiting_since": 107.0,
        "claims": (EndedClaim(103.0, 107.0, "a", "the process died"),),
        "board": "b",
        "ahead": 2,
        "usage": Usage(30, 5, 20),
        "timings": TIMES,
    }
    return JobView(**(fields | changed))


def test_the_parts_follow_one_another() -> None:
    """With where each was, and what is known of it."""
    assert [(part.kind.value, part.ms, part.board) for part in account(view())] == [
        ("waiting", 3000.0, None),
        ("interrupted", 4000.0, "a"),
        ("waiting", 5000.0, None),
        ("loading", 2000.0, "b"),
        ("prefill", 1000.0, "b"),
        ("decode", 3000.0, "b"),
        ("handling", 2000.0, "b"),
    ]
    said = [part.why for part in account(view())]
    assert said[:2] == ["2 before it when it was accepted", "the process died"]
    assert said[4] == "20 of 30 tokens from the cache"
    loaded = account(view(usage=Usage(30, 5, 20, parked_tokens=15)))
    assert loaded[4].why == "20 of 30 tokens from the cache, 15 of them loaded from where they were parked"


def test_the_last_attempt_has_its_own_time() -> None:
    """That of earlier ones stands in their parts already."""
    times = Timings(load_ms=2000.0, prefill_ms=1000.0, decode_ms=6000.0, earlier_ms=3000.0)
    [decode] = [part for part in account(view(timings=times)) if part.kind is PartKind.DECODE]
    assert (decode.ms, decode.why) == (3000.0, "5 tokens, with those of earlier attempts")


def test_what_is_handed_over_is_not_interrupted() -> None:
    """Another board had read it, and nothing of it was lost."""
    claims = (EndedClaim(103.0, 107.0, "a", "its board was drained, and 'b' goes on with it", "b"),)
    told = [(part.kind.value, part.why) for part in account(view(claims=claims))[1:3]]
    assert told == [
        ("handed_over", "its board was drained, and 'b' goes on with it; what was said is kept"),
        ("waiting", "after it was handed over"),
    ]


@pytest.mark.parametrize(
    ("work", "parts"),
    [
        (7990.0, [("handling", 1990.0), ("publish", 10.0)]),
        (5000.0, [("handling", 0.0), ("publish", 2000.0)]),  # by another clock
        (8000.4, [("handling", 2000.0), ("publish", 0.0)]),  # whose milliseconds are whole ones
        (0.0, [("handling", 2000.0)]),  # of an earlier release, which does not tell
    ],
)
def test_the_end_is_published_in_a_part_of_its_own(work: float, parts: list[tuple[str, float]]) -> None:
    """It is what is left of the attempt once the worker had only the end to write."""
    times = msgspec.structs.replace(TIMES, work_ms=work)
    assert [(part.kind.value, part.ms) for part in account(view(timings=times))[6:]] == parts


def test_a_wait_tells_behind_whom() -> None:
    """And names those jobs to nobody who may not read them."""
    before = (Before("aaa", Lane.BACKGROUND, True), Before("bbb", Lane.INTERACTIVE, False))
    said = "2 before it when it was accepted: one that ran (background{}), one that waited (interactive{})"
    assert account(view(behind=before))[0].why == said.format("", "")
    assert account(view(behind=before), ids=True)[0].why == said.format(", aaa", ", bbb")


@pytest.mark.parametrize(
    ("held", "ahead", "why"),
    [
        ("load", 0, "its model was not loaded yet when it was accepted"),
        ("queue", 0, "its queue was paused when it was accepted"),
        ("queue", 2, "2 before it when it was accepted; its queue was paused then"),
        ("of another version", 0, "0 before it when it was accepted"),
        (None, 0, "0 before it when it was accepted"),
    ],
)
def test_a_wait_tells_what_else_it_was_for(held: str | None, ahead: int, why: str) -> None:
    """A model that was not loaded, or a queue that was paused, keeps the first in line as well."""
    assert account(view(held=held, ahead=ahead))[0].why == why


@pytest.mark.parametrize(
    ("home", "cached", "why"),
    [
        ("here", 5, ": it goes on with what this board served last, but differs from that after token 5"),
        ("elsewhere", 5, ": another board had its conversation in its cache"),
        ("gone", 5, ": others were served since its conversation was"),
        ("new", 5, ""),
        (None, 5, ""),
        ("here", 25, ""),
    ],
)
def test_a_prefill_tells_what_broke_the_prefix(home: str | None, cached: int, why: str) -> None:
    """Where less than half of the prompt was there, and it goes on with an earlier one."""
    for claims, told in (((), why), (view().claims, "")):  # after a pause it is another cache
        found = account(view(home=home, usage=Usage(30, 5, cached), claims=claims))
        [prefill] = [part for part in found if part.kind is PartKind.PREFILL]
        assert prefill.why == f"{cached} of 30 tokens from the cache{told}"


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"waiting_since": 110.0},
        {"timings": Timings(prefill_ms=9000.0, decode_ms=1000.0)},
        {"timings": None, "usage": None, "error": Failed(FailureCode.INTERNAL, "a defect")},
        {"board": None, "timings": None, "usage": None},
        {"claims": (), "waiting_since": 100.0},
        {"timings": msgspec.structs.replace(TIMES, work_ms=7990.0)},
    ],
    ids=[
        "whole",
        "more claims than are kept",
        "another clock",
        "failed",
        "ended while it waited",
        "undisturbed",
        "published",
    ],
)
def test_they_add_up(changed: dict[str, Any]) -> None:
    """To all of it, whatever became of the job."""
    assert sum(part.ms for part in account(view(**changed))) == pytest.approx(20_000)


def test_what_has_not_ended_is_told_up_to_now() -> None:
    """The newest claim has no length yet."""
    running = account(view(state=JobState.RUNNING, ended_at=None, timings=None, usage=None))
    assert [part.kind for part in running] == [PartKind.WAITING, PartKind.INTERRUPTED, PartKind.WAITING]
