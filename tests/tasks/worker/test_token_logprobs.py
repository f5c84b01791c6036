"""Log probabilities beside the visible text."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu.answer_format import ThinkingFormat, ToolFormat
from npu.engine import Prompt, Sampling
from npu.engines.echo import EchoEngine
from npu.model import Model
from tasks.events import TextDelta, fold
from tasks.prompting.prepare import Prepared
from tasks.prompting.reading import Reading
from tasks.requests import Tool
from tasks.worker.begun import Begun, BegunChoice
from tasks.worker.generate import Totals, run
from tests.fakes.transcript import Transcript

ENGINE = EchoEngine(Model(id="echo", engine="echo", folder=Path("echo")))
READING = Reading(ThinkingFormat.THINK, calls=ToolFormat.HERMES, tools=(Tool("time"),))
CALL = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'


def request(
    text: str, logprobs: int | None = 1, stop: tuple[str, ...] = (), reading: Reading | None = None
) -> Prepared:
    tokens = ENGINE.tokenizer.encode(f"<|user|>{text}<|end|><|assistant|>")
    return Prepared((Prompt(tokens, 500),), Sampling(logprobs=logprobs), stop, 1, reading=reading)


def answer(
    text: str, *, logprobs: int | None = 1, stop: tuple[str, ...] = (), reading: Reading | None = None
) -> Transcript:
    transcript = Transcript()
    run(request(text, logprobs, stop, reading), ENGINE, transcript, Totals(), job="job")
    return transcript


@pytest.mark.parametrize(
    ("text", "stop", "reading", "visible"),
    [
        ("Grüße 😀 世界", (), None, "Grüße 😀 世界"),
        ("one two STOP three", ("STOP",), None, "one two "),
        ("one two STOP three", ("STOPPED", "three!"), None, "one two STOP three"),
        ("<think>so so</think>\n\nso é", (), READING, "so é"),
        (f"so {CALL}", (), READING, "so"),
        (f"<think>{CALL}</think>a {CALL}", (), READING, "a"),
    ],
    ids=["plain", "stop", "held-back", "thought", "call", "both"],
)
def test_the_tokens_told_spell_the_visible_text(
    text: str, stop: tuple[str, ...], reading: Reading | None, visible: str
) -> None:
    """Each delta has those of its own text, whatever was held back before it; thoughts, calls and stop sequences have none."""
    transcript = answer(text, stop=stop, reading=reading)
    choice = fold(transcript).choices[0]
    assert choice.text.rstrip() == visible.rstrip()
    assert b"".join(each.token for each in choice.logprobs).decode().strip() == visible.strip()
    for event in transcript:
        if isinstance(event, TextDelta):
            assert b"".join(each.token for each in event.logprobs).decode() == event.text
    assert all(each.top == ((each.token, each.logprob),) for each in choice.logprobs)


def test_nobody_is_told_who_did_not_ask() -> None:
    """Neither the client nor the record."""
    transcript = answer("hello", logprobs=None)
    assert fold(transcript).choices[0].logprobs == []
    assert all(piece.logprob is None for piece in transcript.pieces)


def test_the_record_has_them() -> None:
    """So that an answer that is gone on with has all of them."""
    assert all(piece.logprob is not None for piece in answer("hello").pieces)


def test_what_was_not_told_is_told_by_the_next_claim() -> None:
    """Where the record has more of an answer than was sent: the rest, and each token once."""
    undisturbed = answer("Grüße 😀")
    told = fold(undisturbed).choices[0].logprobs
    for cut in range(1, len(undisturbed) - 1):
        sent = list(undisturbed[:cut])
        begun = Begun({0: BegunChoice(sent, undisturbed.pieces)})
        rest = Transcript()
        run(request("Grüße 😀"), ENGINE, rest, Totals(), begun, job="job")
        assert fold([*sent, *rest]).choices[0].logprobs == told
