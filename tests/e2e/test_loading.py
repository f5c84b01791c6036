"""A request for a model that is being loaded waits, and says so."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tasks.roster import read_roster
from tests.stack import LIMIT, Stack, eventually

pytestmark = pytest.mark.full


def test_a_stream_tells_that_its_model_is_being_loaded() -> None:
    """In a comment, before its first chunk; then it answers as ever."""
    asked = {"model": "sluggish", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with Stack({"echo": {}, "sluggish": {"load_seconds": 4}}, default_model="echo", patience=0.1) as stack:
        with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=asked, timeout=LIMIT) as reply:
            said = b"".join(reply.iter_bytes()).decode()
        before, _, after = said.partition("data:")
        assert "its model is being loaded" in before
        assert after.endswith("data: [DONE]\n\n")


def test_two_models_that_always_have_something_to_do_take_turns() -> None:
    """On a board with room for one of them. No answer breaks off, and none fails."""
    paces = {"tokens_per_second": 40}
    room = {"memory_total": 1, "memory_reserve": 0, "room_turn": 2, "least_stay": 0}
    with Stack({"one": paces, "two": paces}, default_model="one", **room) as stack:
        over = threading.Event()

        def chat(model: str) -> list[str]:
            """One chat after the other, until the other model was answered twice."""
            asked = {"model": model, "messages": [{"role": "user", "content": "x" * 40}]}
            said = []
            while not over.is_set():
                reply = httpx.post(f"{stack.url}/v1/chat/completions", json=asked, timeout=LIMIT)
                said.append(reply.json()["choices"][0]["message"]["content"] if reply.is_success else reply.text)
            return said

        with ThreadPoolExecutor() as pool:
            chats = [pool.submit(chat, "one") for _ in range(3)]
            chats += [pool.submit(chat, "two") for _ in range(3)]

            def turns() -> int:
                text = stack.log("board")
                return min(text.count(f"started a worker of {model}") for model in ("one", "two"))

            try:
                eventually(lambda: turns() >= 2, what="two turns of each")
            finally:
                over.set()
            said = [each for done in chats for each in done.result(LIMIT)]
    assert set(said) == {"x" * 40}


def test_two_workers_of_a_model_answer_at_once() -> None:
    """Each says its own, and both are gone when the model is unloaded."""
    stack = Stack({"echo": {}})
    stack.add_model("pair", {"tokens_per_second": 20}, "instances = 2")
    with stack, ThreadPoolExecutor() as pool:
        names = {"pair@test-board", "pair#2@test-board"}

        def ask(text: str) -> str:
            body = {"model": "pair", "messages": [{"role": "user", "content": text * 60}]}
            reply = httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT)
            return str(reply.json()["choices"][0]["message"]["content"])

        def at_work() -> set[str]:
            jobs = httpx.get(f"{stack.url}/v1/jobs?state=running", timeout=LIMIT).json()["data"]
            return {job["worker"] for job in jobs}

        assert ask("w") == "w" * 60
        answers = [pool.submit(ask, text) for text in "abc"]
        eventually(lambda: at_work() == names, what="two jobs at once")
        assert [answer.result(LIMIT) for answer in answers] == [text * 60 for text in "abc"]
        httpx.post(f"{stack.url}/v1/models/unload", json={"model": "pair"}, timeout=LIMIT).raise_for_status()
        assert not {each.name for each in read_roster(stack.redis).workers} & names
