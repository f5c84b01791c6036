"""The log lines every process writes."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from tasks.logs import JsonLines, TextLines


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("tasks.test").makeRecord(
        "tasks.test", logging.INFO, __file__, 1, message, args, None, extra=extra
    )


def test_a_line_for_people() -> None:
    """Clock, level, logger, message, then the facts as key=value."""
    line = TextLines().format(record("job %s", "finished", job="abc", tokens=12, seconds=1.50, why=None))
    assert line[2] == line[5] == ":"
    assert line[8:] == " info    tasks.test job finished job=abc tokens=12 seconds=1.5"


def test_a_client_cannot_forge_a_line() -> None:
    """Line breaks and terminal codes in a message or a fact are shown, not obeyed."""
    line = TextLines().format(record("unknown model %s", "x\n12:00:00 error fake", model="a\x1b[2J b"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert r"x\n12:00:00 error fake" in line


def test_an_entry_for_collectors() -> None:
    """One JSON object with the facts beside the message; a fact never hides the entry's own words."""
    entry = json.loads(JsonLines().format(record("request", status=200, level_name="x", logger="forged")))
    assert entry["message"] == "request"
    assert entry["status"] == 200
    assert entry["logger"] == "tasks.test"
    assert entry["level"] == "info"
    assert entry["time"].endswith("+00:00")


@pytest.mark.parametrize("lines", [TextLines(), JsonLines()])
def test_an_exception_is_kept(lines: logging.Formatter) -> None:
    """Traceback included."""
    try:
        raise ValueError("boom")
    except ValueError:
        entry = record("failed")
        entry.exc_info = sys.exc_info()
    assert "ValueError: boom" in lines.format(entry)
