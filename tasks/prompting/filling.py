"""Texts with a gap, which models of code are taught to fill: what stands before and behind it, between control tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from npu.engine import Tokenizer
from npu.errors import FieldRefused
from npu.model import Model

KNOWN: Final = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""What families call the tokens before the text, in the gap, and before what fills it: Qwen and CodeGemma, StarCoder, Granite,
DeepSeek, Code Llama."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The control tokens of one vocabulary."""

    front: Sequence[int]
    """What every text begins with, and the first of them."""
    hole: Sequence[int]
    answer: Sequence[int]

    def around(self, before: Sequence[int], behind: Sequence[int]) -> list[int]:
        """The whole prompt."""
        return [*self.front, *before, *self.hole, *behind, *self.answer]


def gap_of(model: Model, tokenizer: Tokenizer) -> Gap:
    """How a gap is shown to the model: as its manifest says, or as its vocabulary tells. Raises `FieldRefused`."""
    markers = model.fill_in_middle
    if markers is None:
        markers = next((each for each in KNOWN if _are_tokens(each, tokenizer)), ())
    if not markers:
        raise FieldRefused(
            "suffix",
            f"'{model.id}' has no fill-in-the-middle tokens. Ask a model of code that was taught to fill gaps, such as "
            "qwen2.5-coder, or name this one's tokens as `fill_in_middle` in its manifest.",
        )
    before, hole, answer = (tokenizer.encode(marker) for marker in markers)
    return Gap([*tokenizer.encode("", add_special=True), *before], hole, answer)


def _are_tokens(markers: Sequence[str], tokenizer: Tokenizer) -> bool:
    # What is no token is cut like any other text, or is all the same one where a vocabulary lacks the characters.
    found = [tokenizer.encode(marker) for marker in markers]
    return all(len(ids) == 1 for ids in found) and len({ids[0] for ids in found}) == len(found)
