"""What systemd is told, read from a socket as it has one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import systemd
from tasks.systemd import Pulse, listens, tell
from tests.fakes.notified import Notified


@pytest.fixture(params=["in a folder", "abstract"])
def notified(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notified]:
    address = str(tmp_path / "notify") if request.param == "in a folder" else f"@{os.fspath(tmp_path)}"
    with Notified(address) as one:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield one


def test_a_word_arrives(notified: Notified) -> None:
    """As lines, at whichever kind of socket was named."""
    assert listens()
    tell("READY=1", "STATUS=Listening – somewhere")
    assert notified.next() == ["READY=1", "STATUS=Listening – somewhere"]


def test_a_pulse_is_told_thrice_in_the_time_that_is_borne(notified: Notified, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it beats."""
    moment = 1000.0
    monkeypatch.setattr(systemd.time, "monotonic", lambda: moment)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    pulse = Pulse()
    for _ in range(61):
        pulse.beat()
        moment += 0.5
    tell("over")
    assert [notified.next() for _ in range(5)] == [*[["WATCHDOG=1"]] * 4, ["over"]]


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}])
def test_nobody_waits_for_the_pulse_of_another(
    notified: Notified, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that were meant for the process that started this one, or say nothing."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Pulse().beat()
    tell("over")
    assert notified.next() == ["over"]


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And one that is gone does no harm."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not listens()
    tell("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    tell("READY=1")
