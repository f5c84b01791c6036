"""Streams that are lost and found again, on two API processes of one service."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from tests.api.hooks import called
from tests.e2e.test_cancellation import until_state, view
from tests.fakes.standing import Standing
from tests.stack import LIMIT, Stack, eventually, free_port

HOOKS: dict[str, str] = {"webhook_secret": "a secret of sixteen", "webhook_networks": "127.0.0.0/8"}
LETTERS = "".join(f"{place} " for place in range(60))
"""What is answered shows where it was cut, if it was."""


@pytest.fixture(scope="module")
def stack(standing: Standing) -> Iterator[Stack]:
    stack = Stack({"steady": {"tokens_per_second": 200}}, default_model="steady", lease=3, drain=0, **HOOKS)
    stack.preload(standing.environment)
    stack.add_model("caller", {"tokens_per_second": 100}, 'tool_format = "hermes"\nthinking_format = "think"')
    with stack:
        yield stack


@pytest.fixture(scope="module")
def second(stack: Stack) -> str:
    """The address of the second API process."""
    port = free_port()
    stack.start("api", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: answers(url), what="a second API")
    return url


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


class Reading:
    """A client that reads frames, and notes their ids."""

    def __init__(self, reply: httpx.Response) -> None:
        assert reply.status_code == 200, reply.read()
        self.job = reply.headers["x-job-id"]
        self.headers = reply.headers
        self.frames: list[tuple[str | None, str]] = []
        self._lines = reply.iter_lines()

    def read(self, most: int | None = None) -> list[tuple[str | None, str]]:
        """The next frames, as their id and data."""
        found: list[tuple[str | None, str]] = []
        identity = None
        while len(found) != most and (line := next(self._lines, None)) is not None:
            if line.startswith("id: "):
                identity = line[4:]
            elif line.startswith("data: "):
                found.append((identity, line[6:]))
                identity = None
        self.frames += found
        return found


@contextmanager
def chat(url: str, text: str = LETTERS, grace: str | None = "30s", **fields: Any) -> Iterator[Reading]:
    body = {"stream": True, "messages": [{"role": "user", "content": text}]} | fields
    headers = {"x-stream-grace": grace} if grace is not None else {}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=LIMIT) as reply:
        yield Reading(reply)


@contextmanager
def events(url: str, job: str, after: str | None = None, key: str | None = None) -> Iterator[Reading]:
    headers = {"last-event-id": after} if after is not None else {}
    headers |= {"authorization": f"Bearer {key}"} if key is not None else {}
    with httpx.stream("GET", f"{url}/v1/jobs/{job}/events", headers=headers, timeout=LIMIT) as reply:
        yield Reading(reply)


def text_of(frames: list[tuple[str | None, str]]) -> str:
    """The text of a whole stream: one head, one role, one end, each frame once."""
    assert frames[-1][1] == "[DONE]"
    ids = [identity for identity, _ in frames]
    assert None not in ids and len(set(ids)) == len(ids)
    chunks = [json.loads(data) for _, data in frames[:-1]]
    assert (
        len(
            {json.dumps([chunk[name] for name in ("id", "created", "model", "system_fingerprint")]) for chunk in chunks}
        )
        == 1
    )
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert sum("role" in choice["delta"] for choice in choices) == 1
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_a_stream_is_gone_on_with_on_another_process(stack: Stack, second: str) -> None:
    """Dropped twice, it is read to its end elsewhere: one unbroken answer to one claim, and readable again until it expires."""
    with chat(stack.url) as reading:
        frames = reading.read(8)
        assert reading.headers["x-stream-grace"] == "30"
        job = reading.job
    with events(second, job, frames[-1][0]) as reading:
        frames += reading.read(8)
    with events(stack.url, job, frames[-1][0]) as reading:
        frames += reading.read()
    assert text_of(frames) == LETTERS
    found = until_state(stack, job, "finished")
    assert found["attempts"] == 1
    with events(second, job) as reading:
        assert reading.read() == frames
    assert httpx.get(f"{second}/v1/jobs/{job}/events?after={frames[-1][0]}", timeout=LIMIT).status_code == 204


def test_a_grace_that_is_over_ends_the_job(stack: Stack) -> None:
    """Nobody came back, and the worker is free."""
    with chat(stack.url, "x" * 4000, grace="300ms") as reading:
        reading.read(5)
    found = until_state(stack, reading.job, "cancelled")
    assert 0 < found["usage"]["completion_tokens"] < 3000


def test_who_looks_on_ends_nothing(stack: Stack, second: str) -> None:
    """A second reader comes and leaves; the first one, who has no grace, reads on."""
    with chat(stack.url, grace=None) as reading:
        reading.read(5)
        with events(second, reading.job) as looking:
            assert looking.read(5) == reading.frames
        reading.read()
    assert text_of(reading.frames) == LETTERS


def test_who_reads_on_keeps_a_job_whose_first_client_leaves(stack: Stack, second: str) -> None:
    """As when a client comes back before its lost connection is noticed; no grace is needed for that."""
    with chat(stack.url, grace=None) as reading:
        frames = reading.read(5)
        again = events(second, reading.job, frames[-1][0])
        rest = again.__enter__()
        frames += rest.read(1)
    frames += rest.read()
    again.__exit__(None, None, None)
    assert text_of(frames) == LETTERS


def test_a_client_that_leaves_without_a_grace_ends_its_job(stack: Stack) -> None:
    """At once, as long as nobody else reads it."""
    with chat(stack.url, "x" * 4000, grace=None) as reading:
        reading.read(5)
    until_state(stack, reading.job, "cancelled")


def test_events_can_be_polled(stack: Stack) -> None:
    """While the job runs and afterwards, without keeping it going."""
    json_only = {"accept": "application/json"}
    with chat(stack.url) as reading:
        reading.read(5)
        seen, ended = list[dict[str, Any]](), False
        while not ended:
            after = seen[-1]["id"] if seen else 0
            page = httpx.get(
                f"{stack.url}/v1/jobs/{reading.job}/events?after={after}", headers=json_only, timeout=LIMIT
            ).json()
            seen += page["data"]
            ended = page["ended"]
    assert [event["id"] for event in seen] == list(range(1, len(seen) + 1))
    assert "".join(event["text"] for event in seen if event["type"] == "text") == LETTERS
    assert seen[-1]["type"] == "finished"


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_stream_outlives_its_process(stack: Stack, standing: Standing, second: str, how: str) -> None:
    """An API process that is stopped leaves the job to its grace, and says so without an id; one that dies says nothing."""
    with standing.at(100):  # several tokens of an append are one frame
        with chat(stack.url) as reading:
            frames = reading.read(8)
            process = stack.process("api")
            process.terminate() if how == "stopped" else process.kill()
            try:
                rest = reading.read()
            except httpx.TransportError:
                rest = []
        process.wait(LIMIT)
    if how == "stopped":
        assert rest[-1][0] is None and '"server_stopping"' in rest.pop()[1]
        frames += rest
    job = reading.job
    stack.start("api")
    with events(second, job, frames[-1][0]) as reading:
        frames += reading.read()
    assert text_of(frames) == LETTERS
    eventually(stack.ready, what="readiness")
    assert view(stack, job)["attempts"] == 1


def client_of(url: str) -> openai.OpenAI:
    """The official client, as its users configure it."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=LIMIT)


def test_a_response_is_gone_on_with_on_another_process(stack: Stack, second: str) -> None:
    """Cut off twice, every event of it is read once; then it is stored, and what was said is what the next one goes on from."""
    stream = client_of(stack.url).responses.create(model="steady", input=LETTERS, background=True, stream=True)
    events = list(itertools.islice(stream, 10))
    stream.close()
    id = events[0].response.id  # type: ignore[union-attr]
    stream = client_of(second).responses.retrieve(id, stream=True, starting_after=events[-1].sequence_number)
    events += itertools.islice(stream, 10)
    stream.close()
    events += client_of(stack.url).responses.retrieve(id, stream=True, starting_after=events[-1].sequence_number)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == LETTERS
    whole = client_of(second).responses.retrieve(id)
    assert events[-1].type == "response.completed"
    assert (events[-1].response, whole.output_text) == (whole, LETTERS)
    assert list(client_of(stack.url).responses.retrieve(id, stream=True)) == events
    assert view(stack, id.removeprefix("resp_"))["attempts"] == 1

    counted = client_of(second).responses.input_tokens.count(model="steady", input=LETTERS)
    assert whole.usage is not None
    assert counted.input_tokens == whole.usage.input_tokens
    reply = client_of(second).responses.create(model="steady", input="And then?", previous_response_id=id)
    items = client_of(stack.url).responses.input_items.list(reply.id, order="asc").data
    assert [item.content[0].text for item in items] == [LETTERS, LETTERS, "And then?"]  # type: ignore[union-attr]
    assert reply.usage is not None
    assert reply.usage.input_tokens > 2 * whole.usage.input_tokens - 20

    client_of(second).responses.delete(id)
    for url in (stack.url, second):
        with pytest.raises(openai.NotFoundError):
            client_of(url).responses.retrieve(id)
    assert client_of(stack.url).responses.retrieve(reply.id).status == "completed"


WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
THOUGHTS = LETTERS[:40]
CITY = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch"
CALLING = (
    f"<think>{THOUGHTS}</think>Let me see. "
    f'<tool_call>{{"name": "weather", "arguments": {{"city": "{CITY}"}}}}</tool_call>'
)
"""What is asked for is what the model says, so it thinks, speaks and calls."""
IN_THOUGHT, IN_CALL, AT_END = CALLING.index("</think>") - 2, CALLING.index(CITY) + len(CITY) - 2, len(CALLING) + 1
"""Where it stands until its engine has died."""


def test_a_call_of_a_tool_goes_on_where_its_engine_died(stack: Stack, standing: Standing) -> None:
    """In mid-thought and in the middle of the call; its result is then told in a response of its own."""
    client = client_of(stack.url)
    for kills in (0, 2):
        stream = client.responses.create(model="caller", input=CALLING, tools=[WEATHER], stream=True)
        events = []
        with standing.at(IN_THOUGHT if kills else AT_END) as stand:
            for event in stream:
                events.append(event)
                kinds = [each.type for each in events]
                if kills == 2 and kinds.count("response.reasoning_text.delta") == 8:
                    stack.child("caller").kill()
                    stand(IN_CALL)
                    kills = 1
                elif kills == 1 and kinds.count("response.function_call_arguments.delta") == 3:
                    stack.child("caller").kill()
                    stand(AT_END)
                    kills = 0
        assert kills == 0
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1]
        assert last.type == "response.completed"
        thought, said, call = last.response.output
        assert thought.content[0].text == THOUGHTS.strip()  # type: ignore[union-attr]
        assert said.content[0].text == "Let me see."  # type: ignore[union-attr]
        assert json.loads(call.arguments) == {"city": CITY}  # type: ignore[union-attr]
    assert view(stack, last.response.id.removeprefix("resp_"))["attempts"] == 3
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}  # type: ignore[union-attr]
    then = client.responses.create(
        model="caller", input=[result], previous_response_id=last.response.id, tools=[WEATHER]
    )
    assert "Rain." in then.output_text


def test_a_chat_goes_on_where_its_engine_died(stack: Stack, standing: Standing) -> None:
    """In mid-thought and in the middle of a call: each is read once and whole, and counted as if nothing had been."""
    client = client_of(stack.url)
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER["parameters"]}}]
    asked: Any = {"model": "caller", "messages": [{"role": "user", "content": CALLING}], "tools": tools}
    whole = client.chat.completions.create(**asked)
    thoughts, arguments = 0, 0
    with (
        standing.at(IN_THOUGHT) as stand,
        client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream,
    ):
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                arguments += 1
            elif event.type == "chunk" and event.chunk.choices:
                thoughts += "reasoning" in (event.chunk.choices[0].delta.model_extra or {})
            if thoughts == 8 or arguments == 3:
                stack.child("caller").kill()
                stand(IN_CALL if thoughts == 8 else AT_END)
                thoughts, arguments = thoughts + 1000 * (thoughts == 8), arguments + 1000 * (arguments == 3)
        said = stream.get_final_completion()
    [call] = said.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": CITY})
    assert (said.choices[0].finish_reason, said.choices[0].message.content) == ("tool_calls", "Let me see.")
    assert said.usage is not None and whole.usage is not None
    assert said.usage.completion_tokens_details == whole.usage.completion_tokens_details
    assert said.usage.completion_tokens == whole.usage.completion_tokens
    assert view(stack, said.id.removeprefix("chatcmpl-"))["attempts"] == 3


def test_a_message_goes_on_where_its_engine_died(stack: Stack, standing: Standing) -> None:
    """In mid-thought and in the middle of a call, in Anthropic's dialect: each event comes once, and the tool is called."""
    client = anthropic.Anthropic(base_url=stack.url, api_key="unused", max_retries=0, timeout=LIMIT)
    tool: Any = {"name": "weather", "input_schema": WEATHER["parameters"]}
    turns: Any = [{"role": "user", "content": CALLING}]
    deltas: list[str] = []
    with (
        standing.at(IN_THOUGHT) as stand,
        client.messages.stream(
            model="caller", max_tokens=2000, messages=turns, tools=[tool], thinking={"type": "adaptive"}
        ) as stream,
    ):
        for event in stream:
            if event.type == "content_block_delta":
                deltas.append(event.delta.type)
                if (deltas[-1], deltas.count(deltas[-1])) in (("thinking_delta", 8), ("input_json_delta", 3)):
                    stack.child("caller").kill()
                    stand(IN_CALL if deltas[-1] == "thinking_delta" else AT_END)
        said = stream.get_final_message()
    thought, text, call = said.content
    assert thought.type == "thinking" and thought.thinking == THOUGHTS.strip()
    assert text.type == "text" and text.text == "Let me see."
    assert call.type == "tool_use" and call.input == {"city": CITY}
    assert said.stop_reason == "tool_use"
    assert said.usage.output_tokens_details is not None and said.usage.output_tokens_details.thinking_tokens > 0
    assert view(stack, said.id.removeprefix("msg_"))["attempts"] == 3
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain."}
    turns += [{"role": "assistant", "content": said.content}, {"role": "user", "content": [result]}]
    then = client.messages.create(model="caller", max_tokens=200, messages=turns, tools=[tool])
    assert any(block.type == "text" and "Rain." in block.text for block in then.content)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"name": "t", "input_schema": {"type": "object"}}]}, "tools"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"not": {"type": "object"}}}}},
            "output_config.format",
        ),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_name(stack: Stack, fields: dict[str, Any], param: str) -> None:
    """Of a message, by the name that its dialect has for it."""
    body = {"model": "steady", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]} | fields
    reply = httpx.post(f"{stack.url}/v1/messages", json=body, timeout=LIMIT)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert reply.json()["error"]["message"].startswith((f"{param}:", f"'{param}'"))


def test_a_response_in_the_background_outlives_its_process(stack: Stack, second: str) -> None:
    """Nobody reads it, and whoever accepted it is dead: it is made all the same."""
    reply = client_of(stack.url).responses.create(model="steady", input=LETTERS, background=True)
    process = stack.process("api")
    process.kill()
    process.wait(LIMIT)
    eventually(lambda: client_of(second).responses.retrieve(reply.id).status == "completed", what="the response")
    assert client_of(second).responses.retrieve(reply.id).output_text == LETTERS
    stack.start("api")
    eventually(stack.ready, what="readiness")


def test_a_response_is_cancelled_on_another_process(stack: Stack, second: str) -> None:
    """While its stream is read on the first: that ends, and says what had been said."""
    stream = client_of(stack.url).responses.create(model="steady", input="x" * 4000, background=True, stream=True)
    first = list(itertools.islice(stream, 10))
    id = first[0].response.id  # type: ignore[union-attr]
    client_of(second).responses.cancel(id)
    last = list(stream)[-1]
    found = client_of(second).responses.retrieve(id)
    assert last.type == "response.failed"
    assert (found.status, last.response.status) == ("cancelled", "cancelled")
    assert 0 < len(found.output_text) < 4000
    assert client_of(second).responses.cancel(id) == found
    client_of(second).responses.delete(id)
    eventually(lambda: stack_forgot(stack, id), what="the record's end")


def stack_forgot(stack: Stack, response: str) -> bool:
    """Whether nothing is left of the job behind a response."""
    return httpx.get(f"{stack.url}/v1/jobs/{response.removeprefix('resp_')}", timeout=LIMIT).status_code == 404


def test_an_answer_in_lines_goes_on_where_its_engine_died(stack: Stack, standing: Standing) -> None:
    """In mid-thought, in Ollama's dialect: thoughts, text and call come once and whole, and one last line with their count."""
    jobs: list[str] = []
    hooks = {"response": [lambda reply: jobs.append(reply.headers["x-job-id"])]}
    client = ollama.Client(host=stack.url, timeout=LIMIT, event_hooks=hooks)
    asked: Any = {"model": "caller", "messages": [{"role": "user", "content": CALLING}]}
    asked["tools"] = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER["parameters"]}}]
    whole = client.chat(**asked)
    parts: list[Any] = []
    with standing.at(IN_THOUGHT) as stand:
        for part in client.chat(**asked, stream=True):
            parts.append(part)
            if len(parts) == 8:
                stack.child("caller").kill()
                stand(AT_END)
    messages = [part.message for part in parts]
    assert "".join(message.thinking or "" for message in messages) == THOUGHTS.strip() == whole.message.thinking
    assert "".join(message.content or "" for message in messages) == "Let me see."
    [call] = [call for message in messages for call in message.tool_calls or []]
    assert (call.function.name, call.function.arguments) == ("weather", {"city": CITY})
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count
    assert view(stack, jobs[-1])["attempts"] == 2


def test_a_job_that_nobody_waits_for_outlives_the_api_that_accepted_it(stack: Stack, second: str) -> None:
    """Killed with no time to say anything; the whole answer is had from another process, like any other of that endpoint."""
    port = free_port()
    stack.spawn("brief api", "api", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: answers(url), what="a third API")
    asked = {"endpoint": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": LETTERS}]}}
    with called() as (hook, calls):
        made = httpx.post(f"{url}/v1/jobs", json=asked | {"webhook": hook}, timeout=LIMIT)
        assert (made.status_code, made.json()["lane"]) == (202, "background")
        stack.kill("brief api")
        result = httpx.get(f"{second}{made.json()['links']['result']}?wait=60s", timeout=LIMIT + 10)
        headers, told = calls.get(timeout=LIMIT)
    openai.OpenAI(api_key="none").webhooks.verify_signature(told, headers, secret=HOOKS["webhook_secret"])
    event = json.loads(told)
    assert (event["type"], event["data"]["id"], event["data"]["state"]) == (
        "job.finished",
        made.json()["id"],
        "finished",
    )
    assert result.json()["choices"][0]["message"]["content"].split() == LETTERS.split()
    assert view(stack, made.json()["id"])["attempts"] == 1
    made = httpx.post(f"{second}/v1/jobs", json={"endpoint": "/v1/embeddings", "body": {"input": "a"}}, timeout=LIMIT)
    result = httpx.get(f"{stack.url}{made.json()['links']['result']}?wait=60s", timeout=LIMIT + 10)
    assert len(result.json()["data"][0]["embedding"]) > 1


def newest(stack: Stack) -> dict[str, Any]:
    """The job that was accepted last."""
    found: dict[str, Any] = httpx.get(f"{stack.url}/v1/jobs?limit=1", timeout=LIMIT).json()["data"][0]
    return found


def test_a_call_that_ollamas_client_waits_for_goes_on_where_its_engine_died(stack: Stack, standing: Standing) -> None:
    """In the middle of the call, of which that client hears nothing before it is whole."""
    client = ollama.Client(host=stack.url, timeout=LIMIT)
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER["parameters"]}}]
    said, calls, killed = "", [], False
    with standing.at(IN_CALL) as stand:
        for part in client.chat("caller", [{"role": "user", "content": CALLING}], tools=tools, think=True, stream=True):
            said += part.message.content or ""
            calls += part.message.tool_calls or []
            if said == "Let me see." and not killed:
                stack.child("caller").kill()
                stand(AT_END)
                killed = True
    [call] = calls
    assert (call.function.name, call.function.arguments) == ("weather", {"city": CITY})
    assert newest(stack)["attempts"] == 2


SCHEMA: Any = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"enum": ["sea", "land"]}, "minItems": 60, "maxItems": 60}},
    "required": ["words"],
    "additionalProperties": False,
}
WORDS = json.dumps({"words": ["sea", "land", "land"] * 20})


@pytest.mark.parametrize(
    "front", ["anthropic", *(pytest.param(front, marks=pytest.mark.full) for front in ("responses", "ollama"))]
)
def test_an_answer_held_to_a_schema_goes_on_where_its_engine_died(stack: Stack, standing: Standing, front: str) -> None:
    """In the middle of it, on each front besides the chats of `test_rkllm.py`: it fits, and nothing comes twice."""
    said = ""
    with standing.at(150) as stand:
        for piece in held(stack.url, front):
            if len(said) <= 100 < len(said + piece):
                stack.child("steady").kill()
                stand(len(WORDS) + 1)
            said += piece
    assert json.loads(said) == json.loads(WORDS)
    assert newest(stack)["attempts"] == 2


def held(url: str, front: str) -> Iterator[str]:
    """The pieces of an answer that is held to the schema."""
    turns: Any = [{"role": "user", "content": WORDS}]
    match front:
        case "responses":
            form: Any = {"format": {"type": "json_schema", "name": "words", "schema": SCHEMA, "strict": True}}
            for event in client_of(url).responses.create(model="steady", input=turns, text=form, stream=True):
                if event.type == "response.output_text.delta":
                    yield event.delta
        case "anthropic":
            client = anthropic.Anthropic(base_url=url, api_key="unused", max_retries=0, timeout=LIMIT)
            config: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
            with client.messages.stream(
                model="steady", max_tokens=2000, messages=turns, output_config=config
            ) as stream:
                yield from stream.text_stream
        case "ollama":
            for part in ollama.Client(host=url, timeout=LIMIT).chat("steady", turns, format=SCHEMA, stream=True):
                yield part.message.content or ""
