"""Who goes before whom, seen by clients."""

from __future__ import annotations

import json
import threading

import httpx

from tests.e2e.test_cancellation import begin, body, jobs_of, leave, until_state, view
from tests.e2e.test_crash import said, streamed
from tests.stack import LIMIT, Stack, eventually, raw_request

LETTERS = "".join(f"{place} " for place in range(200))
"""An answer that takes seven seconds."""


def side_request(stack: Stack, text: str) -> tuple[list[str], str, threading.Thread]:
    """A stream in the background: its lines as they come, its job, and who reads it."""
    asked = json.loads(body("steady", text)) | {"service_tier": "flex", "stream_options": {"include_usage": True}}
    lines: list[str] = []
    known: list[str] = []

    def read() -> None:
        with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=asked, timeout=LIMIT) as reply:
            known.append(reply.headers["x-job-id"])
            lines.extend(line for line in reply.iter_lines() if line and not line.startswith(":"))

    reader = threading.Thread(target=read)
    reader.start()
    return lines, eventually(lambda: known, what="a job")[0], reader


def chat(stack: Stack, text: str, address: str = "192.0.2.1") -> str:
    """The id of a chat that was answered with its own words."""
    reply = httpx.post(
        f"{stack.url}/v1/chat/completions",
        content=body("steady", text, stream=False),
        headers={"x-forwarded-for": address},
        timeout=LIMIT,
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == text
    return reply.headers["x-job-id"]


def test_an_answer_that_chats_pause_is_one_unbroken_stream(stack: Stack) -> None:
    """Paused again and again it has the words and the usage of an undisturbed one; each chat was answered before it ended."""
    lines, job, reader = side_request(stack, LETTERS)
    chats = 0
    # A slow machine takes its time for each chat: none comes when half is said, so that each is there before the end.
    while chats == 0 or (chats < 5 and len(said(lines)) < len(LETTERS) / 2):
        eventually(lambda times=chats: view(stack, job)["attempts"] == times + 1, what="its turn")  # type: ignore[misc]
        eventually(lambda: view(stack, job)["phase"] == "decode", what="decode")
        undisturbed = view(stack, chat(stack, "hi"))["usage"]
        assert view(stack, job)["state"] in ("queued", "running")
        chats += 1
    reader.join(LIMIT)
    text, usage = streamed(lines)
    assert text == LETTERS
    markers = undisturbed["prompt_tokens"] - len("hi")
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(LETTERS) + markers, len(LETTERS))
    found = view(stack, job)
    assert (found["pauses"], found["attempts"], found["interruptions"]) == (chats, chats + 1, [])
    assert found["prompt_tokens_again"] > 0
    assert 0 < found["timings"]["earlier_ms"] < found["timings"]["decode_ms"]
    told = httpx.get(f"{stack.url}/v1/jobs/{job}/why", timeout=LIMIT).json()
    kinds = [part["kind"] for part in told["parts"]]
    assert kinds == ["waiting", "interrupted"] * chats + ["waiting", "prefill", "decode", "handling", "publish"]
    assert all(part["ms"] >= 0 for part in told["parts"])
    assert abs(sum(part["ms"] for part in told["parts"]) - told["wall_ms"]) <= told["wall_ms"] / 100


def test_a_models_name_sends_a_request_behind_chats(stack: Stack) -> None:
    """For clients that can choose a model and nothing else; it is the same model, by the name it was called."""
    asked = json.loads(body("echo@background", "hi", stream=False))
    reply = httpx.post(f"{stack.url}/v1/chat/completions", json=asked, timeout=LIMIT)
    assert reply.json()["model"] == "echo@background"
    found = view(stack, reply.headers["x-job-id"])
    assert (found["model"], found["lane"]) == ("echo", "background")


def test_a_client_that_leaves_a_paused_job_cancels_it(stack: Stack) -> None:
    """It ends where it waits, and the chat that paused it goes on."""
    before = jobs_of(stack, "steady")
    asked = json.dumps(json.loads(body("steady", LETTERS)) | {"service_tier": "flex"}).encode()
    with raw_request(stack.url, asked):
        low = eventually(lambda: jobs_of(stack, "steady") - before, what="a job").pop()
        eventually(lambda: view(stack, low)["phase"] == "decode", what="decode")
        held, running = begin(stack, "steady", "x" * 4000, stream=True)
        eventually(lambda: view(stack, low)["pauses"] == 1, what="the pause")
        eventually(lambda: view(stack, running)["phase"] == "decode", what="decode")
    assert until_state(stack, low, "cancelled")["attempts"] == 1
    assert view(stack, running)["state"] == "running"
    leave(held)
    until_state(stack, running, "cancelled")


def test_a_flood_does_not_delay_somebody_elses_chat(stack: Stack) -> None:
    """It is the next to be answered, after the one that runs, and before the five that wait already."""
    running, _ = begin(stack, "steady", "x" * 4000, stream=True)
    flood = [begin(stack, "steady", f"flood {number}", stream=True) for number in range(5)]
    answered: list[str] = []
    asking = threading.Thread(target=lambda: answered.append(chat(stack, "me too", "192.0.2.8")))
    known = jobs_of(stack, "steady")
    asking.start()
    newcomer = eventually(lambda: jobs_of(stack, "steady") - known, what="a job").pop()
    assert [view(stack, job)["position"] for job in (newcomer, *(job for _, job in flood))] == [1, 2, 3, 4, 5, 6]
    leave(running)
    asking.join(LIMIT)
    assert answered == [newcomer]
    begun = [until_state(stack, job, "finished")["started_at"] for job in (newcomer, *(job for _, job in flood))]
    assert begun == sorted(begun)
    for held, _ in flood:
        leave(held)
