"""Texts llama.cpp would choke on, and that cutting them changes nothing."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from npu.engine import TextEngine
from npu.engines import Setup, open_engine, open_tokenizer
from npu.engines.llamacpp.server import Call, read_address
from npu.errors import ContextTooLong, EngineFailed, PromptRefused
from npu.model import Model
from tests.npu.demo import Opened, demo_model
from tests.npu.engines.hosts import host, kill_host, stop
from tests.npu.tiny_model import ADDED, CONTROL, NORMAL, SPM_BYTES, UNKNOWN, tiny_model

PIECES = "npu.engines.llamacpp.tokenizer"
SENTENCEPIECE = [
    ("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL),
    ("<tool>", ADDED), ("\n\n", ADDED), *SPM_BYTES,
    *((text, NORMAL) for text in ("▁", "a", "b", "ab", "▁a", "▁ab", "aa", "▁▁", "▁▁▁▁", "<")),
]  # fmt: skip


def sentencepiece(folder: Path) -> Model:
    special = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return tiny_model(
        folder, {"model": "llama", "add_bos_token": True, "add_space_prefix": True, **special}, SENTENCEPIECE
    )


def byte_level(folder: Path, kind: str) -> Model:
    """Its tokens are bytes. `kind` says how words are told apart."""
    shown = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144))]
    tokens = [("<s>", CONTROL), *((char, NORMAL) for char in shown)]
    return tiny_model(folder, {"model": "gpt2", "pre": kind, "bos_token_id": 0, "merges": ["a b"]}, tokens)


@pytest.fixture(scope="module", params=["sentencepiece", pytest.param("demo", marks=pytest.mark.model)])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    folder = tmp_path_factory.mktemp("model")
    model = demo_model("llamacpp") if request.param == "demo" else sentencepiece(folder)
    engine = open_engine(model, Setup(folder / "run", context_length=1024))
    yield Opened(engine, model, Setup(folder / "run", context_length=1024))
    engine.close()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[TextEngine]:
    engine = open_engine(sentencepiece(tmp_path), Setup(tmp_path, context_length=1024))
    yield engine
    engine.close()


def as_a_whole(opened: Opened, text: str, add_special: bool, parse_special: bool) -> object:
    address = read_address(opened.setup.runtime_dir / opened.model.id)
    assert address is not None
    body = {"content": text, "add_special": add_special, "parse_special": parse_special}
    return Call(address, "/tokenize", body, 60).result()["tokens"]


def test_cut_at_markers_a_text_has_the_tokens_of_the_whole(opened: Opened) -> None:
    chance = random.Random(1)
    parts = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool>", "<|endoftext|>", "\n", "\n\n", " ", "  ")
    parts += ("a", "b", "ab", "hello", " world", "é", "世", "😀", "<", "|>", "<|im_", "1", "'s", ".")
    for _ in range(400):
        text = "".join(chance.choices(parts, k=chance.randint(0, 12)))
        how = (chance.random() < 0.5, chance.random() < 0.7)
        got = opened.engine.tokenizer.encode(text, add_special=how[0], parse_special=how[1])
        assert got == as_a_whole(opened, text, *how), (text, how)


class TestTooLong:
    """The server would need hours for the first of these. They never reach it."""

    @pytest.mark.parametrize(
        "text",
        ["<|im_start|>" * 700_000, "<|im_start|>x" * 1024, "a" * 8_000_000, " " * 8_000_000, "<|im_start|>" * 1024],
        ids=["markers, 8 MB", "markers", "letters", "blanks", "as many markers as the context has tokens"],
    )
    def test_known_from_the_text_alone(self, opened: Opened, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbidden(*_: object) -> None:
            raise AssertionError("the server was asked")

        monkeypatch.setattr(f"{PIECES}.Call", forbidden)
        for tokenizer in (opened.engine.tokenizer, open_tokenizer(opened.model, opened.setup)):
            with pytest.raises(ContextTooLong, match=r"needs at least \d+ in the prompt") as refused:
                tokenizer.encode(text)
            assert refused.value.at_least
            assert refused.value.prompt_tokens >= refused.value.context_length == 1024

    def test_the_bound_is_none_for_what_fits(self, opened: Opened) -> None:
        assert len(opened.engine.tokenizer.encode("<|im_start|>" * 1023)) == 1023

    def test_a_marker_that_is_not_read_as_one_is_text(self, opened: Opened) -> None:
        assert len(opened.engine.tokenizer.encode("<|im_start|>" * 1023, parse_special=False)) > 1023

    def test_a_large_text_is_counted_as_far_as_is_needed(self, tmp_path: Path) -> None:
        """The vocabulary has tokens of many blanks, so nothing is known from the length alone."""
        model = tiny_model(
            tmp_path,
            {"model": "llama", "bos_token_id": 1, "eos_token_id": 2},
            [*SENTENCEPIECE, *(("▁" * 2**power, NORMAL) for power in range(3, 9))],
        )
        engine = open_engine(model, Setup(tmp_path, context_length=1024))
        for text, error, words in (
            ("é" * 30_000 + " é" * 5_000, ContextTooLong, r"at least \d+"),
            (" " * 60_000 + "a" + " " * 60_000, PromptRefused, "120001 bytes, and this model takes 65536 at most"),
        ):
            with pytest.raises(PromptRefused, match=words) as refused:
                engine.tokenizer.encode(text)
            assert type(refused.value) is error
        engine.close()


class TestRuns:
    @pytest.mark.parametrize("kind", ["gpt-4o", "deepseek-llm", "llama-bpe"])
    def test_words_up_to_the_bound_are_survived(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(f"{PIECES}.ServerTokenizer._check", lambda *_: None)
        engine = open_engine(byte_level(tmp_path, kind), Setup(tmp_path, context_length=32768))
        pid = host(engine)
        for text in ("a" * 65_536, " " * 65_536, "." * 65_536 + "\n" * 65_536, "1" * 65_536, "é" * 65_536):
            engine.tokenizer.encode(text)
        assert host(engine) == pid
        engine.close()

    @pytest.mark.parametrize("text", ["a" * 65_537, " " * 65_537, "x " + " \u00a0" * 40_000, "1\x1c" * 40_000])
    def test_longer_ones_are_refused(self, engine: TextEngine, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(f"{PIECES}.ServerTokenizer._check", lambda *_: None)
        with pytest.raises(PromptRefused, match="in a row"):
            engine.tokenizer.encode(text)


class TestStuckAndBroken:
    """What the bounds do not know of. `_check` and the bounds are out of the way."""

    @pytest.fixture(autouse=True)
    def unbounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(f"{PIECES}.ServerTokenizer._check", lambda *_: None)
        monkeypatch.setattr(f"{PIECES}.LONGEST_RUN", 1 << 30)
        monkeypatch.setattr(f"{PIECES}.SMALLEST_BOUND", 1 << 30)

    def test_a_text_that_takes_too_long_is_refused_and_the_server_replaced(
        self, engine: TextEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("npu.vocabulary.Vocabulary.cut", lambda self, text, _: [_Whole(text)])
        pid = host(engine)
        with monkeypatch.context() as hurried:
            hurried.setattr(f"{PIECES}.CALL_SECONDS", 0.5)
            with pytest.raises(PromptRefused, match=r"within 0\.5 seconds"):
                engine.tokenizer.encode("<s>" * 700_000)
        assert host(engine) != pid
        assert engine.tokenizer.encode("ab")

    def test_a_server_stuck_with_something_else_is_replaced_and_asked_again(
        self, engine: TextEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pid = host(engine)
        stop(pid)
        monkeypatch.setattr(f"{PIECES}.PROBE_SECONDS", 0.2)
        monkeypatch.setattr(f"{PIECES}.CALL_SECONDS", 5.0)
        assert engine.tokenizer.encode("ab")
        assert host(engine) != pid

    def test_another_process_blames_no_text_on_a_stuck_server_and_leaves_it_alone(
        self, engine: TextEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A board prepares waiting jobs with it: a refusal would end an innocent one."""
        pid = host(engine)
        stop(pid)
        with monkeypatch.context() as hurried:
            hurried.setattr(f"{PIECES}.CALL_SECONDS", 0.2)
            hurried.setattr(f"{PIECES}.PROBE_SECONDS", 0.2)
            with pytest.raises(EngineFailed, match="is stuck"):
                open_tokenizer(sentencepiece(tmp_path), Setup(tmp_path)).encode("ab")
        os.kill(pid, signal.SIGCONT)
        assert engine.tokenizer.encode("ab")
        assert host(engine) == pid

    def test_another_process_refuses_a_text_that_takes_too_long(
        self, engine: TextEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server answers others meanwhile, so it is not stuck; and it is left alone."""
        monkeypatch.setattr("npu.vocabulary.Vocabulary.cut", lambda self, text, _: [_Whole(text)])
        pid = host(engine)
        with monkeypatch.context() as hurried:
            hurried.setattr(f"{PIECES}.CALL_SECONDS", 0.5)
            with pytest.raises(PromptRefused, match=r"within 0\.5 seconds"):
                open_tokenizer(sentencepiece(tmp_path), Setup(tmp_path)).encode("<s>" * 700_000)
        assert host(engine) == pid
        assert engine.tokenizer.encode("ab")

    def test_a_server_that_dies_of_something_else_is_replaced_and_asked_again(
        self, engine: TextEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pid, asked = host(engine), list[Call]()
        result = Call.result

        def killing(call: Call) -> object:
            asked.append(call)
            if len(asked) == 1:
                kill_host(engine)
            return result(call)

        monkeypatch.setattr(Call, "result", killing)
        assert engine.tokenizer.encode("ab")
        assert host(engine) != pid

    def test_a_text_that_breaks_the_server_is_refused_and_the_next_works(self, tmp_path: Path) -> None:
        engine = open_engine(byte_level(tmp_path, "gpt-4o"), Setup(tmp_path, context_length=1024))
        with pytest.raises(PromptRefused, match="ended by SIGSEGV while it tokenized the prompt, twice"):
            engine.tokenizer.encode("a" * 1_000_000)
        assert engine.tokenizer.encode("ab")
        engine.close()


class _Whole:
    """A text that was not cut."""

    marker = ""

    def __init__(self, text: str) -> None:
        self.text = text
