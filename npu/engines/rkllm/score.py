"""How likely the RKLLM runtime's model says yes, rather than no."""

from __future__ import annotations

import math
from collections.abc import Sequence

from npu.engine import Prompt, Sampling
from npu.engines.rkllm.generation import RkllmGeneration
from npu.engines.rkllm.loaded_model import LoadedModel


class RkllmScore(RkllmGeneration):
    """A run that ends with the logits after the prompt. See `npu.engine.Reading`."""

    def __init__(self, loaded: LoadedModel, tokens: Sequence[int], yes: int, no: int) -> None:
        super().__init__(loaded, Prompt(tokens, 1), Sampling(), None, None)
        self._yes = yes
        self._no = no

    def result(self) -> float | None:
        """The probability, or None once aborted."""
        try:
            _, logits = self._logits_of_prompt()
            return None if logits is None else _share(logits[self._yes], logits[self._no])
        finally:
            self._finish()
            self._loaded.cache.clear()  # what is kept of earlier rows makes later runs slower


def _share(yes: float, no: float) -> float:
    # Written so that neither of the two overflows.
    return 1 / (1 + math.exp(no - yes)) if yes >= no else math.exp(yes - no) / (1 + math.exp(yes - no))
