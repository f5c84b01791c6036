"""Where bytes stop being JSON, and why, in words for whoever wrote them."""

from __future__ import annotations

import re

import msgspec

_POSITION = re.compile(r" \(byte (\d+)\)$")
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u)")

HINTS = {
    "'": "Strings stand in double quotes; a shell may have taken those away.",
    "/": "JSON has no comments.",
    "#": "JSON has no comments.",
    **dict.fromkeys("NIT", "JSON knows finite numbers, true, false and null."),
    **dict.fromkeys("FU", "JSON knows finite numbers, true, false and null."),
    "\n": r"A line break inside a string is written \n.",
    "\t": r"A tab inside a string is written \t.",
}
"""What people mean by a character that cannot stand where it was found."""


def fault(data: bytes, error: msgspec.DecodeError | UnicodeDecodeError) -> str:
    """What is wrong with `data`, as a sentence that goes on after "The request body": where, what was found, and why."""
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(data)
    text = str(error).removeprefix("JSON is malformed: ")
    position = _POSITION.search(text)
    if position is None:
        return _without_place(data, text)
    reason = text[: position.start()]
    # What follows the end was read already when it was found to be too much.
    at = int(position.group(1)) - (reason == "trailing characters")
    if reason == "trailing characters":
        reason = "the object has ended before it"
    if at >= len(data):
        return f"is not valid JSON: {reason} at its end ({_place(data, len(data))})."
    found = data[at:].decode("utf-8", "replace")[:1]
    shown = f"'{found}'" if found.isprintable() else f"U+{ord(found):04X}"
    hint = HINTS.get(found, "") if "character" in reason or "keys" in reason else ""
    return f"is not valid JSON: {_place(data, at)}, at {shown}: {reason}." + (hint and f" {hint}")


def _without_place(data: bytes, text: str) -> str:
    if half := _HALF_PAIR.search(data):
        escape = half.group().decode()
        return f"is not valid JSON: {_place(data, half.start())}, at '{escape}': half of a surrogate pair."
    if "truncated" in text:
        return f"is not valid JSON: it ends too early ({_place(data, len(data))}); a bracket or a quotation mark is not closed."
    # The library's own place is of no use: it says that the fault is in some field of some value.
    return f"is not valid JSON: {text.partition(' - at ')[0].lower()}."


def _not_utf8(data: bytes) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"is not valid UTF-8: {_place(data, error.start)}, at the byte 0x{data[error.start]:02x}."
    return "is not valid UTF-8."


def _place(data: bytes, at: int) -> str:
    before = data[:at]
    line = before.count(b"\n") + 1
    column = len(before.rpartition(b"\n")[2].decode("utf-8", "replace")) + 1
    return f"line {line}, column {column}"
