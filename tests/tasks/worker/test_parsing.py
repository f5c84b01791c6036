"""The visible text of an answer: what a stop sequence hides, whatever the pieces it comes in."""

from __future__ import annotations

import codecs
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.worker.parsing.text import TextParser


def reference(data: bytes, stop: list[str]) -> tuple[str, str | None]:
    """The whole text, cut where the stop sequence that is whole first begins; of two that end together, the longer."""
    text = data.decode("utf-8", "replace")
    for end in range(1, len(text) + 1):
        met = [sequence for sequence in stop if sequence and text[:end].endswith(sequence)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


def parse(pieces: list[bytes], stop: list[str]) -> tuple[list[str], str | None]:
    parser = TextParser(stop)
    said = [parser.feed(piece) for piece in pieces]
    said.append(parser.finish())
    return said, parser.stopped_by


def so_far(data: bytes) -> str:
    """The characters that are certain, though more bytes may follow."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


# Few letters, so that stop sequences overlap, repeat and nest all the time.
LETTERS = st.sampled_from("ab") | st.sampled_from("abcß世😀")
TEXTS = (
    st.text(st.sampled_from("ab"), max_size=12).map(str.encode)
    | st.text(LETTERS, max_size=30).map(str.encode)
    | st.lists(
        st.sampled_from([b"a", b"b", b"\xff", b"\xf0\x9f", "😀".encode(), b"\xc3", b"\x9f", b"\xe4\xb8"]), max_size=20
    ).map(b"".join)
)
NESTED = st.sampled_from(["a", "b", "ab", "ba", "aba", "bab", "aab", "abb", "abab", "aaab"])
STOPS = st.lists(NESTED, min_size=2, max_size=3) | st.lists(st.text(LETTERS, max_size=5), max_size=4)


@settings(max_examples=600, deadline=None)
@given(data=TEXTS, stop=STOPS, places=st.lists(st.integers(0, 60), max_size=12))
def test_any_chunking_gives_the_same_text(data: bytes, stop: list[str], places: list[int]) -> None:
    """However bytes are cut into pieces, text and stop sequence are those of the whole text."""
    said, stopped_by = parse(cut(data, places), stop)
    assert ("".join(said), stopped_by) == reference(data, stop)


@settings(max_examples=300, deadline=None)
@given(data=TEXTS, stop=STOPS)
def test_nothing_of_a_stop_sequence_is_ever_visible(data: bytes, stop: list[str]) -> None:
    """At no moment does what is shown reach into what may still become a stop sequence; nothing is taken back."""
    whole, _ = reference(data, stop)
    parser = TextParser(stop)
    shown = ""
    for count, byte in enumerate(data, 1):
        shown += parser.feed(bytes((byte,)))
        assert whole.startswith(shown)
        if parser.stopped_by is not None:
            return
        text = so_far(data[:count])
        for sequence in stop:
            for length in range(1, len(sequence)):
                assert not text.endswith(sequence[:length]) or len(shown) <= len(text) - length


@settings(max_examples=300, deadline=None)
@given(data=TEXTS, stop=STOPS)
def test_nothing_is_held_back_without_need(data: bytes, stop: list[str]) -> None:
    """What cannot become a stop sequence any more is shown at once, not at the end."""
    parser = TextParser(stop)
    shown = ""
    for count, byte in enumerate(data, 1):
        shown += parser.feed(bytes((byte,)))
        if parser.stopped_by is not None:
            return
        held = so_far(data[:count])[len(shown) :]
        assert held == "" or any(sequence.startswith(held) and sequence != held for sequence in stop)


CASES = {
    "no stop": ("hello", [], "hello", None),
    "an empty stop is none": ("hello", [""], "hello", None),
    "at the very start": ("STOP and more", ["STOP"], "", "STOP"),
    "the whole text": ("STOP", ["STOP"], "", "STOP"),
    "at the very end": ("text STOP", ["STOP"], "text ", "STOP"),
    "only its beginning, at the end": ("text STO", ["STOP"], "text STO", None),
    "a false start inside": ("a\n\nb\n\n\nc", ["\n\n\n"], "a\n\nb", "\n\n\n"),
    "a false start that runs into the true one": ("ababac!", ["abac"], "ab", "abac"),
    "the beginning repeats itself": ("aaaab", ["aab"], "aa", "aab"),
    "two overlap, the one whole first": ("xabcd", ["bcd", "abc"], "x", "abc"),
    "one inside another": ("xabcy", ["abc", "b"], "xa", "b"),
    "one begins another": ("xabcy", ["abc", "ab"], "x", "ab"),
    "one ends another": ("xabcy", ["bc", "abc"], "x", "abc"),
    "the longer one never came": ("xab!", ["abc", "zz"], "xab!", None),
    "in several scripts": ("Grüße 世界😀!", ["界😀"], "Grüße 世", "界😀"),
    "twice": ("one.two.three", ["."], "one", "."),
}


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("case", CASES)
def test_cases(case: str, size: int) -> None:
    """The well-known corners, in pieces of every size."""
    text, stop, visible, stopped_by = CASES[case]
    data = text.encode()
    said, met = parse([data[start : start + size] for start in range(0, len(data), size)], stop)
    assert ("".join(said), met) == (visible, stopped_by)


def test_a_character_appears_once_it_is_whole() -> None:
    """Not a byte earlier, and without a replacement character in between."""
    parser = TextParser([])
    assert [parser.feed(bytes((byte,))) for byte in "😀".encode()] == ["", "", "", "😀"]
    assert parser.finish() == ""


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    """In the middle as soon as it is certain, at the end with `finish`."""
    parser = TextParser(["zzz"])
    assert parser.feed(b"a\xffb") == "a\ufffdb"
    assert parser.feed(b"\xf0\x9f") == ""
    assert parser.finish() == "\ufffd"


def test_nothing_follows_a_stop_sequence() -> None:
    """Neither what shares its piece, nor later pieces, nor the end."""
    parser = TextParser(["STOP"])
    assert parser.feed(b"a STOP b") == "a "
    assert parser.feed(b"c STOP") == ""
    assert parser.finish() == ""
    assert parser.stopped_by == "STOP"


def test_a_stop_sequence_met_only_at_the_end_counts() -> None:
    """A cut character that ends the text may be the last of a stop sequence."""
    parser = TextParser(["\ufffd"])
    assert parser.feed(b"a\xf0\x9f") == "a"
    assert (parser.finish(), parser.stopped_by) == ("", "\ufffd")
