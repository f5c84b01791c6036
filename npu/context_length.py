"""How long a context a model gets that asks for the longest one that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

AUTO: Final = "auto"
"""Instead of a number: the longest of `STEPS` that fits."""
Wanted = int | Literal["auto"]
STEPS: Final = (2048, 4096, 8192, 16384)


def largest_that_fits(most: int, memory: int | None, needed: Callable[[int], int]) -> int:
    """The largest of `STEPS`, none of them above `most`, with which a model fits into so many bytes.

    `most` is what the model was made for, and `needed` tells the bytes it takes with a context of so many tokens. Where not
    even the smallest fits, that is the answer, and loading it is what refuses. `memory` is None where nobody has set a bound.
    """
    steps = [step for step in STEPS if step <= most] or [most]
    fitting = [step for step in steps if memory is None or needed(step) <= memory]
    return max(fitting, default=steps[0])


def story(length: int, memory: int | None, needed: int) -> str:
    """What to tell the user of a context that was chosen so, and takes `needed` bytes with its model."""
    if memory is not None and needed > memory:
        return (
            f"With its context of {length} tokens, the shortest that is chosen, it needs about {needed >> 20} MiB, and models "
            f"may have {memory >> 20} MiB here."
        )
    fits = f" and that fits into the {memory >> 20} MiB which models may have here" if memory is not None else ""
    return f"Its context of {length} tokens was chosen: of {', '.join(map(str, STEPS))} the largest that it was made for{fits}."
