"""A constraint written as a grammar that llguidance reads: Lark with its additions, or several in a JSON object.

What it cannot express it refuses by name, and so do we: no keyword of a schema is read over.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from npu.constraint import (
    Calls,
    Constraint,
    Form,
    Gbnf,
    JsonObject,
    JsonSchema,
    Lark,
    OneOf,
    Regex,
    Repeated,
    Row,
    Thought,
    Until,
    Words,
)
from npu.errors import SamplingRefused

if TYPE_CHECKING:
    from llguidance import LLParserLimits

MAX_BYTES = 256 << 10
"""Of one schema or grammar. Reading so much takes some tenths of a second."""

SECONDS = 5.0
MEMORY_BYTES = 1 << 30
STACK_BYTES = 1 << 20
"""How much of a processor's time the trial of a grammar may take, how much address space, of which a process takes some 200 MB,
and how much of a stack: threads that follow one have eight times as much."""
PATIENCE = 60.0
"""Seconds by the clock: on a busy machine a process gets its time late, and that is not the grammar's fault."""

MAX_LEXER_STATES = 20_000
"""What a grammar may come to while it is followed: at 1 to 2 KB each, 40 MB."""

Written = Callable[[str], str]
"""How a grammar writes a text that is to stand in the answer word by word; markers of the model are tokens in it."""

_HEAD = '%llguidance {"no_forcing": true}\n'
"""Else what must follow is worked out by a tokenizer that reads text, which a matcher does not have."""
_OPTIONS = re.compile(r"^[ \t]*%llguidance\b.*$", re.MULTILINE)
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON comes on one line: blanks cost a slow board a token each, and small models go on with them for as long as they are let."""
_ANYTHING = r"/(.|\n)*/"
_PLAINLY = {
    "too many states": "it lets or makes a text be too long, or too varied, to be followed",
    "consider making your grammar left-recursive": "there are too many ways to go on at one place, as where thousands of "
    "properties may be left out",
    "NoExtensionBias": "nothing at all fits it",
}
"""What llguidance says while it follows a grammar, for people who do not know how it does that."""
_SPACE = r"/[ \t\r\n]{0,20}/"


def write_grammar(constraint: Constraint, written: Written = json.dumps) -> str:
    """The grammar. Raises `SamplingRefused` on a form that is too large or cannot be written."""
    grammars = [*_grammars(constraint, written)]
    size = sum(len(text) for _, text in grammars)
    if size > MAX_BYTES:
        raise refuse(f"it has {size} bytes, and at most {MAX_BYTES} are read")
    if len(grammars) == 1:
        return grammars[0][1]
    return json.dumps({"grammars": [{"name": name, "lark_grammar": text} for name, text in grammars]})


def write_choice(tokens: Sequence[int]) -> str:
    """A grammar of one token: one of these, in ascending order."""
    ends = [at for at in range(len(tokens)) if at + 1 == len(tokens) or tokens[at + 1] != tokens[at] + 1]
    starts = [0, *(end + 1 for end in ends[:-1])]
    ranges = (f"{tokens[start]}-{tokens[end]}" for start, end in zip(starts, ends, strict=True))
    return f"{_HEAD}start: <[{','.join(ranges)}]>"


def check_constraint(constraint: Constraint) -> None:
    """Whether it can be followed at all, by any model that gives its logits. Raises `SamplingRefused`.

    Nothing but a constraint that was checked is safe to follow: others may be the end of the process.
    """
    grammars = [write_grammar(constraint)]
    if isinstance(constraint.form, Calls):  # of which an answer may have any, or none
        grammars += (write_grammar(Constraint(call.form)) for call in constraint.form.calls)
    if message := _answer("grammars", tuple(grammars))["error"]:
        raise refuse(message)


@lru_cache(maxsize=256)
def _answer(what: str, text: str | tuple[str, ...]) -> dict[str, str]:
    """What the other process says of it. Most clients send the same few again and again."""
    script = Path(__file__).with_name("grammar_process.py")
    bounds = map(str, (MEMORY_BYTES, STACK_BYTES, MAX_LEXER_STATES, SECONDS))
    too_long = f"it takes longer than {SECONDS:.0f} seconds to read. Make it simpler"
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(script), *bounds],
            input=json.dumps({what: text}).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise refuse(too_long) from None
    if done.returncode == -signal.SIGPROF:
        raise refuse(too_long)
    if done.returncode or not done.stdout:
        raise refuse("it is nested too deep, or takes too much memory to read. Make it simpler")
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def refuse(message: str) -> SamplingRefused:
    """What llguidance says of a grammar, as a refusal."""
    # Behind the first line it shows the grammar, which may be long and is the client's own.
    said = re.sub(r"^at \d+\(\d+\): |^failed to compile JSON schema: ", "", message.split("\n   1 | ")[0])
    said = re.sub(r"^failed to compile JSON schema: ", "", said)
    said = " ".join(said.removesuffix("<non-verbose/>").split())
    said = next((plain for sign, plain in _PLAINLY.items() if sign in said), said)
    return SamplingRefused("constraint", said[:500].rstrip("."))


@cache
def limits() -> LLParserLimits:
    """What compiling and following a grammar may take; the rest of llguidance's own bounds is some hundredths of a second."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def _grammars(constraint: Constraint, written: Written) -> Iterator[tuple[str, str]]:
    """The grammars by name; the first is the whole."""
    form, thought = constraint.form, constraint.thought
    if thought is None and isinstance(form, Lark | Gbnf):
        yield "whole", _HEAD + _own(form)
        return
    parts = _Parts(written)
    answer = _calls(form, parts) if isinstance(form, Calls) else f"answer: {parts.term(form)}\n"
    yield "whole", _HEAD + _start(thought, written) + answer + "".join(parts.rules.values())
    yield from parts.nested.items()


def _start(thought: Thought | None, written: Written) -> str:
    if thought is None:
        return "start: answer\n"
    closing = written(thought.closing)
    # The blanks between a thought and its answer are no part of either.
    if thought.opened:
        return f"start: thought {_SPACE} answer\n{_until('thought', closing)}"
    opening = written(thought.opening)
    return f"start: answer | {opening} thought {_SPACE} answer\n{_until('thought', closing)}"


def _until(rule: str, end: str) -> str:
    """A rule for anything up to and with `end`, where that comes first."""
    if end.startswith("<["):  # a token of its own, which no text can hold
        return f"{rule}: {_ANYTHING} {end}\n"
    return f"{rule}[suffix={end}]: {_ANYTHING}\n"


def _calls(form: Calls, parts: _Parts) -> str:
    by_trigger: dict[str, list[str]] = {}
    for call in form.calls:
        begin = call.begin.removeprefix(call.trigger)
        words = (parts.words(begin), parts.term(call.form), parts.words(call.end))
        by_trigger.setdefault(call.trigger, []).append(" ".join(filter(None, words)))
    bodies = [f"({' | '.join(bodies)})" for bodies in by_trigger.values()]
    triggers = [parts.written(trigger) for trigger in by_trigger]
    whole = " | ".join(f"{trigger} {body}" for trigger, body in zip(triggers, bodies, strict=True))
    more = f" ({_SPACE} call)* {_SPACE}" if form.several else f" {_SPACE}"
    if form.closing:
        more += f" ({parts.written(form.closing)})?"
    if form.required:
        return f"answer: {_SPACE} call{more}\ncall: {whole}\n"
    if form.otherwise is not None:
        return f"answer: {parts.term(form.otherwise)} | {_SPACE} call{more}\ncall: {whole}\n"
    leads = [f"lead_{place} {body}" for place, body in enumerate(bodies)]
    texts = "".join(_until(f"lead_{place}", trigger) for place, trigger in enumerate(triggers))
    return f"answer: text | ({' | '.join(leads)}){more}\ntext: {_ANYTHING}\n{texts}call: {whole}\n"


class _Parts:
    """Forms as parts of one grammar, with the rules and the other grammars that they name."""

    def __init__(self, written: Written) -> None:
        self.written = written
        self.rules: dict[str, str] = {}
        self.nested: dict[str, str] = {}
        self._rows: dict[int, str] = {}

    def words(self, text: str) -> str:
        return self.written(text) if text else ""

    def term(self, form: Form) -> str:
        """How the grammar names it. Raises `SamplingRefused`."""
        match form:
            case JsonObject():
                return _json({"type": "object"})
            case JsonSchema(schema):
                return _json(schema)
            case Regex(pattern):
                return f"/{_pattern(pattern)}/"
            case Lark() | Gbnf():
                name = f"form_{len(self.nested)}"
                self.nested[name] = _own(form)
                return f"@{name}"
            case Words(text):
                return self.written(text)
            case Until(end):
                return self._rule(f"until_{len(self.rules)}", lambda name: _until(name, self.written(end)))
            case Row(forms):
                if id(form) not in self._rows:  # the same row may stand in many places
                    row = " ".join(filter(None, map(self.term, forms)))
                    self._rows[id(form)] = (
                        self._rule(f"row_{len(self.rules)}", lambda name: f"{name}: {row}\n") if row else ""
                    )
                return self._rows[id(form)]
            case OneOf(forms):
                return f"({' | '.join(map(self.term, forms))})"
            case Repeated(inner, least, most):
                return f"({self.term(inner)}){{{least},{'' if most is None else most}}}"
            case Calls():
                raise refuse("calls cannot stand inside of something else")
            case _:
                assert_never(form)

    def _rule(self, name: str, write: Callable[[str], str]) -> str:
        self.rules[name] = write(name)
        return name


def _json(schema: Mapping[str, Any]) -> str:
    # A schema could choose how it is read by an entry of this name, leniently among others: ours takes its place.
    try:
        return f"%json {json.dumps({**schema, 'x-guidance': _JSON})}"
    except (RecursionError, ValueError) as error:
        raise refuse(f"the schema is nested too deep ({type(error).__name__})") from error


def _pattern(pattern: str) -> str:
    from llguidance import regex_to_lark

    if not pattern:
        raise refuse("the regular expression is empty")
    try:
        return str(regex_to_lark(pattern, "d"))
    except ValueError as error:
        raise refuse(f"the regular expression cannot be read: {error}") from error


def _own(form: Lark | Gbnf) -> str:
    if isinstance(form, Lark):
        return _OPTIONS.sub("", form.text)
    if len(form.text) > MAX_BYTES:
        raise refuse(f"it has {len(form.text)} characters, and at most {MAX_BYTES} are read")
    answer = _answer("gbnf", form.text)
    if message := answer.get("error"):
        raise refuse(message)
    return _OPTIONS.sub("", answer["lark"])
