"""`tokenizer.json` read and written back, with tokenizers of each kind made here."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from npu.errors import ModelRefused, PromptRefused
from npu.tokenizer_file import MAX_TEXT_BYTES, MAX_TOKENIZER_BYTES, FileTokenizer, open_tokenizer_file
from tests.npu.engines import test_contract

ROOT = Path(__file__).parents[2]
TEXTS = test_contract.TestTokenizer.TEXTS
LESSON = ["The quick brown fox jumps over the lazy dog, again and again: 世界你好, naïve Ωμέγα.\n\n  So it goes."] * 4
MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TURNS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level() -> Tokenizer:
    """As Qwen's: bytes written as characters, no BOS, two added tokens that are text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LESSON, trainer)
    tokenizer.add_special_tokens(MARKERS)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("é è", normalized=False)])
    return tokenizer


def sentencepiece(*, prepend: bool) -> Tokenizer:
    """As Gemma's, or with `prepend` as Llama 2's: `▁` for a blank, bytes for what is not in the vocabulary, a BOS."""
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [*TURNS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    learner.train_from_iterator(LESSON, trainer)
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    model = models.BPE(learned["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    front: list[Any] = [normalizers.Prepend("▁")] if prepend else []
    tokenizer.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", "▁")])
    back: list[Any] = [decoders.Strip(" ", 1, 0)] if prepend else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *back])
    tokenizer.add_special_tokens(TURNS)
    tokenizer.add_tokens([AddedToken("▁▁▁", normalized=False), AddedToken("<table>", normalized=False)])
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", bos), ("<eos>", 1)]
    )
    return tokenizer


def metaspace() -> Tokenizer:
    """As newer Llama files: the blanks are seen to by the pre-tokenizer and the decoder."""
    tokenizer = sentencepiece(prepend=False)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "gemma": lambda: sentencepiece(prepend=False),
    "metaspace": metaspace,
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., FileTokenizer]:
    def written(tokenizer: Tokenizer, **files: object) -> FileTokenizer:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        for name, value in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
        opened = open_tokenizer_file(tmp_path)
        assert opened is not None
        return opened

    return written


Write = Callable[..., FileTokenizer]


class TestRoundTrip:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "text", [*TEXTS, "The quick brown fox.\n", " again", "\t\r\n ", "<0x41> <think> <table>"], ids=repr
    )
    def test_a_text_comes_back_byte_for_byte(self, write: Write, kind: str, text: str) -> None:
        tokenizer = write(KINDS[kind]())
        assert tokenizer.decode(tokenizer.encode(text)) == text.encode()
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text.encode()

    @pytest.mark.parametrize("kind", KINDS)
    def test_tokens_add_their_bytes_one_by_one(self, write: Write, kind: str) -> None:
        """As an answer is streamed, where a character may come in pieces."""
        tokenizer = write(KINDS[kind]())
        tokens = tokenizer.encode("世界 😀 again")
        pieces = [tokenizer.bytes_of(token) for token in tokens]
        assert b"".join(pieces) == "世界 😀 again".encode()
        assert any("\ufffd" in piece.decode(errors="replace") for piece in pieces)

    @pytest.mark.parametrize("kind", KINDS)
    def test_ids_are_those_of_the_package(self, write: Write, kind: str) -> None:
        theirs = KINDS[kind]()
        mine = write(theirs)
        for text in (*TEXTS, "The quick <|im_start|> brown<end_of_turn> fox <think>"):
            assert mine.encode(text) == theirs.encode(text, add_special_tokens=False).ids

    def test_every_byte_token_is_its_byte(self, write: Write) -> None:
        source = sentencepiece(prepend=False)
        tokenizer = write(source)
        for byte in range(256):
            assert tokenizer.bytes_of(source.token_to_id(f"<0x{byte:02X}>")) == bytes((byte,))

    def test_a_vocabulary_that_begins_with_a_blank_gives_it_back(self, write: Write) -> None:
        """So does each part after a marker. In the middle of an answer the same tokens have that blank, too."""
        tokenizer = write(sentencepiece(prepend=True))
        for text in TEXTS:
            assert tokenizer.decode(tokenizer.encode(text)) == (b" " + text.encode() if text else b"")
        assert tokenizer.decode(tokenizer.encode("a<end_of_turn>b")) == b" a b"

    def test_what_a_normalizer_changes_stays_changed(self, write: Write) -> None:
        composing = write(byte_level())
        assert composing.decode(composing.encode("e\u0301")) == "é".encode()
        blanking = write(sentencepiece(prepend=False))
        assert blanking.decode(blanking.encode("a▁b")) == b"a b"


class TestSpecialTokens:
    def test_markers_are_read_only_when_asked_to(self, write: Write) -> None:
        source = byte_level()
        tokenizer, start = write(source), source.token_to_id("<|im_start|>")
        assert tokenizer.encode("<|im_start|>user") == [start, *tokenizer.encode("user")]
        plain = tokenizer.encode("<|im_start|>user", parse_special=False)
        assert start not in plain
        assert tokenizer.decode(plain) == b"<|im_start|>user"
        assert start in tokenizer.encode("<|im_start|>user")

    def test_special_ones_add_nothing_and_others_their_text(self, write: Write) -> None:
        source = byte_level()
        tokenizer = write(source)
        assert tokenizer.decode(tokenizer.encode("<|im_start|>a<think>b<|im_end|>")) == b"a<think>b"
        for text in ("<think>", "é è"):  # The second is written in no byte alphabet.
            for parse in (True, False):
                assert tokenizer.encode(text, parse_special=parse) == [source.token_to_id(text)]
            assert tokenizer.bytes_of(source.token_to_id(text)) == text.encode()

    def test_an_added_token_of_blanks_is_blanks(self, write: Write) -> None:
        source = sentencepiece(prepend=False)
        assert write(source).bytes_of(source.token_to_id("▁▁▁")) == b"   "

    def test_bos_goes_where_the_post_processor_puts_it_and_nothing_goes_behind(self, write: Write) -> None:
        source = sentencepiece(prepend=False)
        tokenizer, bos = write(source), source.token_to_id("<bos>")
        assert tokenizer.bos == bos
        for text in ("", "again", "<bos>again"):
            for parse in (True, False):
                without = tokenizer.encode(text, parse_special=parse)
                assert tokenizer.encode(text, add_special=True, parse_special=parse) == [bos, *without]

    def test_what_goes_behind_a_text_is_known_apart(self, write: Write) -> None:
        """For texts that are embedded."""
        source = sentencepiece(prepend=False)
        assert list(write(source).ending) == [source.token_to_id("<eos>")]
        assert list(write(byte_level()).ending) == []

    def test_a_vocabulary_without_bos_gets_none(self, write: Write) -> None:
        tokenizer = write(byte_level(), tokenizer_config={"bos_token": None})
        assert tokenizer.bos is None
        assert tokenizer.encode("again", add_special=True) == tokenizer.encode("again")

    def test_a_bos_that_is_only_named_is_known_and_not_put(self, write: Write) -> None:
        source = byte_level()
        tokenizer = write(source, tokenizer_config={"bos_token": "<|im_start|>"})
        assert tokenizer.bos == source.token_to_id("<|im_start|>")
        assert tokenizer.encode("again", add_special=True) == tokenizer.encode("again")

    @pytest.mark.parametrize(
        ("config", "generation", "ends"),
        [
            ({}, {}, {"<|im_end|>", "<|endoftext|>"}),
            ({"eos_token": "a"}, {}, {"<|im_end|>", "<|endoftext|>", "a"}),
            ({"eos_token": {"content": "a", "special": True}}, {}, {"<|im_end|>", "<|endoftext|>", "a"}),
            ({"eos_token": None}, {"eos_token_id": 7}, {"<|im_end|>", "<|endoftext|>", 7}),
            (
                {"eos_token": "not there"},
                {"eos_token_id": [7, 8, 10**9, -1, True]},
                {"<|im_end|>", "<|endoftext|>", 7, 8},
            ),
        ],
        ids=["itself", "config", "config with flags", "generation config", "nonsense"],
    )
    def test_what_ends_an_answer(
        self, write: Write, config: dict[str, object], generation: dict[str, object], ends: set[int | str]
    ) -> None:
        source = byte_level()
        tokenizer = write(source, tokenizer_config=config, generation_config=generation)
        expected = {source.token_to_id(end) if isinstance(end, str) else end for end in ends}
        assert tokenizer.end_tokens == expected

    def test_a_token_that_only_looks_like_an_end_is_none(self, write: Write) -> None:
        source = sentencepiece(prepend=False)
        source.add_tokens(["<|im_end|>"])
        assert write(source).end_tokens == {source.token_to_id("<end_of_turn>")}


class TestVocabulary:
    def test_its_length_counts_added_tokens(self, write: Write) -> None:
        source = byte_level()
        tokenizer = write(source)
        assert len(tokenizer) == source.get_vocab_size() == max(source.get_vocab().values()) + 1

    def test_an_unknown_id_is_refused(self, write: Write) -> None:
        tokenizer = write(byte_level())
        for token in (-1, len(tokenizer), 10**9, 2**70):
            with pytest.raises(PromptRefused, match="vocabulary"):
                tokenizer.decode([token])


class TestRefusedTexts:
    def test_half_a_surrogate_pair(self, write: Write) -> None:
        tokenizer = write(byte_level())
        for text in ("\ud800", "a\udfffb"):
            with pytest.raises(PromptRefused, match="surrogate"):
                tokenizer.encode(text)

    def test_more_than_can_be_read_at_once(self, write: Write) -> None:
        tokenizer = write(byte_level())
        with pytest.raises(PromptRefused, match="Shorten it"):
            tokenizer.encode("é" * (MAX_TEXT_BYTES // 2 + 1))
        assert tokenizer.encode("<|im_start|>" * (MAX_TEXT_BYTES // 12))

    def test_what_the_vocabulary_cannot_write(self, write: Write) -> None:
        source = Tokenizer(models.Unigram([("a", -1.0), ("▁", -2.0)]))
        source.decoder = decoders.Metaspace()
        tokenizer = write(source)
        assert tokenizer.decode(tokenizer.encode("aa")) == b"aa"
        with pytest.raises(PromptRefused, match="cannot read this text"):
            tokenizer.encode("b")


class TestFile:
    def test_none_there_is_none(self, tmp_path: Path) -> None:
        assert open_tokenizer_file(tmp_path) is None

    def test_truncation_and_padding_of_the_file_are_not_followed(self, write: Write) -> None:
        source = byte_level()
        source.enable_truncation(4)
        source.enable_padding(length=16)
        tokenizer = write(source)
        assert tokenizer.decode(tokenizer.encode("The quick brown fox jumps.")) == b"The quick brown fox jumps."

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{}",
            b"[1]",
            b"\xff\xfe",
            b"not JSON",
            b'{"model": {"type": "Nope"}}',
            b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        ],
    )
    def test_a_damaged_one_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(ModelRefused, match=r"tokenizer\.json is no tokenizer"):
            open_tokenizer_file(tmp_path)

    def test_one_cut_short_is_refused(self, tmp_path: Path) -> None:
        whole = byte_level().to_str().encode()
        for size in (1, len(whole) // 2, len(whole) - 1):
            (tmp_path / "tokenizer.json").write_bytes(whole[:size])
            with pytest.raises(ModelRefused, match="Fetch the file again"):
                open_tokenizer_file(tmp_path)

    def test_one_that_crashes_the_package_is_refused(self, tmp_path: Path) -> None:
        """Found by changing files at random: the id a template names has to be there."""
        file = json.loads(sentencepiece(prepend=False).to_str())
        file["post_processor"]["special_tokens"] = {}
        (tmp_path / "tokenizer.json").write_text(json.dumps(file))
        with pytest.raises(ModelRefused, match="is no tokenizer"):
            open_tokenizer_file(tmp_path)

    def test_a_directory_and_a_giant_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.json"
        path.mkdir()
        with pytest.raises(ModelRefused, match="cannot be read"):
            open_tokenizer_file(tmp_path)
        path.rmdir()
        with path.open("wb") as file:
            file.truncate(MAX_TOKENIZER_BYTES + 1)
        with pytest.raises(ModelRefused, match="larger than 64 MB"):
            open_tokenizer_file(tmp_path)

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
    @pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000], ids=["cut", "list", "deep"])
    def test_a_damaged_file_beside_it_is_refused(self, tmp_path: Path, name: str, content: str) -> None:
        byte_level().save(str(tmp_path / "tokenizer.json"))
        (tmp_path / name).write_text(content)
        with pytest.raises(ModelRefused, match=name):
            open_tokenizer_file(tmp_path)

    @pytest.mark.parametrize("decoder", [None, decoders.WordPiece()], ids=["none", "WordPiece"])
    def test_a_kind_that_is_not_known_is_refused(self, tmp_path: Path, decoder: Any) -> None:
        source = byte_level()
        source.decoder = decoder
        source.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ModelRefused, match="joined by"):
            open_tokenizer_file(tmp_path)


class TestThreads:
    def test_threads_that_ask_differently_do_not_disturb_each_other(self) -> None:
        source = byte_level()
        tokenizer = FileTokenizer(_Interrupted(source), None, frozenset(), None, "")  # type: ignore[arg-type]
        text = "<|im_start|>user"
        expected = {parse: tokenizer.encode(text, parse_special=parse) for parse in (True, False)}
        wrong: list[object] = []

        def asking(parse: bool) -> None:
            for _ in range(50):
                ids = tokenizer.encode(text, parse_special=parse)
                if ids != expected[parse] or tokenizer.decode(ids) not in (b"user", text.encode()):
                    wrong.append(ids)

        threads = [threading.Thread(target=asking, args=(parse,)) for parse in (True, False) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_it_starts_no_threads_and_outlives_a_fork_in_silence(self, tmp_path: Path) -> None:
        """The package has a pool of threads for batches, and complains of it after a fork. Neither is used here."""
        byte_level().save(str(tmp_path / "tokenizer.json"))
        script = (
            "import os, sys; from pathlib import Path; from npu.tokenizer_file import open_tokenizer_file\n"
            "assert 'tokenizers' not in sys.modules and 'numpy' not in sys.modules\n"
            "tokenizer = open_tokenizer_file(Path(sys.argv[1]))\n"
            "tokens = tokenizer.encode('The quick brown fox. ' * 5000)\n"
            "assert len(os.listdir('/proc/self/task')) == 1, 'threads'\n"
            "child = os.fork()\n"
            "same = tokenizer.encode('The quick brown fox. ' * 5000) == tokens\n"
            "if not child: os._exit(0 if same else 1)\n"
            "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
        )
        assert (done.returncode, done.stderr) == (0, "")


class _Interrupted:
    """The package's tokenizer, where another thread gets a turn between a choice and its use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        object.__setattr__(self, "tokenizer", tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "tokenizer"), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(object.__getattribute__(self, "tokenizer"), name, value)
        time.sleep(0.0005)
