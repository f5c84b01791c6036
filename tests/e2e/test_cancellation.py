"""Cancellation in every state: the client that leaves, streaming or not, and the explicit cancel."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import httpx
import pytest

from tests.record import read_pieces
from tests.stack import LIMIT, Stack, eventually, raw_request


def body(model: str, text: str, *, stream: bool = True) -> bytes:
    return json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()


def view(stack: Stack, job: str) -> dict[str, Any]:
    reply = httpx.get(f"{stack.url}/v1/jobs/{job}", timeout=LIMIT)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def until_state(stack: Stack, job: str, *states: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = view(stack, job)
        return found if found["state"] in states else None

    return eventually(look, what=f"{states} of {job}")  # type: ignore[return-value]


def jobs_of(stack: Stack, model: str) -> set[str]:
    """The ids of a model's jobs, all that are still remembered; there may be hundreds, so they are read at once."""
    keys = list(stack.redis.scan_iter("rl:{*}", count=1000, _type="hash"))
    with stack.redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hget(key, "model")
        models = pipe.execute()
    return {key.decode()[4:-1] for key, found in zip(keys, models, strict=True) if found == model.encode()}


def begin(stack: Stack, model: str, text: str, *, stream: bool) -> tuple[Any, str]:
    """A request on its own thread-free socket, and the id of its job."""
    before = jobs_of(stack, model)
    context = raw_request(stack.url, body(model, text, stream=stream))
    connection = context.__enter__()
    fresh = eventually(lambda: jobs_of(stack, model) - before, what="a new job")
    return (context, connection), fresh.pop()


def leave(held: Any) -> None:
    context, _ = held
    context.__exit__(None, None, None)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_a_running_answer_stops_it(stack: Stack, stream: bool) -> None:
    """The engine stops within two tokens of the message, the worker lives on, the next answer is its own."""
    held, job = begin(stack, "steady", "abcdefgh" * 500, stream=stream)
    eventually(lambda: len(read_pieces(stack.redis, job)) > 5, what="something to stop in the middle of")
    leave(held)
    found = until_state(stack, job, "cancelled")
    assert 0 < found["usage"]["completion_tokens"] < 3000
    reply = httpx.post(f"{stack.url}/v1/chat/completions", content=body("steady", "next", stream=False), timeout=LIMIT)
    assert reply.json()["choices"][0]["message"]["content"] == "next"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_while_queued_costs_the_engine_nothing(stack: Stack, stream: bool) -> None:
    """Its job is never claimed."""
    running, first = begin(stack, "steady", "x" * 4000, stream=True)
    until_state(stack, first, "running")
    waiting, second = begin(stack, "steady", "never", stream=stream)
    assert view(stack, second)["position"] == 1
    leave(waiting)
    found = until_state(stack, second, "cancelled")
    assert found["attempts"] == 0
    leave(running)
    until_state(stack, first, "cancelled")


def test_explicit_cancel_in_every_state(stack: Stack) -> None:
    """Queued, in prefill and running: the job ends as cancelled, and cancelling again changes nothing."""
    running, first = begin(stack, "ponderous", "x" * 2000, stream=True)
    eventually(lambda: view(stack, first)["phase"] == "prefill", what="prefill")
    waiting, second = begin(stack, "ponderous", "y", stream=True)
    for job in (second, first):
        reply = httpx.post(f"{stack.url}/v1/jobs/{job}/cancel", timeout=LIMIT)
        assert reply.status_code == 200, reply.text
        assert until_state(stack, job, "cancelled")["usage"]["completion_tokens"] == 0
        assert httpx.post(f"{stack.url}/v1/jobs/{job}/cancel", timeout=LIMIT).status_code == 200
    leave(running)
    leave(waiting)


def test_cancel_while_the_model_loads(stack: Stack) -> None:
    """The job ends at once, not when loading is done; the model then serves the next one."""
    ask = body("sluggish", "on time", stream=False)
    assert httpx.post(f"{stack.url}/v1/chat/completions", content=ask, timeout=LIMIT).status_code == 200
    stack.child("sluggish").kill()  # its successor has not loaded the model
    # Its board may have it load the model before anybody asks for it.
    eventually(lambda: stack.state("sluggish") in ("idle", "loading"), what="a new child")
    held, job = begin(stack, "sluggish", "too late", stream=False)
    eventually(lambda: view(stack, job)["phase"] == "loading", what="loading")
    assert httpx.post(f"{stack.url}/v1/jobs/{job}/cancel", timeout=LIMIT).status_code == 200
    until_state(stack, job, "cancelled")
    assert stack.state("sluggish") != "loaded"
    leave(held)
    reply = httpx.post(f"{stack.url}/v1/chat/completions", content=ask, timeout=LIMIT)
    assert reply.json()["choices"][0]["message"]["content"] == "on time"


def test_an_explicit_cancel_ends_a_stream_with_words(stack: Stack) -> None:
    """The client of a job that somebody cancelled is told so, and gets no [DONE]."""
    with httpx.stream(
        "POST", f"{stack.url}/v1/chat/completions", content=body("steady", "x" * 4000), timeout=LIMIT
    ) as reply:
        job = reply.headers["x-job-id"]
        lines = reply.iter_lines()
        first = next(line for line in lines if '"content":"x' in line)
        assert first
        httpx.post(f"{stack.url}/v1/jobs/{job}/cancel", timeout=LIMIT)
        rest = "\n".join(lines)
    assert re.search(r'"error":\{"message":"[^"]*cancel', rest)
    assert "[DONE]" not in rest


def test_waiting_for_a_job_to_change(stack: Stack) -> None:
    """`?wait=` answers at the first change, long before its time is up."""
    held, job = begin(stack, "steady", "z" * 300, stream=True)
    seen = [view(stack, job)["state"]]
    begun = time.monotonic()
    while seen[-1] not in ("finished", "failed", "cancelled"):
        seen.append(httpx.get(f"{stack.url}/v1/jobs/{job}?wait=60s", timeout=LIMIT).json()["state"])
    assert seen[-1] == "finished"
    assert time.monotonic() - begun < 55
    leave(held)


def test_many_cancels_at_random_moments_never_reach_another_job(stack: Stack) -> None:
    """A late cancel hits its own run or nothing: every answer that was not cancelled is whole."""
    wrong: list[str] = []

    def chat(number: int) -> None:
        text = f"<{number}>" * 20
        reply = httpx.post(f"{stack.url}/v1/chat/completions", content=body("echo", text, stream=False), timeout=LIMIT)
        if reply.status_code == 200 and reply.json()["choices"][0]["message"]["content"] != text:
            wrong.append(reply.text)
        if reply.status_code not in (200, 409, 429):
            wrong.append(reply.text)

    def cancel_everything() -> None:
        while any(thread.is_alive() for thread in threads):
            for key in stack.redis.zrange("rl:running:echo", 0, -1):
                httpx.post(f"{stack.url}/v1/jobs/{key.decode()}/cancel", timeout=LIMIT)

    threads = [threading.Thread(target=lambda base=base: [chat(base + i) for i in range(30)]) for base in (0, 100, 200)]
    for thread in threads:
        thread.start()
    cancel_everything()
    for thread in threads:
        thread.join()
    assert wrong == []
