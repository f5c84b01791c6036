"""How large an answer may become, as far as its request says."""

from __future__ import annotations

import pytest

from tasks.record_size import ENTRY, TOKEN, bound
from tasks.requests import ChatRequest, CompletionRequest, EmbedRequest, Message, Request, RerankRequest

HI = (Message("user", "hi"),)


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        (ChatRequest(HI), None),
        (ChatRequest(HI, max_tokens=100, n=3), 300 * TOKEN),
        (ChatRequest(HI, max_tokens=10**9, n=3), 3000 * TOKEN),
        (CompletionRequest(("a", "b"), max_tokens=100, n=3), 600 * TOKEN),
        (CompletionRequest(("ää", (1, 2, 3)), max_tokens=100, n=3, echo=True), 600 * TOKEN + 3 * 7),
        (CompletionRequest(("ää",), n=3, echo=True), 12),
        (CompletionRequest(("ää",)), None),
        (EmbedRequest(("a", "b")), 2 * (4 * 512 + ENTRY)),
        (EmbedRequest(("a", "b"), dimensions=16), 2 * (4 * 16 + ENTRY)),
        (RerankRequest("q", ("a", "b")), 2 * TOKEN),
    ],
)
def test_a_request_bounds_its_answer(request_: Request, size: int | None) -> None:
    """By what it asks for and the context allows; an answer without a limit is known only when it ends."""
    assert bound(request_, 1000, 512) == size
