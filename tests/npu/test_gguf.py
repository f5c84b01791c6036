"""GGUF metadata is read, and no file can make its reader misbehave."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from npu.errors import ModelRefused, PromptRefused
from npu.gguf import read_gguf
from npu.vocabulary import Vocabulary

TOKENS = ["<s>", "</s>", "Hi", "Ġthere", "ð", "Ł", "ĺ", "Ģ", "ðŁ", "ĺĢ", "<tool>"]
TYPES = [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 4]


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: str, value: object) -> bytes:
    if isinstance(value, str):
        return string(key) + struct.pack("<I", 8) + string(value)
    if isinstance(value, bool):
        return string(key) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return string(key) + struct.pack("<II", 4, value)
    assert isinstance(value, list)
    if isinstance(value[0], str):
        return string(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(string, value))
    return string(key) + struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


ENTRIES: dict[str, object] = {
    "general.architecture": "tiny",
    "general.file_type": 15,
    "general.size_label": "1B",
    "tiny.context_length": 4096,
    "tiny.block_count": 2,
    "tiny.embedding_length": 64,
    "tiny.attention.head_count": 8,
    "tiny.attention.head_count_kv": [2, 4],
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.chat_template": "{{ messages }}",
}


def gguf(entries: dict[str, object] = ENTRIES, tensor_bytes: int = 128) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entry(*item) for item in entries.items())
    head += string("weight") + struct.pack("<IQQIQ", 2, 4, 8, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(tensor_bytes)


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    found = read_gguf(write(tmp_path, gguf()))
    assert (found.architecture, found.context_length, found.quantization, found.size_label) == (
        "tiny",
        4096,
        "Q4_K_M",
        "1B",
    )
    assert (found.special_token("bos"), found.special_token("eos"), found.special_token("pad")) == ("<s>", "</s>", "")
    assert (found.chat_template, found.parameter_count) == ("{{ messages }}", 32)


def test_cache_size_counts_shared_heads_of_the_widest_layer(tmp_path: Path) -> None:
    assert read_gguf(write(tmp_path, gguf())).cache_bytes_per_token() == 2 * 4 * (8 + 8) * 2


def test_a_file_that_says_little(tmp_path: Path) -> None:
    found = read_gguf(write(tmp_path, gguf({"general.architecture": "tiny"})))
    assert (found.context_length, found.chat_template, found.quantization, found.cache_bytes_per_token()) == (
        None,
        None,
        "",
        0,
    )
    with pytest.raises(ModelRefused, match="tokenizer"):
        Vocabulary(found)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "shorter than"),
        (b"PK\3\4" + bytes(100), "not a GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62), "entries are promised"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "bytes is promised"),
        (gguf(tensor_bytes=100), "cut short"),
        (gguf()[:200], "middle of its metadata"),
    ],
    ids=["empty", "zip", "version", "counts", "string", "cut", "cut early"],
)
def test_damaged_files(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(ModelRefused, match=words):
        read_gguf(write(tmp_path, data))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")


def test_random_damage_is_read_or_refused(tmp_path: Path) -> None:
    """Whatever bytes change, the answer is a description or `ModelRefused`: nothing else, and no great memory."""
    chance = random.Random(1)
    whole = gguf()
    for _ in range(400):
        data = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.3 else whole)
        for _ in range(chance.randrange(1, 6)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        path = write(tmp_path, bytes(data))
        try:
            found = read_gguf(path)
            found.special_token("bos")
            found.cache_bytes_per_token()
        except ModelRefused:
            continue


class TestVocabulary:
    @pytest.fixture
    def vocabulary(self, tmp_path: Path) -> Vocabulary:
        return Vocabulary(read_gguf(write(tmp_path, gguf())))

    def test_bytes(self, vocabulary: Vocabulary) -> None:
        assert vocabulary.decode([0, 2, 3, 8, 9, 10, 1]) == "Hi there😀<tool>".encode()
        assert vocabulary.end_tokens == {1}

    def test_ways_to_write_the_start_of_a_character(self, vocabulary: Vocabulary) -> None:
        assert set(vocabulary.ways(b"\xf0\x9f", 1)) == {(8,)}
        assert set(vocabulary.ways(b"\xf0\x9f\x98", 2)) == {(8, 6)}
        assert set(vocabulary.ways("😀".encode(), 3)) == {(8, 6, 7), (4, 5, 9)}
        assert list(vocabulary.ways(b"\xf0", 2)) == []

    def test_an_id_that_is_not_there(self, vocabulary: Vocabulary) -> None:
        with pytest.raises(PromptRefused, match="0 to 10"):
            vocabulary.bytes_of(11)

    def test_sentencepiece(self, tmp_path: Path) -> None:
        entries = {
            **ENTRIES,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "▁Hi", "<0xF0>"],
            "tokenizer.ggml.token_type": [2, 3, 1, 6],
        }
        assert Vocabulary(read_gguf(write(tmp_path, gguf(entries)))).decode([1, 2, 3]) == b" Hi\xf0"
