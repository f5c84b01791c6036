"""`bench perplexity`, against a model whose probabilities are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ops.bench.perplexity import NoPerplexity, begin_of, measure, told
from ops.service import Service

BOS = 1
CHANCES = {"a": 0.5, "b": 0.25, "ä": 0.125}


class Known(Service):
    """A model of single characters, each with a chance of its own wherever it stands; 1 begins its texts, where it wants that."""

    def __init__(self, *, begins: bool = True, obeys: bool = True, refuses: dict[str, str] | None = None) -> None:
        self.begins, self.obeys, self.refuses = begins, obeys, refuses or {}
        self.shown: list[list[int]] = []

    def model(self, name: str) -> dict[str, Any]:
        """What it knows of the model."""
        return {"context_length": 64, "meta": {"refuses": self.refuses}}

    def tokens(self, model: str, text: str, *, special: bool) -> list[dict[str, Any]]:
        """An id is a code point; an umlaut is told as bytes."""
        found = [{"id": ord(letter), "piece": letter if letter < "\x7f" else list(letter.encode())} for letter in text]
        return [{"id": BOS, "piece": ""}, *found] if special and self.begins else found

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Say what the bias asks for, or something else."""
        self.shown.append(asked["prompt"])
        [forced] = asked["logit_bias"]
        letter = chr(int(forced))
        said = letter if self.obeys else "z"
        return {"choices": [{"logprobs": {"tokens": [said], "token_logprobs": [math.log(CHANCES[letter])]}}]}


def text(folder: Path, words: str | bytes) -> Path:
    path = folder / "text.txt"
    path.write_bytes(words.encode() if isinstance(words, str) else words)
    return path


def test_a_known_model_has_the_perplexity_it_must_have(tmp_path: Path) -> None:
    """The inverse of the geometric mean of the chances, with its interval, and per byte of the text."""
    found = measure(Known(), "m", text(tmp_path, "abä"), 10, 8)
    assert found.perplexity == pytest.approx((2 * 4 * 8) ** (1 / 3))
    spread = 1.96 * math.log(2) / math.sqrt(3)
    assert found.low == pytest.approx(found.perplexity * math.exp(-spread))
    assert found.high == pytest.approx(found.perplexity * math.exp(spread))
    assert (found.tokens, found.bytes, found.bits_per_byte) == (3, 4, pytest.approx(6 / 4))
    assert told(found).startswith("4.000 (")


def test_without_a_beginning_the_first_token_is_not_predicted(tmp_path: Path) -> None:
    """There is nothing before it. Only as many tokens are asked for as were wanted."""
    service = Known(begins=False)
    found = measure(service, "m", text(tmp_path, "abab"), 2, 8)
    assert (found.tokens, service.shown) == (2, [[97], [97, 98]])


def test_windows_move_by_half_and_begin_as_the_model_wants(tmp_path: Path) -> None:
    """So each token is predicted from at least half a window where the text has one, and most prompts go on the last one."""
    assert [begin_of(place, 8) for place in range(15)] == [0] * 8 + [4] * 4 + [8] * 3
    service = Known()
    measure(service, "m", text(tmp_path, "ab" * 20), 40, 9)
    assert all(len(shown) <= 9 and shown[0] == BOS for shown in service.shown)
    assert all(len(shown) >= 5 for shown in service.shown[4:])
    assert sum(after[:-1] == before for before, after in zip(service.shown, service.shown[1:], strict=False)) > 25


def test_a_window_is_no_longer_than_the_context(tmp_path: Path) -> None:
    """With room for the predicted token."""
    service = Known()
    assert measure(service, "m", text(tmp_path, "ab" * 60), 120, 512).window == 63
    assert 32 < max(map(len, service.shown)) <= 63


@pytest.mark.parametrize(
    ("service", "words", "why"),
    [
        (Known(refuses={"logprobs": "no logits"}), "ab", "refuses logprobs: no logits"),
        (Known(obeys=False), "ab", "said another token"),
        (Known(), "a", "too little text"),
        (Known(), b"a\xff", "no text in UTF-8"),
    ],
    ids=["no logits", "disobedient", "too short", "no text"],
)
def test_what_has_no_perplexity_is_refused(service: Known, words: str | bytes, why: str, tmp_path: Path) -> None:
    """By name, rather than with a figure that means nothing."""
    with pytest.raises(NoPerplexity, match=why):
        measure(service, "m", text(tmp_path, words), 10, 8)
    with pytest.raises(NoPerplexity, match="cannot be read"):
        measure(Known(), "m", tmp_path / "none", 10, 8)


def test_a_file_is_read_no_further_than_needed(tmp_path: Path) -> None:
    """Not even where that ends inside a character."""
    assert measure(Known(), "m", text(tmp_path, "a" + "ä" * 100), 2, 8).tokens == 2
