"""How large the record of a job becomes, in Redis' memory and file: what one answer may take of them is bounded."""

from __future__ import annotations

from tasks.requests import ChatRequest, CompletionRequest, EmbedRequest, Request, RerankRequest

ENTRY = 60
"""Bytes that an append takes beside its events and pieces."""
TOKEN = 80
"""Bytes of a token in an append of its own, as its text and as a piece."""


def bound(request: Request, context_length: int, vector_length: int) -> int | None:
    """Bytes its answer may take, where the request says; None where only its end can tell. The lengths are the model's, 0 where
    they are not known."""
    match request:
        case ChatRequest() | CompletionRequest():
            prompts = request.prompts if isinstance(request, CompletionRequest) else ("",)
            echoed = 0
            if isinstance(request, CompletionRequest) and request.echo:
                echoed = sum(len(prompt.encode() if isinstance(prompt, str) else prompt) for prompt in prompts)
            if request.max_tokens is None:
                return request.n * echoed or None
            tokens = min(request.max_tokens, context_length or request.max_tokens)
            return request.n * (len(prompts) * tokens * TOKEN + echoed)
        case EmbedRequest():
            numbers = min(request.dimensions or vector_length, vector_length or request.dimensions or 0)
            return len(request.inputs) * (4 * numbers + ENTRY)
        case RerankRequest():
            return len(request.documents) * TOKEN
