"""How every process of the service writes its log: one line an entry, to stderr.

Facts beside the message go into `extra`: `log.info("job finished", extra={"job": id, "tokens": 12})` becomes
`12:00:01 info    tasks.worker job finished job=… tokens=12`. Prompts and answers never go into either.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""What a record always carries; the rest of it was given as `extra`."""

_QUIET = ("asyncio", "celery.redirected", "httpcore", "httpx", "kombu", "amqp", "urllib3", "uvicorn")
"""Libraries whose lines below a warning tell a reader nothing about the service."""


def configure(level: str = "info", format: str = "text") -> None:
    """Write this process's log to stderr from now on. `level` and `format` are the settings of those names."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    logging.captureWarnings(True)


def set_level(level: str) -> None:
    """Write lines of this level and those above it from now on."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD and value is not None}


class TextLines(logging.Formatter):
    """`HH:MM:SS level logger message key=value …`, in the machine's own time."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{clock} {record.levelname.lower():<7} {record.name} {_one_line(record.getMessage())}"
        line += "".join(f" {key}={_shown(value)}" for key, value in _facts(record).items())
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonLines(logging.Formatter):
    """One JSON object a line, for collectors; times are UTC."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # A fact never hides what the entry itself says.
        entry |= {key: value for key, value in _facts(record).items() if key not in entry}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _one_line(text: str) -> str:
    # What a client sent may stand in a message; it must not be able to forge a second entry or move the cursor.
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    if text and text.isprintable() and not any(char in text for char in ' "='):
        return text
    return json.dumps(text, ensure_ascii=False)
