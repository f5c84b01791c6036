"""What an answer is held to, followed token by token."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from npu import grammar
from npu.constraint import Call, Calls, Constraint, Form, Gbnf, JsonObject, JsonSchema, Lark, Regex, Thought
from npu.engines.echo import EOS, EchoTokenizer, EchoWords
from npu.errors import PromptRefused, SamplingRefused
from npu.grammar import MAX_BYTES, check_constraint
from npu.matcher import Matcher, Matchers

PERSON = JsonSchema(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
        "required": ["name", "age"],
        "additionalProperties": False,
        "$defs": {"age": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 150}, {"type": "null"}]}},
    }
)
CALLS = (
    Call("<call>", '<call>{"name": "f", "arguments": ', PERSON, "}</call>"),
    Call("<call>", '<call>{"name": "g", "arguments": ', JsonObject(), "}</call>"),
)
CALL_F = '<call>{"name": "f", "arguments": {"name": "Ann", "age": 31}}</call>'
CALL_G = '<call>{"name": "g", "arguments": {}}</call>'
THOUGHT = Thought("<think>", "</think>")


@pytest.fixture(scope="module")
def matchers() -> Matchers:
    return Matchers(EchoWords(), EchoTokenizer())


def fits(matcher: Matcher, text: str) -> bool:
    """Whether it is a whole answer; each byte is a token, and what is allowed must agree with what is accepted."""
    for byte in text.encode():
        allowed = bool(matcher.allowed()[byte])
        assert matcher.accept(byte) is allowed
        if not allowed:
            return False
    assert bool(matcher.allowed()[EOS]) is matcher.accept(EOS) is matcher.may_end
    return matcher.may_end


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (JsonObject(), ['{}', '{"a": [1, {"b": null}]}', '{"a": 1, "b": 2}'], ["[]", "{", "x", '{"a" }']),
        (PERSON, ['{"name": "Ann", "age": 31}', '{"name": "", "age": null}'], ['{"name": "Ann"}', '{"name": "", "age": 151}']),
        (JsonSchema({"enum": ["a", 1, None]}), ['"a"', "1", "null"], ['"b"', "2"]),
        (JsonSchema({"const": {"k": "v"}}), ['{"k": "v"}'], ['{"k": "w"}']),
        (JsonSchema({"type": "array", "items": {"type": "boolean"}, "minItems": 1}), ["[true, false]"], ["[]", "[1]"]),
        (JsonSchema({"type": "string", "pattern": "^[a-c]+$"}), ['"abc"'], ['"abd"', '""']),
        (Regex(r"\d{3}/[a-z]+"), ["123/ab"], ["12/ab", "123/ab1"]),
        (Regex("^(yes|no)$"), ["yes", "no"], ["maybe", "ye"]),
        (Lark('start: "a"+ b\nb: /[xy]/'), ["aax"], ["x", "aaz"]),
        (Gbnf('root ::= "- " item ("," item)*\nitem ::= [a-z]+'), ["- a,bc"], ["- ", "a"]),
        (Calls(CALLS), ["hello", "", CALL_F, f"so: {CALL_G}\n{CALL_F}"], ['<call>{"name": "h"', f"{CALL_G} and so on"]),
        (Calls(CALLS, required=True), [CALL_F, f"\n{CALL_G}{CALL_F}"], ["hello", ""]),
        (Calls(CALLS, required=True, several=False), [CALL_F], [f"{CALL_F}{CALL_G}"]),
        (
            Calls(CALLS, otherwise=PERSON),
            ['{"name": "Ann", "age": 31}', CALL_F, f"{CALL_F}\n{CALL_G}"],
            ["hello", "", '{"name": "Ann"}', f'{{"name": "Ann", "age": 31}}{CALL_F}', f"so: {CALL_F}"],
        ),
        (Calls((Call("", "", PERSON),), otherwise=JsonSchema({"type": "object", "properties": {"name": {"type": "null"}},
         "additionalProperties": False})), ['{"name": "Ann", "age": 31}', '{"name": null}', "{}"], ['{"name": "Ann"}']),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)  # fmt: skip
def test_what_fits(matchers: Matchers, form: Form, good: list[str], bad: list[str]) -> None:
    """By itself, behind a thought that is held to nothing, and behind one that the prompt has opened."""
    opened = Thought("<think>", "</think>", opened=True)
    for thought, before in ((None, ""), (THOUGHT, ""), (THOUGHT, '<think>{"x": <</think>\n\n'), (opened, "so</think>")):
        for text in good:
            assert fits(matchers.match(Constraint(form, thought)), before + text), (before, text)
        for text in bad:
            assert not fits(matchers.match(Constraint(form, thought)), before + text), (before, text)


def test_a_thought_must_end(matchers: Matchers) -> None:
    """An answer that is nothing but a thought is none."""
    assert not fits(matchers.match(Constraint(PERSON, THOUGHT)), "<think>and so on")


def test_an_answer_goes_on_from_where_it_was(matchers: Matchers) -> None:
    """Whatever was said of it; what cannot have been said is refused."""
    text = '{"name": "Ann", "age": 31}'
    for cut in range(len(text)):
        matcher = matchers.match(Constraint(PERSON), text[:cut].encode())
        assert fits(matcher, text[cut:])
    assert matcher.is_complete
    with pytest.raises(PromptRefused, match="does not fit"):
        matchers.match(Constraint(PERSON), b'{"age"')


def test_json_comes_on_one_line(matchers: Matchers) -> None:
    """In one way of writing: blanks are tokens, of which a small model would write more and more."""
    for text in ('{\n"a": 1}', '{"a":  1}', '{"a":1}', '{"a" : 1}', '{"a": 1 }'):
        assert not fits(matchers.match(Constraint(JsonObject())), text)


def test_a_control_token_is_written_as_one() -> None:
    """It adds nothing to a text, so no text can stand for it."""

    class Words(EchoWords):
        def __len__(self) -> int:
            return 300

        def bytes_of(self, token: int) -> bytes:
            return super().bytes_of(token) if token < 299 else b""

    class Tokenizer(EchoTokenizer):
        def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
            before, found, after = text.partition("[CALL]")
            return [*before.encode(), *((299,) if found else ()), *after.encode()]

    calls = (Call("[CALL]", "[CALL]f", PERSON),)
    matcher = Matchers(Words(), Tokenizer()).match(Constraint(Calls(calls)))
    assert all(matcher.accept(token) for token in (*b"so: ", 299, *b'f{"name": "", "age": 1}'))
    assert matcher.may_end
    matcher = Matchers(Words(), Tokenizer()).match(Constraint(Calls(calls, required=True)))
    assert not matcher.accept(ord("["))
    assert matcher.accept(299)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (JsonSchema({"type": "object", "properties": {f"p{n}": {} for n in range(3000)}}), "may be left out"),
        (JsonSchema({"$ref": "#"}), "nothing at all"),
        (JsonSchema({"type": "string", "minLength": 10**9}), "too long"),
        (Calls((Call("<t>", "<t>", JsonSchema({"type": "string", "minLength": 10**9})),)), "too long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_answer_can_fit_is_refused_before_one_begins(form: Form, words: str) -> None:
    """Though it can be read: nothing fits it, or what does is too much to follow."""
    with pytest.raises(SamplingRefused, match=words):
        check_constraint(Constraint(form))


def test_a_clients_grammar_does_not_set_how_it_is_followed(matchers: Matchers) -> None:
    """Lines that would are left out."""
    form = Lark('%llguidance {"no_forcing": "perhaps"}\nstart: "a"')
    check_constraint(Constraint(form))
    for thought in (None, THOUGHT):
        assert fits(matchers.match(Constraint(form, thought)), "a")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (JsonSchema({"not": {"const": 1}}), '"not"'),
        (JsonSchema({"type": "array", "uniqueItems": True}), '"uniqueItems"'),
        (JsonSchema({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}), '"uniqueItems"'),
        (JsonSchema({"type": "string", "format": "postcode"}), "postcode"),
        (JsonSchema({"$ref": "#/$defs/nowhere"}), "nowhere"),
        (JsonSchema({"$ref": "https://example.org/schema.json"}), "example"),
        (JsonSchema({"type": "nonsense"}), "nonsense"),
        (JsonSchema(nested(100)), "recursion"),
        (JsonSchema({"enum": ["x" * 100 + str(number) for number in range(10_000)]}), str(MAX_BYTES)),
        (Regex("a(?=b)"), "look-ahead"),
        (Regex("("), "unclosed"),
        (Regex(""), "empty"),
        (Lark("start: missing"), "missing"),
        (Gbnf("root ::= missing"), "missing"),
        (Gbnf('root ::= "a'), "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_followed_is_refused(matchers: Matchers, form: Form, words: str) -> None:
    """In words that name what it is, before a model is asked and again by its engine."""
    for thought in (None, THOUGHT):
        with pytest.raises(SamplingRefused, match="format of the output") as refused:
            check_constraint(Constraint(form, thought))
        assert refused.value.field == "constraint"
        assert words in str(refused.value)
        with pytest.raises(SamplingRefused):
            matchers.match(Constraint(form, thought))


@pytest.mark.parametrize(
    "form",
    [
        Regex(r"(\w{1,300}\s){1,300}"),
        Regex("(a|aa|aaa)*b" * 50),
        Regex("(.*a.*b.*c.*d.*e){9}"),
        JsonSchema({"type": "array", "items": {"anyOf": [{"type": "string", "pattern": f"(x|y){{{n}}}"} for n in range(300)]}}),
        JsonSchema({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "integer"}]}}}),
        Gbnf("root ::= " + "(" * 2000 + '"a"' + ")" * 2000),
        Lark("start: start start | /a*/"),
    ],
    ids=lambda form: type(form).__name__,
)  # fmt: skip
def test_a_hostile_form_is_followed_or_refused(matchers: Matchers, form: Form) -> None:
    """Neither is the process harmed, nor is it kept: what llguidance spends on a token is bounded."""
    with suppress(SamplingRefused):
        check_constraint(Constraint(form))
        matcher = matchers.match(Constraint(form))
        for step in range(200):
            tokens = matcher.allowed()[:128].nonzero()[0]
            if not len(tokens):
                break
            matcher.accept(int(tokens[step * 7919 % len(tokens)]))
    assert fits(matchers.match(Constraint(Regex("ab"))), "ab")


CHAIN = "".join(f'r{rule}: "a" r{rule + 1}\n' for rule in range(9000)) + 'r9000: "b"'
REFERENCES = {f"d{at}": {"type": "array", "items": {"$ref": f"#/$defs/d{at + 1}"}} for at in range(3000)}


@pytest.mark.parametrize(
    "form",
    [Lark(f"start: r0\n{CHAIN}"), JsonSchema({"$ref": "#/$defs/d0", "$defs": {**REFERENCES, "d3000": {}}})],
    ids=["rules", "references"],
)
def test_what_would_be_the_end_of_a_process_is_refused(form: Form) -> None:
    """By trying it in another one first."""
    with pytest.raises(SamplingRefused, match="too deep"):
        check_constraint(Constraint(form))


def test_what_takes_too_long_to_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so much of a processor's time, and at last by the clock; not for good: a busy machine may have been the reason."""
    form = Gbnf("root ::= r0\n" + "".join(f'r{rule} ::= "a" r{rule + 1}\n' for rule in range(6000)) + 'r6000 ::= "b"')
    for limit, seconds, forms in (("SECONDS", 0.3, [form]), ("PATIENCE", 0.001, [form, Regex("soon read")])):
        monkeypatch.setattr(grammar, limit, seconds)
        for each in forms:
            with pytest.raises(SamplingRefused, match="takes longer"):
                check_constraint(Constraint(each))
    monkeypatch.undo()
    check_constraint(Constraint(Regex("soon read")))


def test_a_schema_is_read_as_json(matchers: Matchers) -> None:
    """Also where its strings hold what means something in grammars."""
    odd = 'a "/}%json{ \\ \n'
    matcher = matchers.match(Constraint(JsonSchema({"const": odd})))
    assert fits(matcher, json.dumps(odd))
