"""One .rkllm model as the runtime has it loaded, and what its runs share and learn from each other."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from npu.engines import option
from npu.engines.rkllm.cache import Cache
from npu.engines.rkllm.options import OPTIONS, slots_of
from npu.model import Model
from npu.rkllm.handle import Handle
from npu.self_test import SelfTest, Verdict
from npu.tokenizer_file import FileTokenizer

log = logging.getLogger("rockchipllama.rkllm")

SLICE_SECONDS = 1.5
"""The longest a prefill should run without looking up: nothing can abort it."""
SLICE_SHARE = 0.1
"""The most of a slice that its end may cost before slices become longer."""
LONGEST_SLICE = 4 * SLICE_SECONDS
"""Whatever its end costs."""
SLICE_STEP = 128
"""Slices are multiples of this: the runtime works through a prompt in blocks, and a partial one costs as much."""
FIRST_SLICE = 2 * SLICE_STEP
"""Tokens, until a prompt was long enough to measure by. A slower model, by its self-test, begins with less."""


class LoadedModel:
    """What there is of one model for as long as it is loaded."""

    def __init__(
        self, model: Model, handle: Handle, vocabulary: FileTokenizer, context_length: int, version: str
    ) -> None:
        self.id = model.id
        self.handle = handle
        self.family = handle.abi
        self.cache = Cache(handle)
        self.vocabulary = self.tokenizer = vocabulary
        self.context_length = context_length
        self.version = version
        """Of the runtime, as it is told to people."""
        self.defaults = model.sampling()
        self.slots = slots_of(model)
        """Prompts that fit into one run."""
        self.samples_on_host = self.slots == 1 and bool(option(model, OPTIONS, "host_sampling"))
        """Whether logits are sampled by us where the runtime cannot."""
        self.counts_cached = False
        """Whether the runtime's count of prefilled tokens has those in it that it reused."""
        self.embedding_length = 0
        """Numbers in a row of the last hidden layer; 0 until one was seen."""
        self._fixed_slice = int(option(model, OPTIONS, "prefill_slice"))
        self._slice_seconds = SLICE_SECONDS
        self._speed = 0.0
        self._is_miscounted = False
        """Whether the runtime has told another number of tokens than were heard."""

    @property
    def prefill_speed(self) -> float:
        """Tokens read in a second, as last measured; 0 until then."""
        return self._speed

    @property
    def slice(self) -> int:
        """Tokens that are prefilled without looking up."""
        if self._fixed_slice:
            return self._fixed_slice
        if not self._speed:
            return FIRST_SLICE
        return max(SLICE_STEP, int(self._speed * self._slice_seconds) // SLICE_STEP * SLICE_STEP)

    def slices(self, length: int, at: int = 0) -> Iterator[int]:
        """Where to look up while `length` tokens are prefilled from token `at` on: the ends of all slices but the last."""
        while (at := at + self.slice) < length:
            yield at

    def prefilled(self, tokens: int, milliseconds: float) -> None:
        """Learn the speed from a run that was long enough to tell."""
        if tokens >= SLICE_STEP and milliseconds > 0:
            self._speed = tokens / milliseconds * 1000

    def said(self, heard: int, told: int) -> None:
        """Compare the tokens `heard` of a run that ended by itself with what the runtime `told`; warn when they first differ."""
        if heard != told and not self._is_miscounted:
            self._is_miscounted = True
            log.warning(
                "%s: %d tokens were heard of an answer of which the runtime counted %d. Either it counts otherwise than the "
                "documents say, or some get lost; usage is what was heard. Said once for each load.",
                self.id,
                heard,
                told,
            )

    def go_by(self, test: SelfTest) -> None:
        """Rely on what the self-test showed of the runtime, and on nothing that it showed not to hold."""
        self.cache.reuse, self.counts_cached = test.reuse, test.counts_cached
        if test.prefill_tps and test.prefill_tps * SLICE_SECONDS < FIRST_SLICE:
            self._speed = test.prefill_tps
        said = 1 / test.decode_tps if test.decode_tps else 0.0
        # A run that ends by itself need not be aborted.
        aborted = 0.0 if self.family.CAPABILITIES.per_run_max_tokens else (test.abort_ms or 0.0) / 1000
        self._slice_seconds = slice_seconds(said + aborted)
        self.samples_on_host = self.samples_on_host and test.logits is not Verdict.SUSPECT


def slice_seconds(end: float) -> float:
    """How long a slice should last whose end, a token nobody wants and its abort, takes `end` seconds.

    Who waits comes first: it grows only where its end would cost more than a tenth, and never past `LONGEST_SLICE`.
    """
    return min(max(SLICE_SECONDS, end / SLICE_SHARE), LONGEST_SLICE)
