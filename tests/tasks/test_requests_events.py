"""The encodings of requests and events: what goes in comes out, and what cannot be understood is refused."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npu import engine
from tasks import events, requests
from tasks.events import (
    EVENTS_VERSION,
    Choice,
    ChoiceEnded,
    Embedded,
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Numbered,
    Queued,
    ReasoningDelta,
    Scored,
    Started,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
    WholeCall,
    decode_events,
    encode_events,
    fold,
    joined,
    number,
)
from tasks.requests import (
    REQUEST_VERSION,
    ChatRequest,
    CompletionRequest,
    EmbedRequest,
    Grammar,
    JsonSchema,
    Message,
    Request,
    RerankRequest,
    SamplingOptions,
    Tool,
    ToolCall,
    ToolChoice,
    ability_of,
    decode_request,
    encode_request,
    kind_of,
)

EVENTS: tuple[Event, ...] = (
    Queued(),
    Started("m@board", "board"),
    TextDelta("Grüße 😀\x00\n"),
    TextDelta("second", 1),
    ReasoningDelta("hm", 2),
    ChoiceEnded(0, FinishReason.LENGTH),
    ChoiceEnded(1, FinishReason.STOP, "STOP"),
    Finished(FinishReason.STOP, Usage(1, 2, 3), Timings(0.5, 1.5, 2.5, 3.5)),
    Failed(FailureCode.UNSUPPORTED, "why", "top_k"),
    Embedded(2, b"\x00\x00\x80?"),
    Scored(1, 0.25),
    TextDelta("so", 0, (TokenLogprob(b"s", -0.5, ((b"s", -0.5), (b"\xc3", -1.5))), TokenLogprob(b"o", -0.0))),
    ToolCallStarted(0, "call_1", "lookup", 1),
    ToolCallDelta(0, '{"a":"ä', 1),
)
REQUESTS: tuple[Request, ...] = (
    ChatRequest(messages=(Message("user", "hi"),)),
    ChatRequest(
        messages=(
            Message("system", "ä"),
            Message("user", "😀", name="Ann"),
            Message("assistant", ""),
            Message("tool", "x"),
        ),
        sampling=SamplingOptions(temperature=0.0, top_k=0, seed=0, logit_bias={5: -100.0}, ignore_eos=False),
        max_tokens=5,
        stop=("a", "\n"),
        n=3,
        template_options={"enable_thinking": False, "nested": {"list": [1, None]}},
    ),
    ChatRequest(
        messages=(
            Message("assistant", "", reasoning="hm", tool_calls=(ToolCall("c1", "lookup", "{}"),)),
            Message("tool", "42", name="lookup", tool_call_id="c1"),
        ),
        tools=(Tool("lookup", "Looks up.", {"type": "object"}, strict=True), Tool("other")),
        tool_choice=ToolChoice("required", ("lookup",)),
        parallel_tool_calls=False,
        output=JsonSchema({"type": "object", "properties": {}}),
        thinking_budget=0,
        logprobs=0,
        overflow="truncate",
        context_limit=64,
    ),
    CompletionRequest(prompts=("text", (1, 2, 3), ""), echo=True, n=2, output=Grammar('root ::= "a"', "gbnf")),
    EmbedRequest(inputs=("text", (1, 2, 3)), dimensions=5),
    RerankRequest(query="which", documents=("this", "ä")),
)


def wire(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def test_every_kind_of_event_survives_the_way() -> None:
    """All in one append, in order, with every field."""
    assert {type(event) for event in EVENTS} == set(events.Event.__args__)  # type: ignore[attr-defined]
    assert decode_events(encode_events(EVENTS)) == EVENTS


@settings(max_examples=200, deadline=None)
@given(st.lists(st.builds(TextDelta, st.text(), st.integers(0, 127)) | st.sampled_from(EVENTS), max_size=8))
def test_any_sequence_of_events_survives_the_way(sequence: list[Event]) -> None:
    """Whatever the text."""
    assert decode_events(encode_events(sequence)) == tuple(sequence)


@pytest.mark.parametrize("request_", REQUESTS, ids=["small", "full", "tools", "completion", "embedding", "rerank"])
def test_requests_survive_the_way(request_: Request) -> None:
    """Unset stays unset, and what equals no default stays what it is."""
    assert decode_request(encode_request(request_)) == request_


def test_unset_is_not_written() -> None:
    """A default that changes applies to what was unset, and small requests stay small."""
    assert msgspec.json.decode(encode_request(REQUESTS[0])) == {
        "type": "chat",
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_unknown_fields_are_ignored() -> None:
    """A neighbour of a later minor version may say more than this one knows."""
    assert decode_events(wire([EVENTS_VERSION, [["text", "hi", 0, [], "more"], ["queued", 1, 2]], "more"])) == (
        TextDelta("hi"),
        Queued(),
    )
    assert decode_events(
        wire([EVENTS_VERSION, [["finished", "stop", [1, 2, 0, 0, 0, 0, "more"], [0, 0, 0, 0, 1, 0, 0, 0, 9]]]])
    ) == (Finished(FinishReason.STOP, Usage(1, 2), Timings()),)
    data = b'{"type":"chat","messages":[{"role":"user","content":"hi","mood":1}],"sampling":{"new":2},"new":3}'
    assert decode_request(data) == REQUESTS[0]


def test_fields_that_an_older_writer_did_not_know_have_their_defaults() -> None:
    """Trailing fields may be missing."""
    assert decode_events(
        wire([EVENTS_VERSION, [["text", "hi"], ["ended", 0, "stop"], ["failed", "internal", "x"]]])
    ) == (
        TextDelta("hi", 0),
        ChoiceEnded(0, FinishReason.STOP),
        Failed(FailureCode.INTERNAL, "x"),
    )


@pytest.mark.parametrize(
    "data",
    [
        wire([EVENTS_VERSION, [["teleported", 1]]]),
        wire([EVENTS_VERSION + 1, [["text", "hi"]]]),
        wire([EVENTS_VERSION, [["failed", "a_code_of_tomorrow", "x"]]]),
        wire([EVENTS_VERSION, [["text"]]]),
        wire([EVENTS_VERSION, [["text", 5]]]),
        wire({"version": 1}),
        encode_events(EVENTS)[:-3],
        b"",
        b"\xc1",
    ],
    ids=[
        "unknown kind",
        "newer version",
        "unknown code",
        "missing",
        "wrong type",
        "wrong shape",
        "cut off",
        "empty",
        "junk",
    ],
)
def test_events_that_cannot_be_understood_are_unreadable(data: bytes) -> None:
    """Never half understood, never another error."""
    with pytest.raises(events.Unreadable):
        decode_events(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"telepathy","messages":[]}',
        b'{"type":"chat","messages":[],"version":%d}' % (REQUEST_VERSION + 1),
        b'{"type":"chat"}',
        b'{"type":"chat","messages":[{"role":"wizard","content":"x"}]}',
        b'{"type":"completion","prompts":[5]}',
        b'{"type":"chat","messages":[',
        b"",
        b"\xff",
    ],
    ids=["unknown kind", "newer version", "missing", "unknown role", "wrong type", "cut off", "empty", "junk"],
)
def test_requests_that_cannot_be_understood_are_unreadable(data: bytes) -> None:
    """Never half understood, never another error."""
    with pytest.raises(requests.Unreadable):
        decode_request(data)


def test_a_newer_version_says_what_to_do() -> None:
    """Whoever mixes versions in a rack reads both figures."""
    with pytest.raises(events.Unreadable, match=f"{EVENTS_VERSION + 1}.*{EVENTS_VERSION}.*Upgrade"):
        decode_events(wire([EVENTS_VERSION + 1, []]))
    with pytest.raises(requests.Unreadable, match=f"{REQUEST_VERSION + 1}.*{REQUEST_VERSION}.*Upgrade"):
        decode_request(b'{"type":"chat","messages":[],"version":%d}' % (REQUEST_VERSION + 1))


def test_numbering_ends_at_the_last() -> None:
    """Consecutive, and none for nothing."""
    assert number(7, (Queued(), TextDelta("a"), TextDelta("b"))) == [
        Numbered(5, Queued()),
        Numbered(6, TextDelta("a")),
        Numbered(7, TextDelta("b")),
    ]
    assert number(1, (Queued(),))[0].seq == 1
    assert number(3, ()) == []


def test_fold_puts_each_choice_together() -> None:
    """Texts and thoughts apart, choices in order whatever the order of their events, the end as it came."""
    reply = fold(
        (
            Queued(),
            Started("w", "b"),
            Started("w2", "b"),
            TextDelta("B", 1),
            TextDelta("a", 0),
            ReasoningDelta("thin", 1),
            TextDelta("b", 0),
            ReasoningDelta("king", 1),
            ChoiceEnded(1, FinishReason.LENGTH),
            ChoiceEnded(0, FinishReason.STOP, "S"),
            ChoiceEnded(2, FinishReason.STOP),
            EVENTS[7],
        )
    )
    assert reply.choices == {
        0: Choice("ab", "", FinishReason.STOP, "S"),
        1: Choice("B", "thinking", FinishReason.LENGTH),
        2: Choice("", "", FinishReason.STOP),
    }
    assert reply.end == EVENTS[7]


def test_fold_puts_calls_together() -> None:
    """Each with its own arguments, beside the text and the log probabilities of its answer."""
    first, second = TokenLogprob(b"a", -1.0), TokenLogprob(b"b", -2.0)
    reply = fold(
        (
            TextDelta("a", 0, (first,)),
            ToolCallStarted(0, "c0", "one"),
            ToolCallDelta(0, '{"x":'),
            ToolCallStarted(0, "d0", "other", 1),
            ToolCallDelta(0, "1}"),
            ToolCallStarted(1, "c1", "two"),
            ToolCallDelta(0, "{}", 1),
            TextDelta("b", 0, (second,)),
            ChoiceEnded(0, FinishReason.TOOL_CALLS),
        )
    )
    assert reply.choices == {
        0: Choice(
            "ab",
            reason=FinishReason.TOOL_CALLS,
            tool_calls=[WholeCall("c0", "one", '{"x":1}'), WholeCall("c1", "two")],
            logprobs=[first, second],
        ),
        1: Choice(tool_calls=[WholeCall("d0", "other", "{}")]),
    }


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=12))
def test_joined_events_say_the_same(sequence: list[Event]) -> None:
    """Whatever stands next to what."""
    together: list[Event] = []
    for event in sequence:
        both = joined(together[-1], event) if together else None
        if both is not None:
            together[-1] = both
        else:
            together.append(event)
    assert fold(together) == fold(sequence)
    assert all(joined(one, other) is None for one, other in itertools.pairwise(together))


def test_fold_of_what_still_goes_on() -> None:
    """No end, and a choice without a reason."""
    reply = fold((Queued(), TextDelta("so far")))
    assert (reply.choices, reply.end) == ({0: Choice("so far")}, None)
    assert fold((EVENTS[8],)).end == EVENTS[8]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_fold_does_not_depend_on_how_a_text_was_cut(text: str, places: list[int]) -> None:
    """Appends may share or split deltas as they like."""
    bounds = sorted({0, len(text), *(min(place, len(text)) for place in places)})
    deltas = [TextDelta(text[start:end]) for start, end in itertools.pairwise(bounds)]
    assert "".join(choice.text for choice in fold(deltas).choices.values()) == text


def test_a_request_has_a_kind_and_asks_for_an_ability() -> None:
    """Under the words that jobs and cards have for them; the engines' own are the same."""
    assert [kind_of(request) for request in REQUESTS] == ["chat", "chat", "chat", "completion", "embedding", "rerank"]
    assert [ability_of(request) for request in REQUESTS] == ["text", "text", "text", "text", "embedding", "rerank"]
    assert set(get_args(requests.Ability)) == set(engine.Ability)


def test_vectors_are_folded_by_input() -> None:
    """Whatever the order they came in."""
    assert fold([Queued(), Embedded(1, b"b"), Embedded(0, b"a")]).vectors == {0: b"a", 1: b"b"}
    assert fold([Queued()]).vectors == {}
    assert fold([Scored(1, 0.5), Scored(0, 0.0)]).scores == {0: 0.0, 1: 0.5}
