"""Processes that die: the client hears of it at once, and the next request is answered."""

from __future__ import annotations

import http.client
import json
from typing import Any

import httpx
import psutil
import pytest

from tasks import keys
from tests.e2e.test_cancellation import begin, body, leave, until_state, view
from tests.fakes.standing import Standing
from tests.stack import LIMIT, Stack, eventually, kill_all, lives


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


LETTERS = "".join(f"{place} " for place in range(60))
"""What is answered shows where it was cut, if it was."""


def said(lines: list[str]) -> str:
    """The text of a stream so far."""
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def streamed(lines: list[str]) -> tuple[str, dict[str, Any]]:
    """The text of a stream, and its usage if that was asked for; it is whole, with one end."""
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert not any("error" in chunk for chunk in chunks), chunks
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert sum("role" in choice["delta"] for choice in choices) == 1
    return said(lines), chunks[-1].get("usage") or {}


def test_kill_9_of_the_engine_in_mid_answer(stack: Stack, standing: Standing) -> None:
    """Its client sees one unbroken answer, whose usage is that of an undisturbed one; the engine is loaded anew meanwhile."""
    asked = json.loads(body("steady", LETTERS)) | {"stream_options": {"include_usage": True}}
    usages = []
    for times in (0, 1, 2):
        with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=asked, timeout=LIMIT) as reply:
            lines, seen = reply.iter_lines(), list[str]()
            with standing.at(10) as stand:
                for time in range(times):
                    while len(said(seen)) < 10 * (time + 1):
                        seen.append(next(lines))
                    stack.child("steady").kill()
                    stand(10 * (time + 2))
            seen += lines
            text, usage = streamed([line for line in seen if line and not line.startswith(":")])
        assert text == LETTERS
        found = view(stack, reply.headers["x-job-id"])
        assert found["attempts"] == times + 1
        assert len(found["interruptions"]) == times and all("died" in why for why in found["interruptions"])
        usage.pop("prompt_tokens_details")
        usages.append(usage)
    assert usages[0] == usages[1] == usages[2]


def test_kill_9_of_the_engine_in_mid_answer_not_streamed(stack: Stack, standing: Standing) -> None:
    """The answer is whole."""
    with standing.at(10):
        held, job = begin(stack, "steady", LETTERS, stream=False)
        eventually(lambda: view(stack, job)["phase"] == "decode", what="decode")
        stack.child("steady").kill()
    status, text = answer(held)
    assert status == 200
    assert json.loads(text)["choices"][0]["message"]["content"] == LETTERS
    leave(held)


def test_a_request_that_kills_every_engine_is_given_up(stack: Stack) -> None:
    """After the third time its client reads why, and the next request is answered."""
    held, job = begin(stack, "steady", "x" * 4000, stream=True)
    for times in (1, 2, 3):
        eventually(lambda: view(stack, job)["phase"] == "decode", what="decode")
        eventually(lambda: view(stack, job)["attempts"] == times, what="the next attempt")  # noqa: B023
        stack.child("steady").kill()
        eventually(lambda: len(view(stack, job)["interruptions"]) == times, what="word of its death")  # noqa: B023
    error = until_state(stack, job, "failed")["error"]
    assert error["code"] == "engine_lost"
    assert "after 3 tries" in error["message"]
    assert "engine_lost" in answer(held)[1]
    leave(held)
    assert chat(stack, "steady", "again") == "again"


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


def test_kill_9_of_the_whole_worker(stack: Stack, standing: Standing) -> None:
    """The board starts another; what waited is answered, and what it was answering goes on."""
    chat(stack, "steady", "warm")
    with standing.at(10):
        held, job = begin(stack, "steady", LETTERS, stream=True)
        eventually(lambda: view(stack, job)["phase"] == "decode", what="decode")
        waiting, second = begin(stack, "steady", "still here", stream=False)
        worker = stack.worker("steady")
        kill_all([worker, *worker.children(recursive=True)])
    found = until_state(stack, job, "finished")
    assert found["attempts"] == 2
    assert "died" in found["interruptions"][0]  # told by the board, before its lease lapsed
    assert streamed([line for line in answer(held)[1].splitlines() if line and line[0] != ":"])[0] == LETTERS
    until_state(stack, second, "finished")
    leave(held)
    leave(waiting)
    eventually(lambda: not stack.redis.exists("rl:unacked", "rl:unacked_index"), what="no call of the dead worker")


def test_kill_9_of_a_workers_parent_leaves_no_child(stack: Stack, standing: Standing) -> None:
    """Nothing that holds the model stays behind, not even what was stopped in mid-answer: its successor would wait for it."""
    chat(stack, "steady", "warm")
    with standing.at(10):
        held, job = begin(stack, "steady", LETTERS, stream=True)
        eventually(lambda: view(stack, job)["phase"] == "decode", what="decode")
        worker = stack.worker("steady")
        family = worker.children(recursive=True)
        stack.child("steady").suspend()
        worker.kill()
    eventually(lambda: not any(map(lives, family)), what="their end")
    assert chat(stack, "steady", "again") == "again"
    assert until_state(stack, job, "finished")["attempts"] == 2
    leave(held)


@pytest.mark.full
def test_jobs_end_without_any_board() -> None:
    """Board and workers are gone for good: the API sweeps. What they had waits again, and what waits ends at its deadline,
    with words to its client."""
    models = {"steady": {"tokens_per_second": 100.0}, "ponderous": {"prefill_tokens_per_second": 10.0}}
    with Stack(models, default_model="steady", lease=5) as stack:
        for model in models:
            chat(stack, model, "w")
        talking, begun = begin(stack, "steady", "x" * 4000, stream=True)
        eventually(lambda: view(stack, begun)["phase"] == "decode", what="decode")
        whole, untouched = begin(stack, "ponderous", "y" * 4000, stream=False)
        eventually(lambda: view(stack, untouched)["phase"] == "prefill", what="prefill")
        never, waiting = begin(stack, "steady", "never", stream=True)
        board = psutil.Process(stack.process("board").pid)
        kill_all([board, *board.children(recursive=True)])
        for job in (begun, untouched):
            assert until_state(stack, job, "queued")["attempts"] == 1
        for job in (begun, untouched, waiting):
            stack.redis.hset(f"rl:{{{job}}}", "deadline", 1)
            assert until_state(stack, job, "failed")["error"]["code"] == "deadline"
        status, text = answer(whole)
        assert (status, json.loads(text)["error"]["code"]) == (504, "deadline_exceeded")
        for held in (talking, never):
            status, text = answer(held)
            assert (status, json.loads(text.split("data: ")[-1])["error"]["code"]) == (200, "deadline_exceeded")
        for held in (talking, whole, never):
            leave(held)


def test_nobody_computes_for_a_dead_api() -> None:
    """Kill -9 of the API in mid-answer: its jobs are cancelled, the running and the waiting one, and the worker is free."""
    with Stack({"steady": {"tokens_per_second": 100}}, lease=1.5) as stack:
        running, begun = begin(stack, "steady", "x" * 4000, stream=True)
        eventually(lambda: stack.redis.hget(keys.job(begun), "phase") == b"decode", what="decode")
        waiting, second = begin(stack, "steady", "y" * 4000, stream=False)
        stack.process("api").kill()
        for job in (begun, second):
            eventually(lambda job=job: stack.redis.hget(keys.job(job), "state") == b"cancelled", what="its end")
        assert int(stack.redis.hget(keys.job(begun), "fence")) == 1  # type: ignore[arg-type]
        stack.start("api")
        eventually(stack.ready, what="readiness")
        assert chat(stack, "steady", "free") == "free"
        leave(running)
        leave(waiting)


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
