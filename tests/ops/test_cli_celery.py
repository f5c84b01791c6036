"""`celery`, as people type it: the script that is installed, a worker that it asks, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from celery.contrib.testing.worker import start_worker

from ops.cli.celery import main
from tasks.broker import celery_app
from tests.stack import LIMIT


def test_the_script_that_is_installed_is_ours() -> None:
    """Celery's own ends in a traceback about a package that is left out."""
    script = Path(sys.executable).with_name("celery")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert "the workers of this service" in done.stdout


def test_workers_are_asked(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the Redis that is named, without an application."""
    monkeypatch.setenv("ROCKCHIPLLAMA_REDIS_URL", "redis://192.0.2.1")  # and given back behind it
    with start_worker(celery_app(valkey_url), pool="solo", perform_ping_check=False, shutdown_timeout=LIMIT) as worker:
        words = ["-b", valkey_url, "inspect", "--timeout", str(LIMIT), "--destination", worker.hostname, "ping"]
        monkeypatch.setattr("sys.argv", ["celery", *words])
        with pytest.raises(SystemExit, match="0"):
            main()
    assert f"{worker.hostname}: OK\n        pong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-A", "tasks", "status"], "leave -A out"),
        (["worker"], "these ask workers: inspect, control, status, events. Workers are run by a board's agent"),
        (["amqp"], "these ask workers"),
    ],
)
def test_what_would_come_to_nothing_is_refused(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what does it here."""
    monkeypatch.setattr("sys.argv", ["celery", *words])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert told in capsys.readouterr().err


def test_a_queue_that_is_away_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Celery would wait for it without end."""
    monkeypatch.setenv("ROCKCHIPLLAMA_DATA_DIR", "elsewhere")  # and given back behind it
    monkeypatch.setattr("sys.argv", ["celery", "--data-dir", str(tmp_path), "status"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "queue does not answer" in capsys.readouterr().err
