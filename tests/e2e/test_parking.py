"""Two people chat with one model of a board, whose interface asks for titles, tags and follow-up questions after each answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from npu.simulator import SimulatedModel, profile_of
from tests.stack import LIMIT, Stack

pytestmark = pytest.mark.full

QWEN = SimulatedModel(
    profile=profile_of("RK3588", "Qwen3", "0.6B", "w8a8"), cache_kb=112, cache_mb_s=2000, max_context_limit=8192
)
"""At the speeds of a board; how fast one copies memory is a guess, on the low side."""
SIDES = (
    "Give this chat a title of five words.",
    "Give this chat three tags.",
    "Ask three questions that could come next.",
)
TURNS = 10


class Person:
    """One conversation."""

    def __init__(self, stack: Stack, key: str, about: str) -> None:
        self.url = f"{stack.url}/v1/chat/completions"
        self.headers = {"authorization": f"Bearer {key}"}
        self.messages: list[dict[str, str]] = []
        self.about = about
        self.known = 0
        """Tokens of the conversation so far."""

    def ask(self, messages: list[dict[str, str]], **more: object) -> dict[str, Any]:
        body = {"model": "qwen", "messages": messages, "max_tokens": 24, **more}
        reply = httpx.post(self.url, json=body, headers=self.headers, timeout=LIMIT)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def turn(self, number: int) -> tuple[int, int]:
        """Ask something, and what an interface asks beside it: tokens that were read of the chat, and that were new in it."""
        question = f"{self.about}, {number}: " + "and what of the old stones by the river? " * 10
        self.messages.append({"role": "user", "content": question})
        reply = self.ask(self.messages)
        answer = reply["choices"][0]["message"]["content"]
        usage = reply["usage"]
        self.messages.append({"role": "assistant", "content": answer})
        for wanted in SIDES:
            text = f"{wanted}\n\n{question}\n{answer}"
            self.ask([{"role": "user", "content": text}], max_tokens=5, service_tier="flex")
        read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        new = usage["prompt_tokens"] - self.known
        self.known = usage["prompt_tokens"] + usage["completion_tokens"]
        return read, new


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack({}, rkllm_library="simulator-1.3.0", api_keys="first-key,second-key")
    stack.add_simulated("qwen", QWEN)
    with stack:
        yield stack


def test_what_was_read_of_a_conversation_is_not_read_again(stack: Stack) -> None:
    """Two people, ten turns, three side requests after each: at most 1.15 times the new tokens are read."""
    people = Person(stack, "first-key", "One"), Person(stack, "second-key", "Two")
    counted = [person.turn(number) for number in range(TURNS) for person in people]
    read, new = (sum(counts) for counts in zip(*counted, strict=True))
    print(f"\n{read} tokens were read of chats with {new} new ones: {read / new:.3f}")
    assert read <= 1.15 * new
