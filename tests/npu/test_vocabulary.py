"""Where a text may be cut, and how much of it a token can stand for, from the vocabulary alone."""

from __future__ import annotations

from pathlib import Path

from npu.gguf import read_gguf
from npu.vocabulary import TextPiece, Vocabulary
from tests.npu.test_gguf import ENTRIES, gguf


def vocabulary(tmp_path: Path, tokens: dict[str, int], **further: object) -> Vocabulary:
    path = tmp_path / "v.gguf"
    kinds = {"tokenizer.ggml.tokens": list(tokens), "tokenizer.ggml.token_type": list(tokens.values())}
    path.write_bytes(gguf({**ENTRIES, "tokenizer.ggml.bos_token_id": 0, **kinds, **further}))
    return Vocabulary(read_gguf(path))


def cut(tmp_path: Path, tokens: dict[str, int], text: str, parse_special: bool = True) -> list[str]:
    pieces = vocabulary(tmp_path, tokens).cut(text, parse_special)
    assert "".join(piece.marker + piece.text for piece in pieces) == text
    return [piece.marker + piece.text for piece in pieces]


CHAT = {"Hi": 1, "<s>": 3, "<end>": 3, "<tool>": 4, "<tool>s": 4}


class TestCut:
    def test_before_each_marker(self, tmp_path: Path) -> None:
        assert cut(tmp_path, CHAT, "a<s>b<s><end> c") == ["a", "<s>b", "<s>", "<end> c"]
        assert vocabulary(tmp_path, CHAT).cut("<s>x", True) == [TextPiece("<s>", "x")]

    def test_the_longest_of_those_that_begin_alike(self, tmp_path: Path) -> None:
        assert vocabulary(tmp_path, CHAT).cut("a<tool>s", True) == [TextPiece("", "a"), TextPiece("<tool>s", "")]

    def test_half_a_marker_is_text(self, tmp_path: Path) -> None:
        assert cut(tmp_path, CHAT, "<<s>><en d><end") == ["<", "<s>><en d><end"]
        assert cut(tmp_path, CHAT, "") == [""]

    def test_control_tokens_are_text_unless_asked_for_and_added_ones_never(self, tmp_path: Path) -> None:
        assert cut(tmp_path, CHAT, "a<s>b<tool>c", parse_special=False) == ["a<s>b", "<tool>c"]

    def test_not_at_a_marker_that_may_overlap_another(self, tmp_path: Path) -> None:
        """Which of two is found depends on the rest of the text."""
        assert cut(tmp_path, {"<a>": 3, "x<a": 3, "\n\n": 4, "[b]": 3}, "x<a>\n\n\n[b]") == ["x<a>\n\n\n", "[b]"]
        assert cut(tmp_path, {"abca": 3}, "abcabca") == ["abcabca"]

    def test_not_where_blanks_belong_to_the_marker_after_them(self, tmp_path: Path) -> None:
        assert cut(tmp_path, {"<mask>": 3, "<s>": 3}, "a <mask> b <s>") == ["a <mask> b ", "<s>"]

    def test_not_where_each_piece_would_get_an_end(self, tmp_path: Path) -> None:
        ending = vocabulary(tmp_path, CHAT, **{"tokenizer.ggml.add_eos_token": True})
        assert ending.cut("a<s>b", True) == [TextPiece("", "a<s>b")]

    def test_without_markers(self, tmp_path: Path) -> None:
        assert cut(tmp_path, {"a": 1}, "a<s>b") == ["a<s>b"]


class TestLongest:
    def test_in_bytes_of_text_not_as_written_in_the_file(self, tmp_path: Path) -> None:
        assert vocabulary(tmp_path, {"ĠĠĠ": 1, "ab": 1}).longest == 3
        spm = {"tokenizer.ggml.model": "llama"}
        assert vocabulary(tmp_path, {"▁▁▁▁": 1, "<0x0A>": 6, "abc": 1}, **spm).longest == 4

    def test_a_marker_stands_for_all_of_its_text(self, tmp_path: Path) -> None:
        assert vocabulary(tmp_path, {"Hi": 1, "<long marker>": 3}).longest == 13
