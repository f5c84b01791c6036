"""The formats of calls, each as its models write it."""

from __future__ import annotations

from collections.abc import Sequence

from npu.answer_format import ToolFormat
from tasks.prompting.tool_schema import KINDS, kinds_of
from tasks.requests import Tool
from tasks.worker.parsing.calls import CallReader, Format, MarkedFormat, NotACall, Steps, read_json, write_json

MOST_NAME = 512
"""Characters in which a name must have ended."""
DEEPEST = 64
"""Levels of lists and objects inside each other, in arguments that are not written as JSON."""


class Hermes(MarkedFormat):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""

    markers = ("<tool_call>",)

    def _call(self) -> Steps[None]:
        yield from self._expect("<tool_call>")
        yield from self._blanks()
        yield from self._json_call()
        yield from self._blanks()
        yield from self._expect("</tool_call>")


class Xml(MarkedFormat):
    """`<tool_call><function=…><parameter=…>…</parameter></function></tool_call>`; the outer marks may be missing.

    What a parameter is, is not written; the tool's schema says whether it is a text.
    """

    markers = ("<tool_call>", "<function=")

    def _call(self) -> Steps[None]:
        wrapped = yield from self._has("<tool_call>")
        while True:
            yield from self._blanks()
            yield from self._expect("<function=")
            name, _ = yield from self._upto(">", within=MOST_NAME)
            name = name.strip().strip("\"'")
            self._begin(name)
            yield from self._arguments(name)
            yield from self._end()
            yield from self._blanks()
            if not wrapped:
                return
            if (yield from self._has("</tool_call>")):
                return

    def _arguments(self, name: str) -> Steps[None]:
        tool = self.tools.get(name)
        before = "{"
        while True:
            yield from self._blanks()
            if (yield from self._has("</function>")):
                self._argue("{}" if before == "{" else "}")
                return
            yield from self._expect("<parameter=")
            key, _ = yield from self._upto(">", within=MOST_NAME)
            key = key.strip().strip("\"'")
            self._argue(f"{before}{_quoted(key)}: ")
            before = ", "
            yield from self._has("\n")
            kinds = kinds_of(tool, key)
            ends = ("\n</parameter>", "</parameter>")
            if kinds <= {"string"}:
                self._argue('"')
                yield from self._pass_upto(ends, lambda text: self._argue(_quoted(text)[1:-1]))
                self._argue('"')
            else:
                self._argue(_value((yield from self._value_upto(*ends)), kinds))


class Glm(MarkedFormat):
    """`<tool_call>name<arg_key>…</arg_key><arg_value>…</arg_value></tool_call>`; the tool's schema says what is a text."""

    markers = ("<tool_call>",)

    def _call(self) -> Steps[None]:
        yield from self._expect("<tool_call>")
        yield from self._blanks()
        name, end = yield from self._upto("<arg_key>", "</tool_call>", within=MOST_NAME)
        name = name.strip()
        self._begin(name)
        before = "{"
        while end == "<arg_key>":
            key, _ = yield from self._upto("</arg_key>", within=MOST_NAME)
            key = key.strip()
            yield from self._blanks()
            yield from self._expect("<arg_value>")
            self._argue(f"{before}{_quoted(key)}: ")
            before = ", "
            kinds = kinds_of(self.tools.get(name), key)
            if kinds <= {"string"}:
                self._argue('"')
                yield from self._pass_upto(("</arg_value>",), lambda text: self._argue(_quoted(text)[1:-1]))
                self._argue('"')
            else:
                self._argue(_value((yield from self._value_upto("</arg_value>")), kinds))
            yield from self._blanks()
            end = "<arg_key>" if (yield from self._has("<arg_key>")) else "</tool_call>"
            if end == "</tool_call>":
                yield from self._expect(end)
        self._argue("{}" if before == "{" else "}")
        yield from self._end()


class Mistral(MarkedFormat):
    """`[TOOL_CALLS]` and a list of objects, or a name and, behind `[ARGS]`, its arguments."""

    markers = ("[TOOL_CALLS]",)

    def _call(self) -> Steps[None]:
        yield from self._expect("[TOOL_CALLS]")
        yield from self._blanks()
        first = yield from self._peek()
        if first == "[":
            yield from self._expect("[")
            yield from _listed(self, known=False)
        elif first == "{":
            yield from self._json_call()
        else:
            name, end = yield from self._upto("[CALL_ID]", "[ARGS]", "{", within=MOST_NAME)
            if end == "[CALL_ID]":
                _, end = yield from self._upto("[ARGS]", "{", within=MOST_NAME)
            if end == "{":
                self._give_back("{")
            yield from self._blanks()
            if (yield from self._peek()) != "{":
                raise NotACall
            self._begin(name.strip())
            yield from self._json(self._argue)
            yield from self._end()


class Gemma(MarkedFormat):
    """`<start_function_call>call:name{key:<escape>…<escape>,other:1}<end_function_call>`.

    The model ends its turn behind its calls by beginning the tool's answer.
    """

    markers = ("<start_function_call>", "<start_function_response>")
    closing = "<end_function_call>"
    quote = "<escape>"

    def _call(self) -> Steps[None]:
        opening, response = self.markers
        if self._calls and (yield from self._has(response)):
            yield from self._close()
        yield from self._expect(opening)
        yield from self._blanks()
        yield from self._expect("call:")
        name, _ = yield from self._upto("{", within=MOST_NAME)
        self._begin(name.strip())
        yield from self._object(DEEPEST)
        yield from self._blanks()
        yield from self._expect(self.closing)
        yield from self._end()

    def _object(self, deep: int) -> Steps[None]:
        before = "{"
        while True:
            yield from self._blanks()
            if (yield from self._has("}")):
                self._argue("{}" if before == "{" else "}")
                return
            if before == ", ":
                yield from self._expect(",")
            key, _ = yield from self._upto(":", within=MOST_NAME)
            self._argue(f"{before}{_quoted(key.replace(self.quote, '').strip())}: ")
            before = ", "
            yield from self._item(deep)

    def _list(self, deep: int) -> Steps[None]:
        self._argue("[")
        yield from self._blanks()
        if not (yield from self._has("]")):
            while True:
                yield from self._item(deep)
                yield from self._blanks()
                if (yield from self._has("]")):
                    break
                yield from self._expect(",")
                self._argue(", ")
        self._argue("]")

    def _item(self, deep: int) -> Steps[None]:
        if not deep:
            raise NotACall
        yield from self._blanks()
        if (yield from self._has("{")):
            yield from self._object(deep - 1)
        elif (yield from self._has("[")):
            yield from self._list(deep - 1)
        elif (yield from self._has(self.quote)):
            self._argue('"')
            yield from self._pass_upto((self.quote,), lambda text: self._argue(_quoted(text)[1:-1]))
            self._argue('"')
        else:
            parts: list[str] = []
            yield from self._json(parts.append)
            self._argue(_value("".join(parts), frozenset()))


class Gemma4(Gemma):
    """The same between `<|tool_call>` and `<tool_call|>`."""

    markers = ("<|tool_call>", "<|tool_response>")
    closing = "<tool_call|>"
    quote = '<|"|>'


class DeepSeek(MarkedFormat):
    """Between marks: `function`, the name and fenced arguments (V3, R1), or the name and plain ones (V3.1)."""

    markers = ("<｜tool▁calls▁begin｜>",)

    def _call(self) -> Steps[None]:
        yield from self._expect("<｜tool▁calls▁begin｜>")
        while True:
            yield from self._blanks()
            yield from self._expect("<｜tool▁call▁begin｜>")
            name, _ = yield from self._upto("<｜tool▁sep｜>")
            yield from self._blanks()
            if (yield from self._peek()) != "{":
                name, _ = yield from self._upto("```json")
                yield from self._blanks()
            if (yield from self._peek()) != "{":
                raise NotACall
            self._begin(name.strip())
            yield from self._json(self._argue)
            yield from self._blanks()
            if (yield from self._has("```")):
                yield from self._blanks()
            yield from self._expect("<｜tool▁call▁end｜>")
            yield from self._end()
            yield from self._blanks()
            if (yield from self._has("<｜tool▁calls▁end｜>")):
                return


class Llama(Format):
    """`{"name": …, "parameters": {…}}` at the beginning, several with `;` between, or behind `<|python_tag|>`.

    An answer may begin with an object that is no call, so only the request's tools are ones.
    """

    def _run(self) -> Steps[None]:
        blank = yield from self._try(self._call())
        while True:  # what follows is text
            if blank:
                self._text = self._text.lstrip()
                blank = not self._text
            self._say(self._text)
            self._text = ""
            yield

    def _call(self) -> Steps[None]:
        yield from self._blanks()
        if (yield from self._has("<|python_tag|>")):
            yield from self._blanks()
        while True:
            yield from self._json_call(known=True)
            yield from self._blanks()
            if not (yield from self._has(";")):
                yield from self._has(",")
            yield from self._blanks()
            if (yield from self._peek()) != "{":
                return


class Json(Llama):
    """One object or a list of them, perhaps fenced, as the whole answer. Only the request's tools are calls."""

    def _call(self) -> Steps[None]:
        yield from self._blanks()
        for mark in ("<|tool_call|>", "```json", "```"):
            if (yield from self._has(mark)):
                break
        yield from self._blanks()
        if (yield from self._has("[")):
            yield from _listed(self, known=True)
        else:
            yield from self._json_call(known=True)
        self._read = ""  # what follows may be missing
        yield from self._blanks()
        yield from self._has("```")


def _listed(self: Format, *, known: bool) -> Steps[None]:
    """Calls behind the bracket that opens a list of them."""
    while True:
        yield from self._blanks()
        yield from self._json_call(known=known)
        yield from self._blanks()
        if (yield from self._has("]")):
            return
        yield from self._expect(",")


def _quoted(text: str) -> str:
    return write_json(text)


def _value(text: str, kinds: frozenset[str]) -> str:
    """A value that is written without quotes, as JSON: what its type allows, else a text."""
    plain = text.strip()
    try:
        value = read_json({"True": "true", "False": "false", "None": "null"}.get(plain, plain))
    except NotACall:
        return _quoted(text)
    if "string" in kinds and not kinds.intersection(KINDS[type(value)]):
        return _quoted(text)
    return write_json(value)


_READERS: dict[ToolFormat, type[Format]] = {
    ToolFormat.HERMES: Hermes,
    ToolFormat.XML: Xml,
    ToolFormat.GLM: Glm,
    ToolFormat.LLAMA: Llama,
    ToolFormat.MISTRAL: Mistral,
    ToolFormat.GEMMA: Gemma,
    ToolFormat.GEMMA4: Gemma4,
    ToolFormat.DEEPSEEK: DeepSeek,
    ToolFormat.JSON: Json,
}


def call_reader(form: ToolFormat, tools: Sequence[Tool], most: int | None = None, *, alone: bool = False) -> CallReader:
    """Reads answers in that format; `most` is how many calls there may be, `alone` whether no text stands beside them."""
    return _READERS[form](tools, most, alone=alone)
