"""What a question is, and the answers that every one of them may get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from npu.rkllm.abi import Capabilities
from npu.rkllm.acceptance.material import Material
from npu.rkllm.acceptance.notes import Notes

UNKNOWN: Final = "unknown"
"""It was asked, and what came tells neither one nor the other."""
CRASHED: Final = "crashed"
"""The library took its process down, where nobody had expected a crash to mean anything."""
INAPPLICABLE: Final = "does not apply"
"""This family cannot be asked."""


class Unanswered(Exception):
    """What came tells neither one nor the other; the message is the reason."""


def _always(can: Capabilities) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question, or one thing to measure, whose answer is then empty and its figures are rows."""

    name: str
    asks: str
    """In words, for the report."""
    ask: Callable[[Material, Notes], str]
    """Puts it to the library, in a process of its own. Raises `Unanswered`."""
    applies: Callable[[Capabilities], bool] = _always
    """Whether a family can be asked."""
    seconds: float = 180.0
    """The longest it may take, the loading of the model included."""
