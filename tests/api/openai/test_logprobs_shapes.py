"""Log probabilities as plain completions have them."""

from __future__ import annotations

from api.openai.translate.logprobs import of_completion
from tasks.events import TokenLogprob


def test_the_token_itself_is_among_the_likeliest() -> None:
    """As one more where it was drawn though it is none of them; where none were asked for, none are told."""
    drawn = TokenLogprob(b"c", -3.0, ((b"a", -0.5), (b"b", -1.0)))
    likeliest = TokenLogprob(b"a", -0.5, ((b"a", -0.5), (b"b", -1.0)))
    told = of_completion([drawn, likeliest], 0)
    assert told is not None
    assert told["top_logprobs"] == [{"a": -0.5, "b": -1.0, "c": -3.0}, {"a": -0.5, "b": -1.0}]
    told = of_completion([TokenLogprob(b"c", -3.0)], 0)
    assert told is not None
    assert told["top_logprobs"] is None
