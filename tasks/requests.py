"""What a client wants, in one vocabulary for every front. None means: not given, the model's default applies."""

from __future__ import annotations

import hashlib
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


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model made in an earlier turn; `arguments` is an object as JSON text."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation, its text already joined from its parts.

    `reasoning` is what the model thought in that turn. A turn of a tool answers the call `tool_call_id`; `name` is then the
    tool's, where the client said it.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function the model may call. `parameters` is the JSON schema of its arguments, an object's; None takes anything."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False
    """Whether the arguments must fit the schema whatever the model would say."""


class ToolChoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the model may, must or must not call tools, and which; no `names` are all of them."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()


class JsonObject(msgspec.Struct, frozen=True, tag="json"):
    """The answer is one JSON object."""


class JsonSchema(msgspec.Struct, frozen=True, tag="schema"):
    """The answer is JSON that fits a schema."""

    schema: dict[str, Any]


class Regex(msgspec.Struct, frozen=True, tag="regex"):
    """The whole answer fits a regular expression."""

    pattern: str


class Grammar(msgspec.Struct, frozen=True, tag="grammar"):
    """The whole answer fits a grammar, written for llama.cpp (`gbnf`) or for Lark (`lark`)."""

    text: str
    syntax: Literal["gbnf", "lark"]


OutputFormat: TypeAlias = JsonObject | JsonSchema | Regex | Grammar
"""What an answer is held to. What a model thinks before it is not."""


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
    template: str | None = None
    """A chat template, in Jinja, instead of the model's own."""
    adapter: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    """Whether one answer may call several tools."""
    output: OutputFormat | None = None
    thinking_budget: int | None = None
    """Tokens after which the model is made to stop thinking and answer."""
    logprobs: int | None = None
    """With each token its log probability and those of so many likeliest ones; None is without any."""
    overflow: Literal["refuse", "truncate"] = "refuse"
    """What is done with a conversation that does not fit: `truncate` leaves out its oldest turns."""
    context_limit: int | None = None
    """Tokens of prompt and answer together, if fewer than the model's context are wanted."""
    continue_last: bool = False
    """The last message is the beginning of the answer, which goes on behind it and does not repeat it."""
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
    suffix: str = ""
    """What follows behind the gap that the answer is to fill; empty is no gap. Each prompt is what stands before it."""
    adapter: str | None = None
    output: OutputFormat | None = None
    logprobs: int | None = None
    """With each token its log probability and those of so many likeliest ones; None is without any."""
    overflow: Literal["refuse", "truncate"] = "refuse"
    """What is done with a prompt that does not fit: `truncate` leaves out its beginning."""
    context_limit: int | None = None
    """Tokens of prompt and answer together, if fewer than the model's context are wanted."""
    version: int = REQUEST_VERSION


class EmbedRequest(msgspec.Struct, frozen=True, omit_defaults=True, tag="embedding"):
    """The vector of each input (a text, or token ids of the model's own vocabulary), of length 1.

    Vector i is that of input i. `dimensions` is how many of its numbers are wanted; None is all.
    """

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    overflow: Literal["refuse", "truncate"] = "refuse"
    """What is done with an input that does not fit: `truncate` leaves out its end."""
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


def prefix_of(request: Request) -> str | None:
    """A digest of what its prompt begins with, the same for requests with the same instructions and tools; None where those
    are none."""
    if not isinstance(request, ChatRequest):
        return None
    first = [message for message in request.messages if message.role == "system"]
    if not first and not request.tools:
        return None
    return _digest((first, request.tools, request.adapter))


_OF_LOGITS = ("min_p", "typical_p", "seed", "logit_bias", "ignore_eos")
"""What cannot be sampled by where several prompts run together: it takes logits."""


def kin_of(request: Request) -> str | None:
    """A digest that is the same for requests which one run of an engine may answer together: sampled in one way, with one
    adapter, and about as long. None for what is to run alone."""
    if not isinstance(request, ChatRequest | CompletionRequest) or request.n > 1 or request.logprobs is not None:
        return None
    if any(getattr(request.sampling, name) is not None for name in _OF_LOGITS):
        return None
    if isinstance(request, CompletionRequest):
        if len(request.prompts) > 1:
            return None
    elif request.output is not None or request.tools or request.thinking_budget is not None:
        return None
    # A slot that has ended stands still until the last has: who wants a word does not wait for who wants a novel.
    length = request.max_tokens.bit_length() if request.max_tokens is not None else None
    return _digest((request.sampling, request.adapter, length))


def talk_of(request: Request) -> tuple[str, str | None] | None:
    """Digests of a conversation, and of the part of it that an earlier request consisted of, whose answer it goes on behind; None
    where it begins. None at all for what is no conversation.

    System messages are left out: some clients write the clock into them, and most of the cached prompt is good all the same.
    """
    if not isinstance(request, ChatRequest):
        return None
    said = [message for message in request.messages if message.role != "system"]
    answers = [place for place, message in enumerate(said) if message.role == "assistant"]
    earlier = said[: answers[-1]] if answers else []
    return _digest((said, request.adapter)), _digest((earlier, request.adapter)) if earlier else None


def _digest(parts: object) -> str:
    return hashlib.blake2b(_encoder.encode(parts), digest_size=8).hexdigest()


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
