"""Lanes: order within, independence between, bounds, and threads that end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tasks.board.lanes import Lanes
from tests.stack import LIMIT, eventually


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes()
    yield made
    made.close()


def test_a_lane_keeps_its_order_and_holds_up_no_other(lanes: Lanes) -> None:
    """What is behind the slow one waits; what is beside it does not."""
    gate, beside, done = threading.Event(), threading.Event(), []

    def slow() -> None:
        gate.wait(LIMIT)
        done.append(0)

    assert lanes.submit("a", slow, 10)
    for number in range(1, 6):
        assert lanes.submit("a", lambda number=number: done.append(number), 10)  # type: ignore[misc]
    assert lanes.submit("b", beside.set, 10)
    assert beside.wait(LIMIT)
    assert done == []
    gate.set()
    eventually(lambda: len(done) == 6, what="the whole lane")
    assert done == list(range(6))


def test_a_full_lane_takes_no_more(lanes: Lanes) -> None:
    """One in hand and as many as may wait; then room again."""
    gate, begun, done = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        gate.wait(LIMIT)

    lanes.submit("a", slow, 2)
    assert begun.wait(LIMIT)
    assert [lanes.submit("a", lambda: done.append(1), 2) for _ in range(4)] == [True, True, False, False]
    gate.set()
    eventually(lambda: len(done) == 2, what="those that waited")
    eventually(lambda: lanes.submit("a", lambda: done.append(1), 2), what="room")


def test_what_comes_while_no_thread_is_to_be_had_is_not_lost(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is refused; whoever came behind it is done, or refused as well."""
    start, done = threading.Thread.start, threading.Event()
    second = threading.Thread(target=lambda: lanes.submit("a", done.set, 10))

    def fails(_: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        second.start()
        second.join(0.2)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    assert not lanes.submit("a", lambda: None, 10)
    assert done.wait(LIMIT)


def test_a_defect_ends_no_lane_and_no_thread_stays(lanes: Lanes, caplog: pytest.LogCaptureFixture) -> None:
    """It is told; the next is done; an idle lane costs nothing."""
    done = threading.Event()

    def names() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("lane ")}

    lanes.submit("broken", lambda: [][0], 10)
    lanes.submit("broken", done.set, 10)
    assert done.wait(LIMIT)
    assert "IndexError" in caplog.text
    eventually(lambda: "lane broken" not in names(), what="the end of its thread")


def test_what_waits_at_the_end_is_not_begun(lanes: Lanes) -> None:
    """Closing waits for nobody, and begins nothing."""
    gate, begun, done = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        gate.wait(LIMIT)

    lanes.submit("a", slow, 2)
    lanes.submit("a", lambda: done.append(1), 2)
    assert begun.wait(LIMIT)
    lanes.close()
    gate.set()
    eventually(lambda: not any(t.name == "lane a" for t in threading.enumerate()), what="the end of its thread")
    assert done == []
