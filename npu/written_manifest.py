"""A manifest as its author wrote it: what is wrong with it is told by key and line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from npu.errors import ModelRefused
from npu.manifest_keys import KEYS
from npu.model import Value

MAX_FILE_BYTES = 1 << 20

_WORDS = {str: "a string", list: "a list of strings", int: "a whole number", dict: "a table", bool: "true or false"}


class WrittenManifest:
    """A manifest's `table` of keys. Its methods raise `ModelRefused`."""

    def __init__(self, path: Path) -> None:
        """Read it. Raises `ModelRefused` when that is not possible, or it is not TOML."""
        self.path = path
        self._text, self.table = _read(path)

    def check_keys(self) -> None:
        """Every key is one that manifests have, and its value of the kind that belongs to it."""
        for key in self.table:
            if key not in KEYS:
                raise self.refuse(key, f"is not a key of a manifest. There are: {', '.join(KEYS)}")
            self._check_type(key, KEYS[key][0])

    def one_of(self, key: str, value: str, known: tuple[str, ...]) -> str:
        """The `value` of a key that must be a known one."""
        if value not in known:
            raise self.refuse(key, f"holds {value!r}, which is not known. There are: {', '.join(known)}")
        return value

    def values(self, key: str) -> dict[str, Value]:
        """What a section of plain values holds."""
        values = self.table.get(key, {})
        for name, value in values.items():
            if not isinstance(value, (str, int, float, bool)):
                raise self.refuse(name, "must be a string, a number or a truth value", key)
        return dict(values)

    def inside(self, key: str, name: str, section: str = "") -> Path:
        """The file of that name in the manifest's folder, which is there."""
        named = Path(name)
        if named.is_absolute() or ".." in named.parts or not named.parts:
            raise self.refuse(key, f"is {name!r}: it must name a file inside the manifest's own folder", section)
        path = self.path.parent / named
        if not path.is_file():
            raise self.refuse(key, f"names {name!r}, and there is no such file in {self.path.parent}", section)
        return path

    def text_of(self, key: str) -> str | None:
        """What is in the file that a key names; None where the key is left out."""
        if key not in self.table:
            return None
        path = self.inside(key, self.table[key])
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise self.refuse(key, f"names a file larger than {MAX_FILE_BYTES >> 20} MB")
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self.refuse(key, f"cannot be read: {_why(error)}") from error

    def refuse(self, key: str, what: str, section: str = "") -> ModelRefused:
        """The error to raise: where the key stands, and `what` is wrong with it."""
        line = self._line(key, section)
        where = f"{self.path}, line {line}" if line else str(self.path)
        return ModelRefused(f"{where}: `{section + '.' if section else ''}{key}` {what}.")

    def _check_type(self, key: str, expected: type | tuple[type, ...]) -> None:
        value: object = self.table[key]
        kinds = expected if isinstance(expected, tuple) else (expected,)
        right = type(value) in kinds
        if right and isinstance(value, list):
            right = all(isinstance(entry, str) for entry in value)
        if not right:
            raise self.refuse(key, f"must be {' or '.join(_WORDS[kind] for kind in kinds)}")

    def _line(self, key: str, section: str) -> int | None:
        # TOML keeps no positions; the first line of the section that sets the key is the one a reader looks for.
        current = ""
        quoted = rf"(?:{re.escape(key)}|\"{re.escape(key)}\"|'{re.escape(key)}')"
        for number, line in enumerate(self._text.splitlines(), 1):
            header = re.match(r"\s*\[\s*([^\]]+?)\s*\]", line)
            if header:
                current = header[1]
                if not section and current.split(".")[0] == key:
                    return number
            elif current == section and re.match(rf"\s*{quoted}\s*[.=]", line):
                return number
        return None


def _why(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"its byte {error.start + 1} is no text in UTF-8"
    return error.strerror or str(error)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelRefused(f"{path} is larger than {MAX_FILE_BYTES >> 20} MB; this is no manifest.")
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ModelRefused(f"{path} cannot be read: {_why(error)}.") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ModelRefused(f"{path} is not TOML: {error}.") from error
