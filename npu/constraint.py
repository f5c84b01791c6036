"""What an answer can be held to while it is made, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class JsonObject:
    """One JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that fits a schema."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Regex:
    """A text that fits a regular expression from its beginning to its end."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Lark:
    """A text that fits a grammar written for Lark, as llguidance reads it; it begins with the rule `start`."""

    text: str


@dataclass(frozen=True, slots=True)
class Gbnf:
    """A text that fits a grammar written for llama.cpp; it begins with the rule `root`."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """These words as they are; what is a control token of the model is that token."""

    text: str


@dataclass(frozen=True, slots=True)
class Until:
    """Any text up to and with `end`, where that comes first."""

    end: str


@dataclass(frozen=True, slots=True)
class Row:
    """One behind the other."""

    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of these, of which there is at least one."""

    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same `least` to `most` times; None is any number."""

    form: Form
    least: int = 0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A part of a text that begins and ends with given words, between which stands what fits `form`.

    `trigger` is what `begin` begins with: once it is written, one of the calls with this trigger has to follow.
    """

    trigger: str
    begin: str
    form: Form
    end: str = ""


@dataclass(frozen=True, slots=True)
class Calls:
    """Any text in which calls may stand, each whole and well-formed; blanks alone may stand between two of them.

    `required`: nothing but calls, and at least one. `several`: more than one may follow. Behind the last one the answer ends.
    `otherwise`: what the answer has to fit where it is no calls; it is then one of the two as a whole.
    `closing`: what the model may write behind the last call, before the end.
    """

    calls: tuple[Call, ...]
    required: bool = False
    several: bool = True
    otherwise: Form | None = None
    closing: str = ""


Form: TypeAlias = JsonObject | JsonSchema | Regex | Lark | Gbnf | Words | Until | Row | OneOf | Repeated | Calls


@dataclass(frozen=True, slots=True)
class Thought:
    """What a model thinks before it answers, held to nothing: between these markers.

    `opened`: the prompt has written the opening marker, so the answer begins inside the thought. Otherwise it may begin with
    one, or without.
    """

    opening: str
    closing: str
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer is held to; behind its thought, where it may have one."""

    form: Form
    thought: Thought | None = None
