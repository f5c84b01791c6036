"""What is left out of a conversation, or of a text, that does not fit into the context.

Whoever talks on sends everything again, and what is cut off must not change with each turn: a prompt that begins like the one
before is read from there on, and any other from its start. So a cut takes away half of what there is room for, and is placed
by what stands before it alone: it stays where it is until the context is full once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from npu.engine import Tokenizer
from tasks.requests import ChatRequest, Message

MARKS = 12
"""Tokens that a template writes around a message, at most: a guess too low would cut anew with each turn."""
REMEMBERED = 8192
"""Sizes of texts that are kept in memory."""
ANSWER = 512
"""Tokens that an answer gets where nobody said how long it may be."""


def room_for_prompt(context: int, max_tokens: int | None) -> int:
    """Tokens that a prompt may have, so that an answer of some length has room behind it."""
    answer = min(ANSWER if max_tokens is None else max_tokens, context // 4)
    return context - max(1, answer)


def fit(
    request: ChatRequest,
    whole: Sequence[int],
    context: int,
    tokens_of: Callable[[ChatRequest], Sequence[int]],
    size: Callable[[str], int],
) -> tuple[Sequence[int], int]:
    """The tokens of a chat without its oldest turns where they do not fit and it wants that, and how many were left out.

    `whole` are all of them, `size` is that of a text in tokens. What cannot be made to fit is not: whoever checks the prompt
    refuses it with the figures.
    """
    room = room_for_prompt(context, request.max_tokens)
    tokens = whole
    if request.overflow == "truncate" and len(whole) > room:
        for messages in shortened(request.messages, room, size):
            tokens = tokens_of(msgspec.structs.replace(request, messages=messages))
            if len(tokens) <= room:
                break
    return tokens, len(whole) - len(tokens)


class Sizes:
    """How many tokens texts have, those lately asked for from memory: a conversation comes again with each turn, and some
    tokenizers are slow to ask. Usable from any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, int] = {}

    def __call__(self, text: str) -> int:
        key = hash(text)
        size = self._known.get(key)
        if size is None:
            size = len(self._tokenizer.encode(text)) if text else 0
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = size
        return size


def shortened(messages: Sequence[Message], room: int, size: Callable[[str], int]) -> Iterator[tuple[Message, ...]]:
    """The conversation without its oldest turns, each time with fewer, down to the last; `size` is that of a text in tokens.

    System messages stay. A turn goes with all that followed it: an answer, calls of tools, and their results.
    """
    turns = _turns(messages)
    costs = [_cost(message, size) for message in messages]
    fixed = sum(cost for message, cost in zip(messages, costs, strict=True) if message.role == "system")
    of_turns = [sum(costs[index] for index in turn if messages[index].role != "system") for turn in turns]
    # By the turns that are over: the last one is longer when it is sent again with its answer.
    first, further = max(1, _cut(of_turns[:-1], room * 3 // 4 - fixed)), 1
    while len(turns) > 1:
        first = min(first, len(turns) - 1)
        begin = turns[first][0]
        yield tuple(message for index, message in enumerate(messages) if index >= begin or message.role == "system")
        if first == len(turns) - 1:
            return
        # The sizes are estimates. Where they were wrong, ever more is left out, rather than tried turn by turn.
        first, further = first + further, further * 2


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """The places of the messages of each turn, which begins where a user speaks after somebody else."""
    turns: list[list[int]] = []
    answered = True
    for index, message in enumerate(messages):
        if not turns or (message.role == "user" and answered):
            turns.append([])
            answered = False
        turns[-1].append(index)
        answered |= message.role in ("assistant", "tool")
    return turns


def _cost(message: Message, size: Callable[[str], int]) -> int:
    calls = sum(size(call.arguments) + MARKS for call in message.tool_calls)
    return size(message.content) + calls + MARKS


def _cut(costs: Sequence[int], room: int) -> int:
    """The first turn that stays."""
    first = held = 0
    for last, cost in enumerate(costs):
        held += cost
        if held > room:
            while first < last and held > room // 2:
                held -= costs[first]
                first += 1
    return first


def end_of(
    tokens: Sequence[int], context: int, max_tokens: int | None, tokenizer: Tokenizer
) -> tuple[Sequence[int], int]:
    """The end of a text that fits, behind what every text begins with, and how many tokens were left out."""
    room = room_for_prompt(context, max_tokens)
    start = tokenizer.encode("", add_special=True, parse_special=True)
    kept = start if list(tokens[: len(start)]) == start else []
    step = room // 2
    if len(tokens) <= room or step <= len(kept):
        return tokens, 0
    left_out = -(-(len(tokens) - room) // step) * step
    return [*kept, *tokens[len(kept) + left_out :]], left_out
