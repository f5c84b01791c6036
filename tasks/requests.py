"""What a client wants, in one vocabulary for every front. None means: not given, the model's default applies."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, assert_never

import msgspec

REQUEST_VERSION = 1


class Unreadable(Exception):
    """Raised when a request was written by a newer version, or is damaged."""


class SamplingOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """The sampling a client asked for; the meaning of each field is that of `npu.engine.Sampling`."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    seed: int | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool | None = None


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation, its text already joined from its parts."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    name: str | None = None


class ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="chat"):
    """Continue a conversation `n` times. `template_options` are passed to the chat template by name.

    `adapter` is the name of the model's LoRA adapter that is to answer.
    """

    messages: tuple[Message, ...]
    sampling: SamplingOptions = SamplingOptions()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    template_options: dict[str, Any] = {}
    adapter: str | None = None
    version: int = REQUEST_VERSION


class CompletionRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="completion"):
    """Continue each prompt (a text, or token ids of the model's own vocabulary) `n` times, without a template.

    Choice `i * n + k` is the k-th answer to prompt i. With `echo` each answer begins with its prompt.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    sampling: SamplingOptions = SamplingOptions()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    echo: bool = False
    adapter: str | None = None
    version: int = REQUEST_VERSION


class EmbedRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="embedding"):
    """The vector of each input (a text, or token ids of the model's own vocabulary), of length 1.

    Vector i is that of input i. `dimensions` is how many of its numbers are wanted; None is all.
    """

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    version: int = REQUEST_VERSION


class RerankRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="rerank"):
    """How well each document answers the query, from 0 to 1."""

    query: str
    documents: tuple[str, ...]
    version: int = REQUEST_VERSION


GenerateRequest: TypeAlias = ChatRequest | CompletionRequest
Request: TypeAlias = GenerateRequest | EmbedRequest | RerankRequest

Ability: TypeAlias = Literal["text", "embedding", "rerank"]
"""What a model may be asked for, as cards name it."""


def kind_of(request: Request) -> str:
    """Its kind, as jobs are listed by."""
    return str(request.__struct_config__.tag)


def ability_of(request: Request) -> Ability:
    """What a model has to be able to for this."""
    match request:
        case ChatRequest() | CompletionRequest():
            return "text"
        case EmbedRequest():
            return "embedding"
        case RerankRequest():
            return "rerank"
        case _:
            assert_never(request)


def adapter_of(request: Request) -> str | None:
    """The LoRA adapter that is to answer; None is the model alone, which embeds and reranks."""
    return request.adapter if isinstance(request, ChatRequest | CompletionRequest) else None


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def encode_request(request: Request) -> bytes:
    """The request as JSON bytes, as the job's record holds it."""
    return _encoder.encode(request)


def decode_request(data: bytes) -> Request:
    """The request in `data`. Raises `Unreadable` on an unknown kind, a newer version, or damage."""
    try:
        request = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Unreadable(f"The request in this job's record cannot be read: {error}") from error
    if request.version > REQUEST_VERSION:
        raise Unreadable(
            f"The request was written by a newer version of rockchipllama (format {request.version}, "
            f"this one reads up to {REQUEST_VERSION}). Upgrade this board."
        )
    return request
