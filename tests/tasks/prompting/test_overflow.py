"""What is left out of a conversation, or of a text, that does not fit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npu.chat_template import ChatTemplate
from npu.engine import Prompt
from npu.engines.echo import EchoTokenizer
from npu.errors import ContextTooLong
from npu.model import Model
from tasks.prompting import overflow
from tasks.prompting.prepare import Prepared, PreparedTexts, Preparer
from tasks.requests import ChatRequest, CompletionRequest, EmbedRequest, Message, ToolCall

CONTEXT = 200
TOKENIZER = EchoTokenizer()
PREPARER = Preparer(
    Model(id="m", engine="echo", folder=Path("/nowhere")),
    TOKENIZER,
    ChatTemplate("{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"),
    CONTEXT,
)


def chat(messages: list[Message], **rest: Any) -> ChatRequest:
    return ChatRequest(tuple(messages), overflow="truncate", **rest)


def prompt(request: ChatRequest | CompletionRequest) -> tuple[Prompt, int]:
    """What the model is to read, and how much was left out."""
    prepared = PREPARER.prepare(request)
    assert isinstance(prepared, Prepared)
    [only] = prepared.prompts
    return only, prepared.left_out


def text(request: ChatRequest | CompletionRequest) -> str:
    return TOKENIZER.decode(list(prompt(request)[0].tokens)).decode()


def talk(*sizes: tuple[int, int]) -> list[Message]:
    """A conversation whose turns have texts of these lengths, each with its number in it."""
    turns: list[Message] = []
    for number, (asked, said) in enumerate(sizes):
        turns += [Message("user", f"{number:03}" + "u" * asked), Message("assistant", f"{number:03}" + "a" * said)]
    return turns


def test_what_fits_stays_whole() -> None:
    """Nothing is left out without need."""
    messages = [Message("system", "s"), *talk((10, 10)), Message("user", "now")]
    only, left_out = prompt(chat(messages, max_tokens=5))
    assert (len(only.tokens), left_out) == (len(PREPARER.tokens_of(chat(messages))), 0)


def test_the_oldest_turns_go() -> None:
    """System messages stay wherever they stand, and so does the last turn; the count is of what went."""
    messages = [Message("system", "first"), *talk((30, 30), (30, 30), (30, 30)), Message("system", "then")]
    request = chat([*messages, Message("user", "now")], max_tokens=5)
    said = text(request)
    assert "[system]first" in said and "[system]then" in said and said.endswith("[user]now")
    assert "000" not in said
    only, left_out = prompt(request)
    assert left_out == len(PREPARER.tokens_of(request)) - len(only.tokens) > 0


def test_a_turn_goes_with_what_came_of_it() -> None:
    """No result of a tool stands without its call."""
    call = Message("assistant", "", tool_calls=(ToolCall("c", "f", "{}"),))
    turn = [Message("user", "u" * 60), call, Message("tool", "r" * 60, tool_call_id="c"), Message("assistant", "done")]
    said = text(chat([*turn, Message("user", "n" * 60), Message("assistant", "ok"), Message("user", "now")]))
    assert "[tool]" not in said and "done" not in said and said.endswith("[user]now")


def test_what_does_not_fit_even_alone_is_refused_with_the_figures() -> None:
    """The last turn is never cut."""
    with pytest.raises(ContextTooLong) as caught:
        prompt(chat([*talk((30, 30)), Message("user", "x" * 300)]))
    assert caught.value.prompt_tokens > 300 and caught.value.context_length == CONTEXT


def test_without_the_wish_nothing_is_left_out() -> None:
    """Whoever would rather be refused is."""
    with pytest.raises(ContextTooLong):
        PREPARER.prepare(ChatRequest(tuple(talk((100, 100), (1, 1)))))


def test_the_ceiling_is_the_requests() -> None:
    """Where it wants less than the model's context."""
    messages = [*talk((20, 20), (20, 20)), Message("user", "now")]
    assert prompt(chat(messages, max_tokens=5))[1] == 0
    only, left_out = prompt(chat(messages, max_tokens=5, context_limit=100))
    assert left_out > 0 and len(only.tokens) <= 95
    with pytest.raises(ContextTooLong):
        PREPARER.prepare(ChatRequest(tuple(messages), context_limit=20))


def test_an_answer_that_goes_on_keeps_its_prompt() -> None:
    """And is told of what was left out as before."""
    request = chat([*talk((80, 80)), Message("user", "now")])
    only, left_out = prompt(request)
    again = PREPARER.prepare(request, [only.tokens])
    assert isinstance(again, Prepared)
    assert (again.prompts[0].tokens, again.left_out) == (only.tokens, left_out)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=12), st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_whatever_fits_at_all_is_made_to_fit(sizes: list[tuple[int, int]], most: int) -> None:
    """System messages and the last turn are there, and the turns that stay are the newest, whole and in their order."""
    last = Message("user", "now")
    messages = [Message("system", "s"), *talk(*sizes), last]
    only, left_out = prompt(chat(messages, max_tokens=most))
    room = overflow.room_for_prompt(CONTEXT, most)
    whole = len(PREPARER.tokens_of(chat(messages)))
    assert len(only.tokens) <= room
    assert left_out == whole - len(only.tokens)
    assert (left_out == 0) == (whole <= room)
    first = next(
        index
        for index in range(len(sizes) + 1)
        if text(chat(messages, max_tokens=most))
        == TOKENIZER.decode(PREPARER.tokens_of(chat([messages[0], *talk(*sizes)[2 * index :], last]))).decode()
    )
    assert first <= len(sizes)


@given(st.integers(0, 12), st.integers(0, 12))
@settings(deadline=None, max_examples=30)
def test_the_next_turns_begin_alike(asked: int, said: int) -> None:
    """What is cut off changes now and then, not with each turn."""
    starts: list[str] = []
    for turns in range(1, 41):
        whole = [Message("system", "s"), *talk(*[(asked, said)] * turns), Message("user", "now")]
        starts.append(text(chat(whole, max_tokens=20)).split("[user]")[1][:3])
    changes = sum(before != after for before, after in pairwise(starts))
    assert changes <= 20  # with a cut that is no larger than it must be, some 35


@given(st.integers(0, 1000), st.integers(1, 100))
@settings(deadline=None)
def test_a_text_loses_its_beginning(length: int, most: int) -> None:
    """Its end is there, and it fits."""
    whole = "".join(chr(97 + index % 26) for index in range(length))
    request = CompletionRequest((whole,), max_tokens=most, overflow="truncate")
    if not whole:
        return
    only, left_out = prompt(request)
    room = overflow.room_for_prompt(CONTEXT, most)
    assert len(only.tokens) <= room
    said = text(request).removeprefix("<|bos|>")
    assert said and whole.endswith(said)
    assert left_out == len(whole) - len(said)


def test_a_longer_text_is_cut_at_the_same_place() -> None:
    """Until the context is full once more."""
    starts = [
        text(CompletionRequest(("".join(f"{index:04}" for index in range(turns)),), overflow="truncate"))[:12]
        for turns in range(40, 140)
    ]
    assert len(set(starts)) < 8


def test_the_end_of_an_input_is_left_out() -> None:
    """Where its vector is wanted all the same."""
    model = Model(id="m", engine="echo", folder=Path("/nowhere"), abilities=frozenset({"embedding"}))  # type: ignore[arg-type]
    preparer = Preparer(model, TOKENIZER, None, 20)
    cut = preparer.prepare(EmbedRequest(("x" * 100, "y"), overflow="truncate"))
    assert isinstance(cut, PreparedTexts)
    assert len(cut.inputs[0]) == 20
    with pytest.raises(ContextTooLong):
        preparer.prepare(EmbedRequest(("x" * 100,)))


def test_texts_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation comes again with each turn."""
    asked: list[str] = []

    class Slow(EchoTokenizer):
        def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
            asked.append(text)
            return super().encode(text, add_special=add_special, parse_special=parse_special)

    monkeypatch.setattr(overflow, "REMEMBERED", 3)
    sizes = overflow.Sizes(Slow())
    assert [sizes(text) for text in ("ab", "c", "ab", "", "d", "ab")] == [2, 1, 2, 0, 1, 2]
    assert asked == ["ab", "c", "d", "ab"]
