"""An answer that was interrupted goes on as if it had not been."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npu.answer_format import ThinkingFormat, ToolFormat
from npu.constraint import Constraint, JsonSchema, Thought
from npu.engine import Prompt, Sampling, Turn
from npu.engines.echo import EchoEngine
from npu.model import Model
from tasks.events import ChoiceEnded, Event, FinishReason, Reply, TextDelta, ToolCallStarted, fold
from tasks.prompting.prepare import Prepared
from tasks.prompting.reading import Reading
from tasks.requests import Tool
from tasks.stream import RecordedPiece
from tasks.worker.begun import Begun, BegunChoice, CannotContinue
from tasks.worker.generate import Totals, run
from tests.fakes.engines import says
from tests.fakes.transcript import Transcript

TEXT = "One 😀 two, three and 世界 STOP four"
ENGINE = EchoEngine(Model(id="echo", engine="echo", folder=Path("echo")))


CALLING = Reading(ThinkingFormat.THINK, calls=ToolFormat.HERMES, tools=(Tool("time"), Tool("rain")))
CALLS = """\
<think>Two 世界.</think>First and
<tool_call>
{"name": "time", "arguments": {"zone": "世界", "a": [1, 2]}}
</tool_call><tool_call>{"name": oops}</tool_call>
<tool_call>{"arguments": {}, "name": "rain"}</tool_call>
and done"""
XML = '<function=time><parameter=zone>a\n"b"</parameter></function><function=rain></function> '
CLOSING = tuple((byte, bytes((byte,))) for byte in b"\n</think>")
HELD = Constraint(
    JsonSchema({"type": "object", "properties": {"a": {"type": "string"}}}), Thought("<think>", "</think>")
)
HELD_BEGUN = replace(HELD, thought=Thought("<think>", "</think>", opened=True))


def request(
    text: str = TEXT,
    *,
    stop: tuple[str, ...] = (),
    n: int = 1,
    max_tokens: int = 1000,
    echo: bool = False,
    reading: Reading | None = None,
    **sampling: Any,
) -> Prepared:
    tokens = ENGINE.tokenizer.encode(f"<|user|>{text}<|end|><|assistant|>")
    return Prepared(
        prompts=(Prompt(tokens, max_tokens),),
        sampling=Sampling(**sampling),
        stop=stop,
        n=n,
        echoes=(b"the prompt: ",) if echo else None,
        reading=reading,
    )


def records(writes: list[tuple[tuple[Event, ...], RecordedPiece | None]]) -> Iterator[tuple[list[Event], Begun]]:
    """Everything a record may hold when its claim dies: pieces are appended with the events after them, or are lost."""
    events: list[Event] = []
    begun, riding = Begun(), list[RecordedPiece]()
    yield [], Begun()
    for written, piece in writes:
        if piece is not None:
            riding.append(piece)
        if not written:
            continue
        events += written
        for each in riding:
            begun.choices.setdefault(each.choice, BegunChoice()).pieces.append(each)
        riding.clear()
        for event in written:
            choice = begun.choices.setdefault(event.choice, BegunChoice())  # type: ignore[union-attr]
            if isinstance(event, ChoiceEnded):
                choice.ended = event
            else:
                choice.sent.append(event)
        yield list(events), begun


def whole(prepared: Prepared) -> tuple[Transcript, Totals]:
    transcript, totals = Transcript(), Totals()
    run(prepared, ENGINE, transcript, totals, job="job")
    return transcript, totals


def called(events: list[Event]) -> dict[int, int]:
    """How many calls have begun in each choice."""
    return Counter(event.choice for event in events if isinstance(event, ToolCallStarted))


def check_every_interruption(prepared: Prepared) -> None:
    undisturbed, cost = whole(prepared)
    reply: Reply = fold(undisturbed)
    seen = 0
    for events, begun in records(undisturbed.writes):
        seen += 1
        rest, totals = Transcript(), Totals()
        rest.already = sum(choice.ended is not None for choice in begun.choices.values())
        rest.calls = called(events)
        rest.forced = True
        run(prepared, ENGINE, rest, totals, begun, job="job")
        assert fold([*events, *rest]) == reply
        assert totals.usage() == msgspec.structs.replace(cost.usage(), cached_tokens=totals.cached_tokens)
        kept = sum(len(choice.pieces) for choice in begun.choices.values())
        assert kept + len(rest.pieces) == len(undisturbed.pieces)
    assert seen > 3


@pytest.mark.parametrize(
    "prepared",
    [
        request(),
        request(stop=("STOP",)),
        request(stop=(" 世界 STOPPED", "four!")),
        request(n=3, stop=("two",)),
        request(max_tokens=21),
        request(max_tokens=70, ignore_eos=True),
        request(echo=True, n=2, max_tokens=9),
        request(CALLS, reading=CALLING, stop=("d",)),
        request(CALLS, reading=replace(CALLING, most_calls=1), n=2),
        request(XML, reading=replace(CALLING, calls=ToolFormat.XML)),
        request("<think>" + "Hm, " * 9, reading=replace(CALLING, budget=15, closing=CLOSING), n=2),
        request("Hm, well.\n</think>\n\nSo.", reading=replace(CALLING, thought_begun=True)),
        request(stop=(" 世界 STOPPED", "four!"), n=2, logprobs=1),
        request(CALLS, reading=CALLING, stop=("d",), logprobs=0),
        request("hello", constraint=HELD, n=2),
        request(
            '<think>Two 世界.</think>\n\n{"a": "é"}', reading=replace(CALLING, calls=None), constraint=HELD, logprobs=1
        ),
        request("<think>" + "Hm, " * 9, reading=replace(CALLING, budget=15, closing=CLOSING), constraint=HELD),
        request("Hm.\n</think>no JSON", reading=replace(CALLING, thought_begun=True), constraint=HELD_BEGUN),
    ],
    ids=[
        "plain",
        "stop",
        "held-back",
        "n",
        "length",
        "endless",
        "echo",
        "calls",
        "one-call",
        "xml",
        "budget",
        "thought",
        "logprobs",
        "logprobs-calls",
        "format",
        "format-thought",
        "format-budget",
        "format-begun",
    ],
)
def test_interrupted_anywhere_it_is_the_same_answer(prepared: Prepared) -> None:
    """Whatever the record held when the claim died: text, ends of choices and counts are those of the unbroken run."""
    check_every_interruption(prepared)


@pytest.mark.parametrize(
    ("text", "thought", "begun"),
    [
        ('<think>Well {</think>\n\n{"a": "é"}', "Well {", False),
        ('Well {</think>{"a": "é"}', "Well {", True),
        ('{"a": "é"}', "", False),
    ],
)
def test_a_format_holds_behind_the_thought(text: str, thought: str, begun: bool) -> None:
    """The thought is the model's own, and what is visible is the format alone."""
    reading = replace(CALLING, calls=None, thought_begun=begun)
    transcript, _ = whole(request(text, reading=reading, constraint=HELD_BEGUN if begun else HELD))
    choice = fold(transcript).choices[0]
    assert (choice.reasoning, choice.text) == (thought, '{"a": "é"}')


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.text(alphabet="ab😀 é", min_size=4, max_size=14),
    stop=st.lists(st.text(alphabet="ab😀", min_size=1, max_size=3), max_size=2),
    n=st.integers(1, 2),
    max_tokens=st.integers(1, 40),
)
def test_any_answer_interrupted_anywhere(text: str, stop: list[str], n: int, max_tokens: int) -> None:
    """Also where stop sequences overlap and characters are cut apart."""
    prepared = request(text, stop=tuple(stop), n=n, max_tokens=max_tokens)
    undisturbed, _ = whole(prepared)
    reply = fold(undisturbed)
    for events, begun in records(undisturbed.writes):
        rest = Transcript()
        rest.already = sum(choice.ended is not None for choice in begun.choices.values())
        run(prepared, ENGINE, rest, Totals(), begun)
        assert fold([*events, *rest]) == reply


PARTS = (
    "<think>",
    "</think>",
    "<tool_call>",
    '{"name": "time", "arguments": {"a": "b',
    '"}}',
    "</tool_call>",
    "ab",
    "😀",
    " \n",
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    parts=st.lists(st.sampled_from(PARTS), max_size=8),
    budget=st.sampled_from([None, 0, 3, 12]),
    most=st.sampled_from([None, 1]),
    begun_thought=st.booleans(),
)
def test_any_thoughts_and_calls_interrupted_anywhere(
    parts: list[str], budget: int | None, most: int | None, begun_thought: bool
) -> None:
    """Whatever is sent is not said again, and nothing is left out."""
    made = replace(CALLING, budget=budget, closing=CLOSING, most_calls=most, thought_begun=begun_thought)
    prepared = request("".join(parts), reading=made, max_tokens=200)
    undisturbed = Transcript()
    undisturbed.forced = True
    run(prepared, ENGINE, undisturbed, Totals(), job="job")
    reply = fold(undisturbed)
    for events, begun in records(undisturbed.writes):
        rest = Transcript()
        rest.already = sum(choice.ended is not None for choice in begun.choices.values())
        rest.calls, rest.forced = called(events), True
        run(prepared, ENGINE, rest, Totals(), begun, job="job")
        assert fold([*events, *rest]) == reply


def test_what_is_read_again_is_counted() -> None:
    """A second claim on another board reads the prompt and what was said; on the same one it finds most of it cached."""
    prepared = request()
    undisturbed, _ = whole(prepared)
    _, begun = next(islice(records(undisturbed.writes), 7, None))
    fresh = EchoEngine(Model(id="other", engine="echo", folder=Path("echo")))
    totals = Totals()
    run(prepared, fresh, Transcript(), totals, begun)
    assert totals.read_again == len(prepared.prompts[0].tokens) + len(begun.choice(0).pieces)
    again = Totals()
    run(prepared, fresh, Transcript(), again, begun)
    assert again.read_again == 1


class Leaving(Transcript):
    """Is told to end in the middle of its prefill."""

    left = False

    @property
    def cancelled(self) -> bool:
        return self.left

    def prefilled(self, tokens: int) -> None:
        super().prefilled(tokens)
        self.left = True
        self.begun[-1].abort()


def test_of_a_prefill_that_breaks_off_only_what_was_read_counts() -> None:
    """The rest was not read again."""
    prepared = request("x" * 1000)
    _, begun = next(islice(records(whole(prepared)[0].writes), 7, None))
    fresh = EchoEngine(Model(id="other", engine="echo", folder=Path("echo")))
    totals, sink = Totals(), Leaving()
    run(prepared, fresh, sink, totals, begun)
    assert sink.progress == [totals.read_again]
    assert 0 < totals.read_again < 1000


def test_a_record_that_contradicts_itself_is_not_continued() -> None:
    """Text that its pieces do not spell was made by other rules; to go on would make nonsense of it."""
    undisturbed, _ = whole(request())
    begun = Begun({0: BegunChoice([TextDelta("Two")], undisturbed.pieces[:3])})
    with pytest.raises(CannotContinue):
        run(request(), ENGINE, Transcript(), Totals(), begun)


def test_what_only_the_runtime_has_tokens_of_cannot_go_on() -> None:
    """A part that was sent stays; an answer of which nothing was said begins, and one that has ended stays ended."""
    prepared = Prepared((Prompt((), 9, turn=Turn("hi")),), Sampling(), (), n=2)
    begun = Begun({0: BegunChoice([TextDelta("One")], [RecordedPiece(0, 1, b"One")])})
    with pytest.raises(CannotContinue, match=r"tokenizer\.json"):
        run(prepared, says("One two"), Transcript(), Totals(), begun)
    begun.choices[0].ended = ChoiceEnded(0, FinishReason.STOP, None)
    transcript = Transcript()
    transcript.already = 1
    run(prepared, says("One two"), transcript, Totals(), begun)
    assert fold(transcript).choices[1].text == "One two"
