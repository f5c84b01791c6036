"""What became of a request: the closed set of events of a job, and their fold into a whole answer."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple, TypeAlias, assert_never

import msgspec

EVENTS_VERSION = 1
"""Version of the encoding below. A reader takes its own version and any older one; it refuses a newer one."""


class FinishReason(StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    """The model ended its turn, or a stop sequence appeared."""
    TOOL_CALLS = "tool_calls"
    """The model ended its turn, and called tools in it."""
    LENGTH = "length"
    """max_tokens or the context was reached."""
    CANCELLED = "cancelled"
    """The client left, or somebody cancelled the job."""


class FailureCode(StrEnum):
    """Every way a job can fail. Each front maps each of them to its own status; a test proves the maps total."""

    CONTEXT_TOO_LONG = "context_too_long"
    """Prompt and answer do not fit into the context."""
    BAD_PROMPT = "bad_prompt"
    """The request cannot be rendered: the template refused it, a token id is outside the vocabulary."""
    UNSUPPORTED = "unsupported"
    """The engine cannot honour a field of the request; `param` names it."""
    MODEL_UNAVAILABLE = "model_unavailable"
    """The model could not be loaded."""
    ENGINE_FAILED = "engine_failed"
    """The engine reported an error while running."""
    ENGINE_LOST = "engine_lost"
    """The process with the engine died or vanished while it worked on this job."""
    ANSWER_TOO_LARGE = "answer_too_large"
    """The answer grew beyond what the record of one job may hold."""
    DEADLINE = "deadline"
    """The job's deadline passed before it ended."""
    UNREADABLE = "unreadable"
    """The record holds something this version does not know."""
    INTERNAL = "internal"
    """A defect of ours."""


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Counts of tokens. `cached_tokens` of the `prompt_tokens` were not prefilled again; `reasoning_tokens` of the
    `completion_tokens` were thoughts. `left_out` counts those of the request that did not fit, and are no part of the prompt.
    `parked_tokens` of the `cached_tokens` had been displaced from the engine's cache, and were loaded again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    left_out: int = 0
    parked_tokens: int = 0


class Timings(msgspec.Struct, frozen=True, array_like=True):
    """Milliseconds. `prefill_ms` and `decode_ms` by the engine's clock, `queued_ms` and `load_ms` by ours. `decode_ms` has
    that of attempts before the last, as far as they could tell; the others, but for `queued_ms`, are of the last."""

    queued_ms: float = 0.0
    load_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    together: int = 1
    """How many jobs its last run answered at once: each has its share of the speed."""
    memory_mb: float = 0.0
    """Millions of bytes that the runtime held at the most, with its model; 0 where it does not tell."""
    earlier_ms: float = 0.0
    """The part of `decode_ms` that attempts before the last took."""
    work_ms: float = 0.0
    """From the claim until only the end was left to be written, by our clock; 0 where no worker had it or told."""


class Queued(msgspec.Struct, frozen=True, array_like=True, tag="queued"):
    """The job was accepted."""


class Started(msgspec.Struct, frozen=True, array_like=True, tag="started"):
    """A worker claimed the job. A job handed back and claimed again has several."""

    worker: str
    board: str


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token's bytes and log probability, and those of the likeliest ones at its place, the likeliest first."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


class TextDelta(msgspec.Struct, frozen=True, array_like=True, tag="text"):
    """More of the answer. Never splits a character, never holds a part of a stop sequence.

    `logprobs` are those of the tokens whose text ends here, if the request asked for them.
    """

    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class ReasoningDelta(msgspec.Struct, frozen=True, array_like=True, tag="reasoning"):
    """More of the model's thinking."""

    text: str
    choice: int = 0


class ToolCallStarted(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """The model calls a tool: the `index`-th call of this answer, from 0. It ends where the next call or the answer does."""

    index: int
    id: str
    name: str
    choice: int = 0


class ToolCallDelta(msgspec.Struct, frozen=True, array_like=True, tag="arguments"):
    """More of the arguments of a call that has started; all of them together are an object as JSON text."""

    index: int
    arguments: str
    choice: int = 0


class ChoiceEnded(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """One of the n answers is whole. `stop_sequence` is the one that ended it, if one did."""

    choice: int
    reason: FinishReason
    stop_sequence: str | None = None


class Embedded(msgspec.Struct, frozen=True, array_like=True, tag="embedded"):
    """The vector of one input: 32-bit floats, little-endian, one after another."""

    index: int
    vector: bytes


class Scored(msgspec.Struct, frozen=True, array_like=True, tag="scored"):
    """How well one document answers the query, from 0 to 1."""

    index: int
    score: float


class Finished(msgspec.Struct, frozen=True, array_like=True, tag="finished"):
    """The last event of a job that ran to its end, or was cancelled."""

    reason: FinishReason
    usage: Usage
    timings: Timings


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The last event of a job that failed. `message` says what happened, why, and what to do."""

    code: FailureCode
    message: str
    param: str | None = None


Event: TypeAlias = (
    Queued
    | Started
    | TextDelta
    | ReasoningDelta
    | ToolCallStarted
    | ToolCallDelta
    | ChoiceEnded
    | Embedded
    | Scored
    | Finished
    | Failed
)
TERMINAL = (Finished, Failed)


def joined(first: Event, then: Event) -> Event | None:
    """Two events one after the other as one that says the same; None where they are of different things."""
    match first, then:
        case TextDelta(), TextDelta() if first.choice == then.choice:
            return TextDelta(first.text + then.text, first.choice, first.logprobs + then.logprobs)
        case ReasoningDelta(), ReasoningDelta() if first.choice == then.choice:
            return ReasoningDelta(first.text + then.text, first.choice)
        case ToolCallDelta(), ToolCallDelta() if (first.choice, first.index) == (then.choice, then.index):
            return ToolCallDelta(first.index, first.arguments + then.arguments, first.choice)
    return None


class Wire(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive events as one append carries them. Their numbers travel beside it, so that Lua need not look inside."""

    version: int
    events: tuple[Event, ...]


class Mark(NamedTuple):
    """How far a record was read: up to event `seq`, in an entry that `attempt` wrote. A record that holds it has all that was
    read; one of which Redis forgot a part, and that was written anew, has another attempt there."""

    seq: int
    attempt: int

    @classmethod
    def of(cls, entry: bytes) -> Mark:
        """The end of an entry with this id, SEQ-ATTEMPT."""
        seq, _, attempt = entry.partition(b"-")
        return cls(int(seq), int(attempt))


class Numbered(NamedTuple):
    """One event of a job with its sequence number; a job's first event has number 1. `attempt` is that of the claim that
    wrote it, 0 when the queue did."""

    seq: int
    event: Event
    attempt: int = 0


class Unreadable(Exception):
    """Raised when events were written by a newer version, or are damaged."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Wire)


def encode_events(events: Iterable[Event]) -> bytes:
    """Consecutive events as bytes."""
    return _encoder.encode(Wire(EVENTS_VERSION, tuple(events)))


def decode_events(data: bytes) -> tuple[Event, ...]:
    """The events in `data`. Raises `Unreadable`."""
    try:
        wire = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Unreadable(f"These events were written by another version of rockchipllama: {error}") from error
    if wire.version > EVENTS_VERSION:
        raise Unreadable(
            f"These events were written by a newer version of rockchipllama (format {wire.version}, "
            f"this one reads up to {EVENTS_VERSION}). Upgrade this machine."
        )
    return wire.events


def number(last: int, events: tuple[Event, ...], attempt: int = 0) -> list[Numbered]:
    """`events` of one attempt with their sequence numbers, the last of which is `last`."""
    first = last - len(events) + 1
    return [Numbered(first + index, event, attempt) for index, event in enumerate(events)]


class WholeCall(msgspec.Struct):
    """One call of a tool, as it is known so far."""

    id: str
    name: str
    arguments: str = ""


class Choice(msgspec.Struct):
    """One whole answer."""

    text: str = ""
    reasoning: str = ""
    reason: FinishReason | None = None
    stop_sequence: str | None = None
    tool_calls: list[WholeCall] = []
    logprobs: list[TokenLogprob] = []


class Reply(msgspec.Struct):
    """Everything a job said, folded together. `end` is None while the job goes on."""

    choices: dict[int, Choice]
    vectors: dict[int, bytes] = {}
    """By the index of the input; see `Embedded`."""
    scores: dict[int, float] = {}
    """By the index of the document; see `Scored`."""
    end: Finished | Failed | None = None

    def choice(self, index: int) -> Choice:
        """That answer; an empty one where nothing was said of it yet."""
        return self.choices.setdefault(index, Choice())


def fold(events: Iterable[Event]) -> Reply:
    """The whole answer that `events` spell out, in order."""
    texts: dict[int, list[str]] = {}
    thoughts: dict[int, list[str]] = {}
    arguments: dict[tuple[int, int], list[str]] = {}
    reply = Reply(choices={})
    for event in events:
        match event:
            case TextDelta(text, index, logprobs):
                texts.setdefault(index, []).append(text)
                reply.choice(index).logprobs.extend(logprobs)
            case ReasoningDelta(text, index):
                thoughts.setdefault(index, []).append(text)
            case ToolCallStarted(_, id, name, index):
                reply.choice(index).tool_calls.append(WholeCall(id, name))
            case ToolCallDelta(call, text, index):
                arguments.setdefault((index, call), []).append(text)
            case ChoiceEnded(index, reason, stop_sequence):
                choice = reply.choice(index)
                choice.reason, choice.stop_sequence = reason, stop_sequence
            case Embedded(index, vector):
                reply.vectors[index] = vector
            case Scored(index, score):
                reply.scores[index] = score
            case Finished() | Failed():
                reply.end = event
            case Queued() | Started():
                pass
            case _:
                assert_never(event)
    for index in sorted(texts.keys() | thoughts.keys() | reply.choices.keys()):
        choice = reply.choices[index] = reply.choices.pop(index, Choice())  # in their order
        choice.text = "".join(texts.get(index, ()))
        choice.reasoning = "".join(thoughts.get(index, ()))
        for call, whole in enumerate(choice.tool_calls):
            whole.arguments = "".join(arguments.get((index, call), ()))
    return reply
