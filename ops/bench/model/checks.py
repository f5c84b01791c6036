"""What an answer must be like, as a machine can see it: fluent text that misses the point passes none of it."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from typing import Any, TypeAlias

import msgspec

REPEATS = 0.5
"""The share of an answer's four-word sequences that may have been there before; more is a model that runs in circles."""
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_FENCED = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


class Matches(msgspec.Struct, frozen=True, tag_field="kind", tag="matches", forbid_unknown_fields=True):
    """A regular expression occurs in it, whatever the case."""

    what: str
    pattern: str

    def passed(self, answer: str) -> bool:
        """Whether it does."""
        return re.search(self.pattern, answer, re.IGNORECASE) is not None


class Lacks(msgspec.Struct, frozen=True, tag_field="kind", tag="lacks", forbid_unknown_fields=True):
    """Something is said, and a regular expression occurs nowhere in it."""

    what: str
    pattern: str

    def passed(self, answer: str) -> bool:
        """Whether that is so."""
        return bool(answer.strip()) and re.search(self.pattern, answer, re.IGNORECASE) is None


class Lines(msgspec.Struct, frozen=True, tag_field="kind", tag="lines", forbid_unknown_fields=True):
    """It has so many lines, empty ones aside, and each of them fits the regular expression."""

    what: str
    pattern: str
    count: int

    def passed(self, answer: str) -> bool:
        """Whether it does."""
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        return len(lines) == self.count and all(re.fullmatch(self.pattern, line) for line in lines)


class Words(msgspec.Struct, frozen=True, tag_field="kind", tag="words", forbid_unknown_fields=True):
    """It is neither shorter nor longer than so many words."""

    what: str
    least: int
    most: int

    def passed(self, answer: str) -> bool:
        """Whether that is so."""
        return self.least <= len(_WORD.findall(answer)) <= self.most


class Json(msgspec.Struct, frozen=True, tag_field="kind", tag="json", forbid_unknown_fields=True):
    """It is a JSON object, in a block of code or not, with these keys and none besides, and with these values."""

    what: str
    keys: list[str] | None = None
    equals: dict[str, Any] = {}

    def passed(self, answer: str) -> bool:
        """Whether it is."""
        try:
            found = json.loads(_code(answer))
        except ValueError:
            return False
        if not isinstance(found, dict) or (self.keys is not None and set(found) != set(self.keys)):
            return False
        return all(key in found and found[key] == value for key, value in self.equals.items())


class Python(msgspec.Struct, frozen=True, tag_field="kind", tag="python", forbid_unknown_fields=True):
    """Its code is Python, and has a function with these arguments that returns something and uses none of some names.

    The code is read and never run.
    """

    what: str
    function: str
    arguments: list[str]
    without: list[str] = []

    def passed(self, answer: str) -> bool:
        """Whether that is so."""
        try:
            tree = ast.parse(_code(answer))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        functions = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == self.function
        ]
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        return not names & set(self.without) and any(
            [argument.arg for argument in function.args.args] == self.arguments
            and any(isinstance(node, ast.Return) and node.value is not None for node in ast.walk(function))
            for function in functions
        )


Check: TypeAlias = Matches | Lacks | Lines | Words | Json | Python


class Verdict(msgspec.Struct, frozen=True):
    """What was looked for in an answer, and whether it is there."""

    what: str
    passed: bool


def verdicts(checks: list[Check], answer: str, finish_reason: str | None) -> list[Verdict]:
    """Those of the checks; and, where there are any, whether the answer came to its end and did not run in circles."""
    if not checks:
        return []
    found = [Verdict(check.what, check.passed(answer)) for check in checks]
    return [*found, Verdict("comes to its end", finish_reason == "stop"), Verdict("is not repetitive", _varied(answer))]


def _varied(answer: str) -> bool:
    words = [word.lower() for word in _WORD.findall(answer)]
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return bool(answer.strip()) and sum(runs.values()) - len(runs) <= REPEATS * sum(runs.values())


def _code(answer: str) -> str:
    block = _FENCED.search(answer)
    return (block[1] if block is not None else answer).strip()
