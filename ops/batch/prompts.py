"""The input of a batch: lines as the API takes them, or prompts from a table or a plain text, put into a template."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "text"}
"""By the ends of files' names."""
CHAT = "/v1/chat/completions"
NAMES = ("custom_id", "id")
"""Columns of a table that name its rows, the first that is there."""

MOST_CELL = 10_000_000
"""Characters of one value of a table."""

_PLACE = re.compile(r"\{(\w+)\}")


class InputError(Exception):
    """Raised for an input of which no batch can be made; the message is for the user. `usage` tells whether it was asked
    wrongly."""

    def __init__(self, message: str, *, usage: bool = False) -> None:
        self.usage = usage
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is the same for every prompt of a table or text."""

    model: str | None = None
    template: str | None = None
    system: str | None = None
    max_tokens: int | None = None


def format_of(name: str, said: str | None) -> str:
    """What an input is: as it was said, else by its name; what comes from a pipe is lines for the API. Raises `InputError`."""
    found = said or ("jsonl" if name == "-" else FORMATS.get(Path(name).suffix.lower()))
    if os.path.isdir(name):
        raise InputError(f"{name} is a folder. Name the file with the prompts.")
    if said is not None and said not in FORMATS.values():
        raise InputError(f"'{said}' is no format. Say --format jsonl, csv or text.", usage=True)
    if found is None:
        raise InputError(f"What is in {name}? Say --format jsonl, csv or text.", usage=True)
    return found


def write(source: BinaryIO, form: str, wishes: Wishes, to: IO[bytes]) -> tuple[str, int]:
    """Write the input as the API takes it; the endpoint it is for, and how many requests there are. Raises `InputError`.

    Empty lines stay, so that a line at fault is told by its number in the input."""
    endpoint, count = CHAT, 0
    requests = _given(source, wishes) if form == "jsonl" else _made(source, form, wishes)
    try:
        for url, line in requests:
            if line and not count:
                endpoint = url
            to.write(line + b"\n")
            count += bool(line)
    except UnicodeDecodeError as error:
        raise InputError("The input is not UTF-8.") from error
    if not count:
        raise InputError("The input is empty.")
    return endpoint, count


def _given(source: BinaryIO, wishes: Wishes) -> Iterator[tuple[str, bytes]]:
    if wishes.template or wishes.system or wishes.max_tokens:
        raise InputError("--template, --system and --max-tokens are for --format csv and text; these lines are whole.")
    first = True
    for number, line in enumerate(source, 1):
        line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
        url = ""
        if not line:
            yield url, line
            continue
        if first or wishes.model:
            try:
                request = json.loads(line)
                url = request["url"]
                if wishes.model and request["body"].get("model") is None:
                    request["body"]["model"] = wishes.model
                    line = _encode(request)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(
                    f"Line {number} is no request of a batch: an object with custom_id, method, url and body. "
                    "For plain prompts say --format text or csv."
                ) from None
        first = False
        yield url, line


def _made(source: BinaryIO, form: str, wishes: Wishes) -> Iterator[tuple[str, bytes]]:
    text = io.TextIOWrapper(source, encoding="utf-8-sig", newline="" if form == "csv" else None)
    template = wishes.template or "{prompt}"
    for name, values in _rows(text, template) if form == "csv" else _lines(text, template):
        if not values:
            yield CHAT, b""
            continue
        system = [{"role": "system", "content": wishes.system}] if wishes.system else []
        body: dict[str, Any] = {"messages": [*system, {"role": "user", "content": _filled(template, values)}]}
        if wishes.model:
            body["model"] = wishes.model
        if wishes.max_tokens:
            body["max_tokens"] = wishes.max_tokens
        yield CHAT, _encode({"custom_id": name, "method": "POST", "url": CHAT, "body": body})


def _filled(template: str, values: dict[str, str]) -> str:
    return _PLACE.sub(lambda match: values[match[1]], template)


def _lines(text: IO[str], template: str) -> Iterator[tuple[str, dict[str, str]]]:
    _check(template, ("prompt",))
    for number, line in enumerate(text, 1):
        prompt = line.strip()
        yield f"line-{number}", {"prompt": prompt} if prompt else {}


def _rows(text: IO[str], template: str) -> Iterator[tuple[str, dict[str, str]]]:
    csv.field_size_limit(MOST_CELL)
    table = csv.DictReader(text, strict=True)
    try:
        columns = tuple(table.fieldnames or ())
        _check(template, columns)
        named = next((name for name in NAMES if name in columns), None)
        for number, row in enumerate(table, 1):
            if None in row or None in row.values():
                raise InputError(f"Row {number} has not as many values as the table has columns ({len(columns)}).")
            yield (row[named] if named else f"row-{number}"), row
    except csv.Error as error:
        raise InputError(f"The table breaks off at line {table.line_num}: {error}.") from error


def _check(template: str, known: tuple[str, ...]) -> None:
    places = _PLACE.findall(template)
    missing = next((place for place in places if place not in known), None)
    if missing is not None or not places:
        said = f"{{{missing}}} in the template" if missing is not None else "A template without a place"
        there = ", ".join(f"{{{name}}}" for name in known) or "none"
        raise InputError(f"{said} takes nothing from the input; there is {there}.")


def _encode(request: dict[str, Any]) -> bytes:
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()
