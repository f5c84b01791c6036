"""How an answer is to be read: where thoughts and calls of tools may be in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from npu.answer_format import MARKERS, ThinkingFormat, ToolFormat
from npu.engine import Tokenizer
from npu.errors import FieldRefused
from tasks.requests import ChatRequest, Tool

_TAIL = 16
"""Tokens at the end of a prompt among which the beginning of a thought may stand."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What may be in an answer besides text."""

    thinking: ThinkingFormat | None = None
    thought_begun: bool = False
    """The prompt ends inside a thought."""
    calls: ToolFormat | None = None
    """None where no tools were given."""
    tools: tuple[Tool, ...] = ()
    most_calls: int | None = None
    """How many calls there may be; None is any number."""
    alone: bool = False
    """Nothing stands beside calls: an answer that does not begin with one has none."""
    markers: Mapping[int, bytes] = field(default_factory=dict)
    """Control tokens among the marks, with what they stand for: an engine gives them without bytes."""
    budget: int | None = None
    """Tokens after which a thought is ended."""
    closing: tuple[tuple[int, bytes], ...] = ()
    """The tokens that end it, with their bytes."""


def reading_of(
    request: ChatRequest,
    tokens: Sequence[int],
    tokenizer: Tokenizer,
    markers: Mapping[int, bytes],
    closing: tuple[tuple[int, bytes], ...],
    calls: ToolFormat | None,
    thinking: ThinkingFormat | None,
) -> Reading | None:
    """How the answer to a prompt of these `tokens` is to be read; None where there is nothing in it but text. `markers` and
    `closing` are those of the formats, as `control_markers` and `closing_of` tell them.

    Raises `PromptRefused`.
    """
    tools = offered(request)
    if not tools:
        calls = None
    if calls is None and thinking is None:
        return None
    return Reading(
        thinking=thinking,
        thought_begun=thinking is not None and _begun(request, tokens, tokenizer, markers, thinking),
        calls=calls,
        tools=tools,
        most_calls=None if request.parallel_tool_calls else 1,
        alone=request.output is not None,
        markers=markers,
        budget=request.thinking_budget if thinking is not None else None,
        closing=closing if request.thinking_budget is not None else (),
    )


def offered(request: ChatRequest) -> tuple[Tool, ...]:
    """The tools that the model is told of. Raises `FieldRefused`."""
    choice = request.tool_choice
    missing = set(choice.names) - {tool.name for tool in request.tools}
    if missing:
        raise FieldRefused("tool_choice", f"it names '{min(missing)}', and there is no such tool in the request.")
    if choice.mode == "none":
        return ()
    return tuple(tool for tool in request.tools if not choice.names or tool.name in choice.names)


def control_markers(
    tokenizer: Tokenizer, calls: ToolFormat | None, thinking: ThinkingFormat | None
) -> dict[int, bytes]:
    """The marks of these formats that are control tokens in this vocabulary, by their ids."""
    marks = [*(MARKERS[calls] if calls is not None else ())]
    marks += thinking.markers if thinking is not None else ()
    found: dict[int, bytes] = {}
    for mark in marks:
        tokens = tokenizer.encode(mark)
        silent = [token for token in tokens if not tokenizer.decode((token,))]
        # Some vocabularies put a blank in front of whatever they encode.
        if len(silent) == 1 and not tokenizer.decode(tokens).strip():
            found[silent[0]] = mark.encode()
    return found


def closing_of(tokenizer: Tokenizer, thinking: ThinkingFormat | None) -> tuple[tuple[int, bytes], ...]:
    """The tokens that end a thought, with their bytes."""
    tokens = tokenizer.encode(f"\n{thinking.closing}") if thinking is not None else ()
    return tuple((token, tokenizer.decode((token,))) for token in tokens)


def _begun(
    request: ChatRequest,
    tokens: Sequence[int],
    tokenizer: Tokenizer,
    markers: Mapping[int, bytes],
    thinking: ThinkingFormat,
) -> bool:
    if request.continue_last:
        begun = request.messages[-1].content
        return begun.lstrip().startswith(thinking.opening) and thinking.closing not in begun
    opening, tail = thinking.opening.encode(), b""
    for token in reversed(tokens[-_TAIL:]):
        tail = ((markers.get(token) or tokenizer.decode((token,))) + tail).rstrip()
        if len(tail) >= len(opening):
            break
    return tail.endswith(opening)
