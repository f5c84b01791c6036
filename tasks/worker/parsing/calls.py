"""Calls of tools told from text, as the words come: what all formats have in common.

A format is written down as it is read, as a generator that yields where it needs more text. Until a call is certain
(its name is known, and its arguments begin), what was read of it is kept: when it turns out to be none it is text again.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from math import isinf
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar

from tasks.requests import Tool
from tasks.worker.parsing.json_end import JsonEnd
from tasks.worker.parsing.text import overlap

Result = TypeVar("Result")
Steps: TypeAlias = Generator[None, None, Result]
"""Reads on with each step, and yields where the text so far does not suffice."""

MOST_HELD = 1 << 16
"""Characters that are held back of what may become a call. What is longer before its arguments begin is text."""

MOST_AGAIN = 1 << 20
"""Characters of what turned out to be no call that are read again. Behind that, markers are text: they may stand inside each
other, and each would have all that follows it read once more."""

_NAME = re.compile(r"[\w.:/-]{1,256}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Said(NamedTuple):
    """More of the visible text."""

    text: str


class Called(NamedTuple):
    """A call of this tool begins."""

    name: str


class Argued(NamedTuple):
    """More of the arguments of the last call, as JSON text."""

    text: str


Part: TypeAlias = Said | Called | Argued


class NotACall(Exception):
    """Raised where what was read cannot be a call of this format, or does not go on as one."""


class CallReader(Protocol):
    """Reads an answer in which there may be calls."""

    full: bool
    """As many calls were read as there may be: nothing that follows is part of the answer."""

    def feed(self, text: str) -> list[Part]:
        """What is certain after `text`."""

    def finish(self) -> list[Part]:
        """What was held back, now that nothing follows. A call that was cut short stays as it is."""


class Format(ABC):
    """Reads one format. Blanks between text and calls belong to neither."""

    def __init__(self, tools: Sequence[Tool], most: int | None, *, alone: bool = False) -> None:
        """`most` is how many calls there may be; `alone`, that an answer which does not begin with one has none."""
        self.alone = alone
        self.tools = {tool.name: tool for tool in tools}
        self.full = False
        self._most = most
        self._calls = 0
        self._text = ""
        self._read = ""
        """What was read of a call that is not certain yet."""
        self._again = 0
        """Characters that had to be read again."""
        self._calling = False
        self._final = False
        self._parts: list[Part] = []
        self._steps = self._run()
        next(self._steps)

    def feed(self, text: str) -> list[Part]:
        """See `CallReader`."""
        if self.full:
            return []
        self._text += text
        return self._step()

    def finish(self) -> list[Part]:
        """See `CallReader`."""
        if self.full:
            return []
        self._final = True
        return self._step()

    def _step(self) -> list[Part]:
        next(self._steps, None)
        parts, self._parts = self._parts, []
        return parts

    @abstractmethod
    def _run(self) -> Steps[None]:
        """Read the whole answer."""

    def _say(self, text: str) -> None:
        if text:
            self._parts.append(Said(text))

    def _pass_on(self) -> Steps[None]:
        """All that is left is text. Does not return."""
        while True:
            self._say(self._text)
            self._text = ""
            yield

    def _try(self, call: Steps[None]) -> Steps[bool]:
        """Read what may be calls; whether it was at least one. What was not is to be read again as text."""
        self._read, before = "", self._calls
        try:
            yield from call
        except NotACall:
            if not self._calling:
                self._text = self._read + self._text
                self._again += len(self._read)
        self._read, self._calling = "", False
        return self._calls > before

    def _begin(self, name: str) -> None:
        """The call is certain. Raises `NotACall` where that is no name."""
        if not _NAME.fullmatch(name):
            raise NotACall
        self._calls += 1
        self._calling = True
        self._read = ""
        self._parts.append(Called(name))

    def _argue(self, text: str) -> None:
        if text:
            self._parts.append(Argued(text))

    def _end(self) -> Steps[None]:
        """The call is whole. Does not return when it was the last one."""
        self._read, self._calling = "", False
        if self._most is not None and self._calls >= self._most:
            yield from self._close()

    def _close(self) -> Steps[None]:
        """Nothing that follows is part of the answer."""
        self.full = True
        while True:
            yield

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        if not self._calling:
            self._read += taken
            if len(self._read) > MOST_HELD:
                raise NotACall
        return taken

    def _more(self) -> Steps[None]:
        if self._final:
            raise NotACall
        yield

    def _peek(self) -> Steps[str]:
        """The next character."""
        while not self._text:
            yield from self._more()
        return self._text[0]

    def _blanks(self) -> Steps[None]:
        """Skip blanks, if there are any."""
        while True:
            self._take(len(self._text) - len(self._text.lstrip()))
            if self._text:
                return
            yield from self._more()

    def _has(self, words: str) -> Steps[bool]:
        """Take `words` if they come next."""
        while words.startswith(self._text) and self._text != words:
            if self._final:
                return False
            yield
        if not self._text.startswith(words):
            return False
        self._take(len(words))
        return True

    def _expect(self, words: str) -> Steps[None]:
        if not (yield from self._has(words)):
            raise NotACall

    def _give_back(self, text: str) -> None:
        """Take it back that `text` was taken; only before the call is certain."""
        self._text = text + self._text
        self._read = self._read[: len(self._read) - len(text)]

    def _upto(self, *ends: str, within: int = MOST_HELD) -> Steps[tuple[str, str]]:
        """What stands before the first of `ends`, and which it is; both are taken. It may have `within` characters."""
        while True:
            found = min(((at, end) for end in ends if (at := self._text.find(end)) >= 0), default=None)
            if found is not None and found[0] <= within:
                at, end = found
                before = self._take(at)
                self._take(len(end))
                return before, end
            if len(self._text) >= within + max(map(len, ends)):
                raise NotACall
            yield from self._more()

    def _value_upto(self, *ends: str) -> Steps[str]:
        """What stands before the first of `ends` that is not within a string of a JSON object or list."""
        end, seen, start = JsonEnd(), 0, 0
        while True:
            found = min((at for each in ends if (at := self._text.find(each, start)) >= 0), default=None)
            if found is None and not self._final and len(self._text) < MOST_HELD:
                yield
                continue
            if found is None or found > MOST_HELD:
                break
            if self._text.lstrip()[:1] in ("{", "[") and end.find(self._text[seen:found]) is None and end.in_text:
                seen, start = found, found + 1
                continue
            value = self._take(found)
            self._take(next(len(each) for each in ends if self._text.startswith(each)))
            return value
        value, _ = yield from self._upto(*ends)  # the string has no end, so it was none
        return value

    def _pass_upto(self, ends: Sequence[str], to: Callable[[str], None]) -> Steps[None]:
        """Hand over text as it comes until the first of `ends`, which is taken."""
        while True:
            found = min(((at, end) for end in ends if (at := self._text.find(end)) >= 0), default=None)
            if found is not None:
                at, end = found
                to(self._take(at))
                self._take(len(end))
                return
            keep = 0 if self._final else max(overlap(self._text, end) for end in ends)
            to(self._take(len(self._text) - keep))
            yield from self._more()

    def _json(self, to: Callable[[str], None]) -> Steps[None]:
        """Hand over a JSON value as it comes."""
        end = JsonEnd()
        while True:
            count = end.find(self._text)
            to(self._take(len(self._text) if count is None else count))
            if count is not None:
                return
            yield from self._more()

    def _json_value(self) -> Steps[Any]:
        """A whole JSON value, read."""
        parts: list[str] = []
        yield from self._json(parts.append)
        return read_json("".join(parts))

    def _json_call(self, *, known: bool = False) -> Steps[None]:
        """One object with a name and arguments. `known` takes the names of the request's tools alone."""
        name: str | None = None
        arguments: str | None = None
        yield from self._expect("{")
        while True:
            yield from self._blanks()
            if (yield from self._peek()) != '"':
                raise NotACall
            key = yield from self._json_value()
            yield from self._blanks()
            yield from self._expect(":")
            yield from self._blanks()
            if key == "name" and not self._calling:
                name = yield from self._json_value()
                if not isinstance(name, str) or (known and name not in self.tools):
                    raise NotACall
            elif key in ("arguments", "parameters") and not self._calling:
                if name is not None and (yield from self._peek()) == "{":
                    self._begin(name)
                    yield from self._json(self._argue)
                else:
                    arguments = as_arguments((yield from self._json_value()))
            else:
                yield from self._json_value()  # an id, a type
            yield from self._blanks()
            if not (yield from self._has(",")):
                break
        yield from self._expect("}")
        if not self._calling:
            if name is None:
                raise NotACall
            self._begin(name)
            self._argue("{}" if arguments is None else arguments)
        yield from self._end()


class MarkedFormat(Format):
    """A format whose calls begin with a marker, wherever they stand."""

    markers: ClassVar[tuple[str, ...]]

    def _run(self) -> Steps[None]:
        blank = False  # nothing but blanks since the last call
        if self.alone and not (yield from self._begins()):
            yield from self._pass_on()
        while True:
            at, marker = min(
                ((at, marker) for marker in self.markers if (at := self._text.find(marker)) >= 0), default=(-1, "")
            )
            keep = 0 if self._final or marker else max(overlap(self._text, marker) for marker in self.markers)
            before = self._text[:at] if marker else self._text[: len(self._text) - keep]
            if blank:
                kept = before.lstrip()
                self._text = self._text[len(before) - len(kept) :]
                before, blank = kept, not kept
            visible = before if self._final and not marker else before.rstrip()
            self._say(visible)
            self._text = self._text[len(visible) :]
            if not marker:
                if self._final:
                    return
                yield
                continue
            gap = before[len(visible) :]
            self._text = self._text[len(gap) :]
            if self._again <= MOST_AGAIN and (yield from self._try(self._call())):
                blank = True
            else:
                self._say(gap + marker)
                self._text = self._text[len(marker) :]

    def _begins(self) -> Steps[bool]:
        """Whether a marker is the first that is not blank."""
        while not self._final:
            text = self._text.lstrip()
            if text.startswith(self.markers):
                return True
            if text and not any(marker.startswith(text) for marker in self.markers):
                return False
            yield
        return False

    @abstractmethod
    def _call(self) -> Steps[None]:
        """Read on from a marker."""


def read_json(text: str) -> Any:
    """The value. Raises `NotACall`."""
    try:
        return json.loads(text, strict=False, parse_float=_finite, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise NotACall from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if isinf(value):  # too large for one, and would be written as what is no JSON
        raise ValueError(f"{number[:20]} is too large")
    return value


def write_json(value: object) -> str:
    """JSON text with its characters as they are, where UTF-8 can hold them."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() or not _SURROGATE.search(text) else json.dumps(value)


def as_arguments(value: object) -> str:
    """An object as JSON text, from what a model wrote for one: also nothing, or the text itself. Raises `NotACall`."""
    if value is None:
        return "{}"
    if isinstance(value, str):
        value = read_json(value) if value.strip() else {}
    if not isinstance(value, dict):
        raise NotACall
    return write_json(value)
