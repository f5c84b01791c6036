"""Bounds: the full queue, what is too large, what is malformed, and what a template may do."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.test_cancellation import begin, body, leave, until_state, view
from tests.e2e.test_crash import answer
from tests.stack import LIMIT, Stack, eventually, raw_request


def test_a_full_queue_refuses_at_once_and_recovers(stack: Stack, openai_client: openai.OpenAI) -> None:
    """429 with Retry-After of at most a minute while it is full, and answers again afterwards."""
    running, first = begin(stack, "steady", "x" * 6000, stream=True)
    until_state(stack, first, "running")
    waiting = [begin(stack, "steady", "w", stream=True) for _ in range(8)]
    with pytest.raises(openai.RateLimitError) as full:
        openai_client.chat.completions.create(model="steady", messages=[{"role": "user", "content": "hi"}])
    assert 1 <= float(full.value.response.headers["retry-after"]) <= 60
    assert httpx.get(f"{stack.url}/healthz", timeout=LIMIT).status_code == 200
    other = openai_client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "other"}])
    assert other.choices[0].message.content == "other"
    leave(running)
    for held, job in waiting:
        until_state(stack, job, "finished")
        leave(held)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_prompt_that_is_too_long_is_refused_before_its_turn(
    stack: Stack, openai_client: openai.OpenAI, stream: bool
) -> None:
    """400 while the engine is busy with a job that will take a minute more."""
    running, first = begin(stack, "steady", "x" * 6000, stream=True)
    until_state(stack, first, "running")
    waiting, second = begin(stack, "steady", "w", stream=True)
    with pytest.raises(openai.BadRequestError) as refused:
        openai_client.chat.completions.create(
            model="steady", messages=[{"role": "user", "content": "y" * 9000}], stream=stream
        )
    assert refused.value.code == "context_length_exceeded"
    assert view(stack, first)["state"] == "running"
    assert view(stack, second)["state"] == "queued"
    leave(waiting)
    leave(running)
    until_state(stack, first, "cancelled")


@pytest.mark.parametrize(("waiting", "code"), [(7, "context_length_exceeded"), (8, "rate_limit_exceeded")])
def test_a_prompt_that_is_too_long_at_the_end_of_the_queue(stack: Stack, waiting: int, code: str) -> None:
    """On the last place it is refused for what it is, and the place is free again; a full queue takes no look at it."""
    running, first = begin(stack, "steady", "x" * 6000, stream=True)
    until_state(stack, first, "running")
    others = [begin(stack, "steady", "w", stream=True) for _ in range(waiting)]
    too_long = body("steady", "y" * 9000, stream=False)
    for _ in range(2):
        reply = httpx.post(f"{stack.url}/v1/chat/completions", content=too_long, timeout=LIMIT)
        assert reply.json()["error"]["code"] == code
    assert view(stack, first)["state"] == "running"
    assert [view(stack, job)["position"] for _, job in others] == list(range(1, waiting + 1))
    for held, _ in others:
        leave(held)
    for _, job in others:
        # Before the worker is free: it would answer one of which nobody has heard yet that its client left.
        until_state(stack, job, "cancelled")
    leave(running)
    until_state(stack, first, "cancelled")


def test_a_waiting_stream_is_told_its_position(stack: Stack) -> None:
    """In a header and in comments, which every SSE parser skips."""
    running, first = begin(stack, "steady", "x" * 6000, stream=True)
    until_state(stack, first, "running")
    with httpx.stream("POST", f"{stack.url}/v1/chat/completions", content=body("steady", "hi"), timeout=LIMIT) as reply:
        assert reply.status_code == 200
        assert reply.headers["x-queue-position"] == "1"
        lines = reply.iter_lines()
        assert any(line.startswith(": ") and "position 1" in line for line in lines)
        leave(running)
        assert any("[DONE]" in line for line in lines)


def test_a_deadline_ends_a_job(stack: Stack) -> None:
    """A job past its deadline ends as failed, running or not."""
    # The deadline of the service is an hour; here the record's own is moved into the past, as waiting would do.
    held, job = begin(stack, "steady", "x" * 6000, stream=False)
    until_state(stack, job, "running")
    stack.redis.hset(f"rl:{{{job}}}", "deadline", 1)
    found = until_state(stack, job, "failed")
    assert found["error"]["code"] == "deadline"
    status, text = answer(held)
    assert (status, json.loads(text)["error"]["code"]) == (504, "deadline_exceeded")
    leave(held)


BAD = {
    "malformed JSON": (b'{"model": "echo", "messages": [', 400),
    "not an object": (b"[1, 2, 3]", 400),
    "empty body": (b"", 400),
    "wrong type": (json.dumps({"model": "echo", "messages": "hello"}).encode(), 400),
    "empty messages": (json.dumps({"model": "echo", "messages": []}).encode(), 400),
    "unknown role": (json.dumps({"model": "echo", "messages": [{"role": "wizard", "content": "x"}]}).encode(), 400),
    "invalid UTF-8": (b'{"model": "echo", "messages": [{"role": "user", "content": "\xff\xfe"}]}', 400),
    "lone surrogate": (b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    "NaN": (b'{"model": "echo", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}', 400),
    "infinite temperature": (
        b'{"model": "echo", "temperature": 1e999, "messages": [{"role":"user","content":"x"}]}',
        400,
    ),
    "path as model": (body("../../etc/passwd", "x", stream=False), 404),
    "very long model": (body("m" * 100_000, "x", stream=False), 400),
    "control characters in model": (body("echo\r\nX: y", "x", stream=False), 404),
    "no model of that name": (body("rl:{x}", "x", stream=False), 404),
    "deep nesting": (b'{"model": "echo", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_clear_4xx(stack: Stack, case: str) -> None:
    """An error object with a message, and the service is healthy afterwards."""
    content, status = BAD[case]
    reply = httpx.post(f"{stack.url}/v1/chat/completions", content=content, timeout=LIMIT)
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert error["message"]
    assert set(error) >= {"message", "type", "param", "code"}
    ok = httpx.post(f"{stack.url}/v1/chat/completions", content=body("echo", "fine", stream=False), timeout=LIMIT)
    assert ok.json()["choices"][0]["message"]["content"] == "fine"


def test_a_body_of_50_mb_is_refused_while_it_is_read(stack: Stack) -> None:
    """413, announced or not, before the rest of it has arrived."""
    reply = httpx.post(f"{stack.url}/v1/chat/completions", content=b"x" * 50_000_000, timeout=LIMIT)
    assert reply.status_code == 413
    assert reply.json()["error"]["message"]

    def drip() -> Any:
        for _ in range(50):
            yield b"x" * 1_000_000

    try:
        unannounced = httpx.post(f"{stack.url}/v1/chat/completions", content=drip(), timeout=LIMIT)
    except httpx.WriteError:
        pass  # the server closed the connection before all of it was sent
    else:
        assert unannounced.status_code == 413
    assert httpx.get(f"{stack.url}/healthz", timeout=LIMIT).status_code == 200


LOOP = "{{% for {0} in range(99999) %}}"
HOSTILE = {
    "endless": LOOP.format("a") + LOOP.format("b") + LOOP.format("c") + "{% endfor %}" * 3,
    "gigabyte": "{{ 'x' * 1000000000 }}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "refuses": "{{ raise_exception('roles must alternate') }}",
    "escapes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_fails_its_own_jobs_only(stack: Stack, name: str) -> None:
    """400 in bounded time; the same worker serves plain completions of the model afterwards."""
    model = "hostile"
    (stack.folder / "models" / model / "chat_template.jinja").write_text(HOSTILE[name])
    with suppress(LookupError):
        stack.replace_child(model)  # it reads the template anew
    reply = httpx.post(f"{stack.url}/v1/chat/completions", content=body(model, "hi", stream=False), timeout=LIMIT)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"]
    if name == "refuses":
        assert "roles must alternate" in reply.json()["error"]["message"]
    plain = httpx.post(
        f"{stack.url}/v1/completions", json={"model": model, "prompt": "plain", "max_tokens": 50}, timeout=LIMIT
    )
    assert plain.json()["choices"][0]["text"] == "plain"


def test_slow_senders_do_not_hold_up_others(stack: Stack) -> None:
    """A request whose body never comes costs nobody anything."""
    with raw_request(stack.url, b"", path="/healthz") as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert httpx.get(f"{stack.url}/healthz", timeout=20).status_code == 200


def queue(stack: Stack, model: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{stack.url}/v1/queue/{model}", timeout=LIMIT).json()
    return found


def test_an_administrator_pauses_a_queue(stack: Stack) -> None:
    """Its jobs wait, and say so; nobody even loads the model for them. Opened again it serves them, and is seen to."""
    assert httpx.post(f"{stack.url}/v1/queue/writer/pause", timeout=LIMIT).json()["state"] == "paused"
    ask = body("writer", "patience is rewarded")
    with httpx.stream("POST", f"{stack.url}/v1/chat/completions", content=ask, timeout=LIMIT) as reply:
        assert (reply.status_code, reply.headers["x-queue-position"]) == (200, "1")
        assert "x-queue-wait" not in reply.headers
        assert (queue(stack, "writer")["waiting"], stack.has_worker("writer")) == (1, False)
        health = httpx.get(f"{stack.url}/health", timeout=LIMIT).json()
        assert [model["queue"] for model in health["models"] if model["id"] == "writer"] == ["paused"]
        assert httpx.post(f"{stack.url}/v1/queue/writer/resume", timeout=LIMIT).json()["state"] == "open"
        said = reply.read().decode()
    assert ": position 1, its queue is paused\n" in said and said.endswith("data: [DONE]\n\n")
    eventually(lambda: queue(stack, "writer")["boards"][0].get("decode_tps"), what="a measured speed")
    assert queue(stack, "writer")["job_seconds"] > 0


def test_an_administrator_drains_and_empties_a_queue(stack: Stack) -> None:
    """New requests get 503 with words, what waits stays; then all of it is cancelled at once."""
    held = [begin(stack, "steady", "x" * 6000, stream=True) for _ in range(3)]
    until_state(stack, held[0][1], "running")
    httpx.post(f"{stack.url}/v1/queue/steady/drain", timeout=LIMIT)
    refused = httpx.post(f"{stack.url}/v1/chat/completions", content=body("steady", "no"), timeout=LIMIT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_draining")
    assert (queue(stack, "steady")["waiting"], queue(stack, "steady")["running"]) == (2, 1)
    assert httpx.post(f"{stack.url}/v1/queue/steady/cancel", timeout=LIMIT).json()["cancelled"] == 2
    assert httpx.post(f"{stack.url}/v1/queue/steady/cancel?state=all", timeout=LIMIT).json()["cancelled"] == 1
    for connection, job in held:
        until_state(stack, job, "cancelled")
        leave(connection)
    httpx.post(f"{stack.url}/v1/queue/steady/resume", timeout=LIMIT)
    assert (
        httpx.post(f"{stack.url}/v1/chat/completions", content=body("steady", "yes"), timeout=LIMIT).status_code == 200
    )


def test_an_answer_that_no_record_could_hold_is_refused(stack: Stack) -> None:
    """Before it is queued, with the figures."""
    asked = {"model": "echo", "prompt": ["hi"] * 64, "max_tokens": 100_000}
    reply = httpx.post(f"{stack.url}/v1/completions", json=asked, timeout=LIMIT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "answer_too_large")
    assert "41.9 MB" in reply.json()["error"]["message"]  # of the context's 8192 tokens each
    assert "x-job-id" not in reply.headers
