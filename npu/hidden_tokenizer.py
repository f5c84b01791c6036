"""Stands where a model's tokenizer would, when only the vendor's runtime has one."""

from __future__ import annotations

from collections.abc import Sequence

from npu.errors import PromptRefused


class HiddenTokenizer:
    """A tokenizer inside the runtime, which cuts a user's message for itself and tells nobody how.

    Whatever else wants a text cut is refused, in words that say what to do.
    """

    ending: Sequence[int] = ()
    digest = "hidden"
    """Of no vocabulary: no other tokenizer's ids mean the same."""

    def __init__(self, model: str) -> None:
        self._model = model

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Raises `PromptRefused`."""
        raise self.refusal("continue a text, count or embed")

    def decode(self, tokens: Sequence[int]) -> bytes:
        """Raises `PromptRefused`."""
        raise self.refusal("read tokens")

    def refusal(self, what: str) -> PromptRefused:
        """Why the model cannot do `what`."""
        return PromptRefused(
            f"The model '{self._model}' cannot {what}: there is no tokenizer.json beside it, so the NPU's runtime renders and "
            "cuts its prompts, and takes a single message of a user. Copy tokenizer.json and tokenizer_config.json from the "
            "model it was converted from into its folder, and it can."
        )
