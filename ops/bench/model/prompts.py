"""The prompts of `bench model`: `ops/bench/prompts.json`, or another file of that form."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from npu.errors import NpuError
from ops.bench.model.checks import Check, Lacks, Lines, Matches

PROMPTS = Path(__file__).resolve().parents[1] / "prompts.json"
MOST_BYTES = 4_000_000
"""A file of prompts may have."""


class PromptsRefused(NpuError):
    """Raised for a file of prompts that cannot be used; the message is for the user."""

    usage = True
    """It was asked wrongly: exit code 2."""


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One prompt."""

    id: str
    prompt: str
    max_tokens: int
    checks: list[Check] = []


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text that is cut to a prompt of so many tokens, as long as that of the vendor's measurements."""

    text: str
    prompt_tokens: int
    max_tokens: int


class LongContext(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prompts of about so many tokens: lines made from a pattern, and in the middle of them what is asked for."""

    tokens: list[int]
    line: str
    things: list[str]
    needle: str
    question: str
    max_tokens: int
    checks: list[Check] = []

    def text(self, lines: int) -> str:
        """A prompt with so many lines."""
        made = [
            self.line.format(number=number, count=17 + number * 37 % 223, thing=self.things[number % len(self.things)])
            for number in range(1, lines + 1)
        ]
        return "\n".join([*made[: lines // 2], self.needle, *made[lines // 2 :], "", self.question])


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user says in a conversation, and what the answer must be like."""

    prompt: str
    checks: list[Check] = []


class Conversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Turns, each behind the answers to those before."""

    id: str
    turns: list[Turn]
    max_tokens: int


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them. A set that is empty or left out is not measured."""

    performance: list[Asked] = []
    reference: Reference | None = None
    quality: list[Asked] = []
    long_context: LongContext | None = None
    multi_turn: list[Conversation] = []


def read_prompts(path: Path = PROMPTS) -> Prompts:
    """Those in a file. Raises `PromptsRefused`."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise PromptsRefused(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MOST_BYTES:
        raise PromptsRefused(f"{path} has more than {MOST_BYTES // 10**6} MB.")
    try:
        found = msgspec.json.decode(data, type=Prompts)
        _look(found)
    except (msgspec.DecodeError, re.error, LookupError, ValueError, TypeError) as error:
        raise PromptsRefused(f"{path} is no file of prompts: {error}.") from error
    return found


def _look(found: Prompts) -> None:
    """Find now what would otherwise fail in the middle of a measurement."""
    checks = [check for asked in (*found.performance, *found.quality) for check in asked.checks]
    checks += [check for conversation in found.multi_turn for turn in conversation.turns for check in turn.checks]
    if found.long_context is not None:
        found.long_context.text(1)
        checks += found.long_context.checks
    for check in checks:
        if isinstance(check, Matches | Lacks | Lines):
            re.compile(check.pattern)
    names = [asked.id for asked in (*found.performance, *found.quality)] + [each.id for each in found.multi_turn]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"there are two prompts with the id {', '.join(sorted(twice))}")
