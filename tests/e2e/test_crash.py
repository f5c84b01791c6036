"""Processes that die: the client hears of it at once, and the next request is answered."""

from __future__ import annotations

import http.client
import json
import signal
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.test_cancellation import begin, body, leave, until_state, view
from tests.stack import LIMIT, Stack, eventually


def chat(stack: Stack, model: str, text: str) -> str:
    reply = httpx.post(f"{stack.url}/v1/chat/completions", content=body(model, text, stream=False), timeout=LIMIT)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def answer(held: Any) -> tuple[int, str]:
    """Status and body that a held connection gets, read to the end."""
    _, connection = held
    with http.client.HTTPResponse(connection) as reply:
        reply.begin()
        return reply.status, reply.read().decode()


def test_kill_9_of_the_engine_in_mid_answer(stack: Stack) -> None:
    """A clear error in the stream at once, no [DONE]; the next request is answered after reload."""
    with httpx.stream(
        "POST", f"{stack.url}/v1/chat/completions", content=body("steady", "x" * 4000), timeout=LIMIT
    ) as reply:
        lines = reply.iter_lines()
        next(line for line in lines if '"content":"x' in line)
        stack.child("steady").kill()
        rest = list(lines)
    error = json.loads(next(line for line in rest if '"error"' in line).removeprefix("data: "))["error"]
    assert "died" in error["message"]
    assert "data: [DONE]" not in rest
    assert chat(stack, "steady", "again") == "again"


def test_kill_9_of_the_engine_in_mid_answer_not_streamed(stack: Stack) -> None:
    """A 5xx with the reason, not a half answer."""
    held, job = begin(stack, "steady", "x" * 4000, stream=False)
    eventually(lambda: view(stack, job)["phase"] == "decode", what="decode")
    stack.child("steady").kill()
    status, text = answer(held)
    assert status >= 500
    assert "died" in text
    leave(held)


def test_kill_9_of_the_engine_before_anything_was_sent(stack: Stack) -> None:
    """Nobody saw anything yet, so the job is simply run again, and answered whole."""
    chat(stack, "ponderous", "warm")
    held, job = begin(stack, "ponderous", "y" * 300, stream=False)
    eventually(lambda: view(stack, job)["phase"] == "prefill", what="prefill")
    stack.child("ponderous").kill()
    found = until_state(stack, job, "finished")
    assert found["attempts"] == 2
    status, text = answer(held)
    assert status == 200
    assert "y" * 300 in text
    leave(held)


def test_kill_9_of_the_whole_worker(stack: Stack) -> None:
    """The board starts another; what waited is answered; what it was answering fails or is run again."""
    chat(stack, "steady", "warm")
    held, job = begin(stack, "steady", "z" * 2000, stream=True)
    eventually(lambda: view(stack, job)["phase"] == "decode", what="decode")
    waiting, second = begin(stack, "steady", "still here", stream=False)
    worker = stack.worker("steady")
    for process in (worker, *worker.children(recursive=True)):
        process.send_signal(signal.SIGKILL)
    assert until_state(stack, job, "failed")["error"]["code"] == "engine_lost"
    until_state(stack, second, "finished")
    leave(held)
    leave(waiting)


def test_kill_9_of_a_workers_parent_leaves_no_child(stack: Stack) -> None:
    """Nothing that holds the model stays behind, not even what was stopped in mid-answer: its successor would wait for it."""
    chat(stack, "steady", "warm")
    held, job = begin(stack, "steady", "z" * 2000, stream=True)
    eventually(lambda: view(stack, job)["phase"] == "decode", what="decode")
    worker = stack.worker("steady")
    family = worker.children(recursive=True)
    stack.child("steady").suspend()
    worker.kill()
    psutil.wait_procs(family, timeout=LIMIT)
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert chat(stack, "steady", "again") == "again"
    assert until_state(stack, job, "failed")["error"]["code"] == "engine_lost"
    leave(held)


def test_jobs_end_without_any_board() -> None:
    """Board and workers are gone for good: the API sweeps. What was being answered fails, what was untouched waits again,
    and what waits ends at its deadline, each with words to its client."""
    models = {"steady": {"tokens_per_second": 100.0}, "ponderous": {"prefill_tokens_per_second": 10.0}}
    with Stack(models, default_model="steady") as stack:
        for model in models:
            chat(stack, model, "w")
        talking, begun = begin(stack, "steady", "x" * 4000, stream=True)
        eventually(lambda: view(stack, begun)["phase"] == "decode", what="decode")
        whole, untouched = begin(stack, "ponderous", "y" * 4000, stream=False)
        eventually(lambda: view(stack, untouched)["phase"] == "prefill", what="prefill")
        streamed, waiting = begin(stack, "steady", "never", stream=True)
        board = psutil.Process(stack.process("board").pid)
        for process in (board, *board.children(recursive=True)):
            process.kill()
        assert until_state(stack, begun, "failed")["error"]["code"] == "engine_lost"
        assert "engine_lost" in answer(talking)[1]
        assert until_state(stack, untouched, "queued")["attempts"] == 1
        for job in (untouched, waiting):
            stack.redis.hset(f"rl:{{{job}}}", "deadline", 1)
            assert until_state(stack, job, "failed")["error"]["code"] == "deadline"
        status, text = answer(whole)
        assert (status, json.loads(text)["error"]["code"]) == (504, "deadline_exceeded")
        status, text = answer(streamed)
        assert (status, json.loads(text.split("data: ")[-1])["error"]["code"]) == (200, "deadline_exceeded")
        for held in (talking, whole, streamed):
            leave(held)


def test_a_stopped_worker_hands_its_job_back(stack: Stack) -> None:
    """SIGTERM in a long prefill: after its grace the worker leaves, and its successor answers; that is no failure."""
    chat(stack, "ponderous", "warm")
    held, job = begin(stack, "ponderous", "y" * 600, stream=False)
    eventually(lambda: view(stack, job)["phase"] == "prefill", what="prefill")
    worker = stack.worker("ponderous")
    worker.terminate()
    found = until_state(stack, job, "finished")
    assert found["attempts"] == 2
    assert not worker.is_running()
    assert stack.redis.hget(f"rl:{{{job}}}", "failures") is None
    leave(held)


@pytest.mark.parametrize("part", ["api", "board"])
def test_kill_9_of_the_other_parts(stack: Stack, part: str) -> None:
    """Started again, they go on where they were; models need not be loaded anew for a new API."""
    process = stack.process(part)
    if part == "board":
        chat(stack, "steady", "warm")  # loaded on demand, so that there is more than the model the board starts with
        workers = [stack.worker("echo"), stack.worker("steady")]
    process.kill()
    process.wait()
    stack.start(part)
    if part == "board":
        # Started apart from `up`, workers outlive their agent, and the next one adopts them.
        for model in ("echo", "steady"):
            eventually(lambda: f"adopted the worker of {model}" in stack.log("board"), what="adoption")  # noqa: B023
        assert all(worker.is_running() for worker in workers)
        workers[0].kill()
        eventually(lambda: stack.has_worker("echo"), what="another worker")
    eventually(stack.ready, what="readiness")
    assert chat(stack, "echo", "back") == "back"
