"""A large batch on three boards while eight people chat: all of it answered once, also when parts of the service are killed."""

from __future__ import annotations

import io
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.stack import Stack, eventually

ITEMS = 10_000
USERS = 8
LIMIT = 1200.0
"""Seconds a batch may take on a machine that is busy with other things."""

pytestmark = pytest.mark.full


@pytest.fixture
def stack() -> Iterator[Stack]:
    """One API, three boards with the same fast model."""
    with Stack({"echo": {"tokens_per_second": 3000.0}}) as running:
        for number in (2, 3):
            start_board(running, number)
        eventually(lambda: len(boards(running)) == 3, what="three boards")
        yield running


def start_board(stack: Stack, number: int) -> None:
    """One more board, or one that was killed; the first is there already."""
    more = {"board_name": f"board-{number}", "data_dir": str(stack.folder / f"data-{number}")} if number > 1 else {}
    stack.spawn("board" if number == 1 else f"board-{number}", "board", **more)


def boards(stack: Stack) -> set[str]:
    """The boards that have workers of the model."""
    queue = httpx.get(f"{stack.url}/v1/queue/echo", timeout=30).json()
    return {board["name"] for board in queue["boards"] if board["state"] != "unloaded"}


def input_of(count: int, model: str = "echo") -> bytes:
    """So many requests, each with words of its own."""
    lines = (
        {
            "custom_id": f"item-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": model,
                "messages": [{"role": "user", "content": f"item {number} says {number * 7919}"}],
                "max_tokens": 24,
            },
        }
        for number in range(count)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


class Users:
    """People who chat until they are told to stop. `firsts` are the seconds until their answers began, `broken` what went
    wrong."""

    def __init__(self, url: str) -> None:
        self.firsts: list[float] = []
        self.broken: list[str] = []
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._chat, args=(number,)) for number in range(USERS)]

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _chat(self, user: int) -> None:
        pause = random.Random(user)
        client = openai.OpenAI(base_url=self._url + "/v1", api_key="none", max_retries=0)
        while not self._stop.wait(pause.uniform(0.5, 2.0)):
            begun = time.monotonic()
            try:
                stream = client.chat.completions.create(
                    model="echo", messages=[{"role": "user", "content": f"I am {user}"}], max_tokens=32, stream=True
                )
                for place, _ in enumerate(stream):
                    if place == 1:
                        self.firsts.append(time.monotonic() - begun)
            except openai.OpenAIError as error:
                self.broken.append(repr(error))


def run(stack: Stack, look: Any) -> dict[str, Any]:
    """A batch to its end, with `look` called meanwhile; the lines of its output by their names."""
    client = openai.OpenAI(base_url=stack.url + "/v1", api_key="none", max_retries=20)
    file = client.files.create(file=("input.jsonl", io.BytesIO(input_of(ITEMS))), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")

    def over() -> Any:
        found = client.batches.retrieve(batch.id)
        look(found)
        return found.status in ("completed", "failed", "expired", "cancelled") and found

    ended = eventually(over, limit=LIMIT, what="the batch's end")
    assert (ended.status, ended.request_counts.completed, ended.request_counts.failed) == ("completed", ITEMS, 0)
    lines = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
    assert len(lines) == ITEMS
    found = {line["custom_id"]: line for line in lines}
    assert set(found) == {f"item-{number}" for number in range(ITEMS)}
    for number in range(ITEMS):
        said = found[f"item-{number}"]["response"]["body"]["choices"][0]["message"]["content"]
        assert str(number * 7919) in said
    return found


def test_ten_thousand_items_beside_eight_people(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """All answered once, by all three boards, in bounded memory, and nobody's chat fails."""
    api = psutil.Process(stack.process("api").pid)
    memory: list[int] = []
    idle = Users(stack.url)
    with idle:
        time.sleep(20)
    begun = time.monotonic()
    with Users(stack.url) as users:
        found = run(stack, lambda batch: memory.append(api.memory_info().rss))
    took = time.monotonic() - begun
    assert not users.broken
    assert {line["served"]["board"] for line in found.values()} == {"test-board", "board-2", "board-3"}
    quarter = len(memory) // 4
    figures = (
        f"{ITEMS} items in {took:.0f} s, {ITEMS / took:.0f} a second",
        f"memory of the API {memory[quarter] / 1e6:.0f} MB after a quarter, {max(memory[quarter:]) / 1e6:.0f} MB at most",
        f"Redis {stack.redis.info('memory')['used_memory'] / 1e6:.1f} MB",
        f"first token of {len(users.firsts)} chats p50 {statistics.median(users.firsts) * 1000:.0f} ms",
        f"and {statistics.median(idle.firsts) * 1000:.0f} ms before",
    )
    with capsys.disabled():
        print("", *figures, sep="\n")


def test_ten_thousand_items_while_parts_are_killed(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """Boards, the API and Redis die at random, -9, and are started again: still all answered once."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    killed: dict[str, int] = {}
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(chance.uniform(3, 8)):
            name = chance.choice(["board", "board-2", "board-3", "api", "valkey"])
            killed[name] = killed.get(name, 0) + 1
            stack.kill(name)
            if name == "valkey":
                stack.start_valkey()
            elif name == "api":
                stack.start("api")
                eventually(stack.alive)
            else:
                start_board(stack, int(name[6:] or 1) if "-" in name else 1)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        begun = time.monotonic()
        run(stack, lambda batch: None)
        took = time.monotonic() - begun
    finally:
        stop.set()
        killer.join()
    assert sum(killed.values()) > 5
    with capsys.disabled():
        print(f"\n{ITEMS} items in {took:.0f} s beside kills of {killed}; seed {seed}")
