"""What is particular to the echo."""

from __future__ import annotations

import threading
from pathlib import Path

from npu.engine import End, Prompt, Sampling
from npu.engines import Setup, chat_template, open_engine
from npu.engines.echo import ASSISTANT, BOS, END, USER, EchoEngine, EchoTokenizer
from npu.model import Model, Value


def echo(tmp_path: Path, **options: Value) -> tuple[Model, EchoEngine]:
    model = Model(id="echo", engine="echo", folder=tmp_path, engine_options=options)
    engine = open_engine(model, Setup(tmp_path))
    assert isinstance(engine, EchoEngine)
    return model, engine


def said(engine: EchoEngine, tokens: list[int], max_tokens: int = 100) -> tuple[bytes, End]:
    generation = engine.generate(Prompt(tokens, max_tokens), Sampling())
    return b"".join(piece.data for piece in generation), generation.end


def test_it_repeats_the_last_user_turn(tmp_path: Path) -> None:
    model, engine = echo(tmp_path)
    template = chat_template(model)
    assert template is not None
    messages: list[dict[str, str | None]] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "First"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "Grüße 😀"},
    ]
    assert said(engine, engine.tokenizer.encode(template.render(messages))) == ("Grüße 😀".encode(), End.EOS)


def test_it_continues_an_answer_that_was_begun(tmp_path: Path) -> None:
    _, engine = echo(tmp_path)
    tokens = engine.tokenizer.encode("<|user|>hello<|end|><|assistant|>he")
    assert said(engine, tokens) == (b"llo", End.EOS)


def test_without_markers_it_repeats_everything(tmp_path: Path) -> None:
    assert said(echo(tmp_path)[1], list(b"all of it")) == (b"all of it", End.EOS)


def test_one_byte_a_token(tmp_path: Path) -> None:
    _, engine = echo(tmp_path)
    pieces = list(engine.generate(Prompt(list("é".encode()), 5), Sampling()))
    assert [piece.data for piece in pieces] == [b"\xc3", b"\xa9"]


def test_the_answer_may_end_exactly_at_the_limit(tmp_path: Path) -> None:
    """The token that says "the end" costs one too, as with any model."""
    _, engine = echo(tmp_path)
    assert said(engine, list(b"abc"), 3) == (b"abc", End.LENGTH)
    assert said(engine, list(b"abc"), 4) == (b"abc", End.EOS)


def test_an_abort_wakes_it_at_once(tmp_path: Path) -> None:
    """At one token an hour, only an abort can end this."""
    _, engine = echo(tmp_path, tokens_per_second=1 / 3600)
    generation = engine.generate(Prompt(list(b"abc"), 3), Sampling())
    runner = threading.Thread(target=lambda: list(generation))
    runner.start()
    generation.abort()
    runner.join(60)
    assert not runner.is_alive()
    assert generation.end is End.ABORTED


def test_jitter_is_the_same_every_time(tmp_path: Path) -> None:
    _, engine = echo(tmp_path, tokens_per_second=1e5, jitter=1.0)
    assert said(engine, list(b"abc")) == said(engine, list(b"abc"))


def test_an_aborted_prefill_is_not_remembered_as_read(tmp_path: Path) -> None:
    _, engine = echo(tmp_path, prefill_tokens_per_second=1000)
    reached = threading.Event()
    generation = engine.generate(Prompt(list(b"a" * 8000), 3), Sampling(), lambda _: reached.set())
    runner = threading.Thread(target=lambda: list(generation))
    runner.start()
    assert reached.wait(60)
    generation.abort()
    runner.join(60)
    assert engine.reuse(tuple(b"a" * 8000)) < 8000 - 1


def test_markers(tmp_path: Path) -> None:
    tokenizer = EchoTokenizer()
    assert tokenizer.encode("<|user|>a<|end|><|assistant|>", add_special=True) == [BOS, USER, 97, END, ASSISTANT]
    assert tokenizer.encode("<|user|>", parse_special=False) == list(b"<|user|>")
    assert tokenizer.decode([USER, 97, END]) == b"a"
