"""Ollama's own client against the whole service: real processes, a real queue, models that come and go."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.npu.tiny_model import SPM_BYTES, UNKNOWN, tiny_model
from tests.stack import LIMIT, Stack, eventually


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """An echo to chat with, one that thinks and calls tools, and one that embeds; they stay ten minutes."""
    stack = Stack({"echo": {}}, default_model="echo", keep_alive=600)
    stack.add_model("caller", {}, 'tool_format = "hermes"\nthinking_format = "think"')
    stack.add_model("filler", {}, 'fill_in_middle = ["<|system|>", "<|user|>", "<|assistant|>"]')
    stack.add_model("reader", {}, 'abilities = ["embedding"]')
    with stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[ollama.Client]:
    with ollama.Client(host=stack.url, timeout=LIMIT) as client:
        yield client


def ask(text: str) -> Any:
    return [{"role": "user", "content": text}]


def running(client: ollama.Client, model: str) -> Any:
    return next((each for each in client.ps().models if each.model == f"{model}:latest"), None)


def test_an_answer_streamed_and_whole(client: ollama.Client) -> None:
    """The same words, and figures that add up."""
    parts = list(client.chat("echo", ask("one two three"), stream=True))
    whole = client.chat("echo:latest", ask("one two three"))
    said = "".join(part.message.content or "" for part in parts)
    assert said == whole.message.content and "one two three" in said
    last: Any = parts[-1]
    assert last.done_reason == "stop"
    assert last.total_duration >= last.load_duration + last.prompt_eval_duration + last.eval_duration
    assert last.eval_count == whole.eval_count > 0


def test_limits(client: ollama.Client) -> None:
    """Of the answer, and of the context."""
    reply = client.generate("echo", "one two three", options={"num_predict": 3})
    assert (reply.eval_count, reply.done_reason) == (3, "length")
    reply = client.generate("echo", "x" * 40, options={"num_ctx": 60})
    assert (reply.prompt_eval_count or 0) + (reply.eval_count or 0) <= 60


def test_a_conversation_that_does_not_fit(stack: Stack) -> None:
    """Loses its oldest turns, unless it would rather be refused."""
    turns = [
        turn for number in range(20) for turn in (ask(f"{number:02}" * 10)[0], {"role": "assistant", "content": "y"})
    ]
    body = {"model": "echo", "messages": [*turns, *ask("the last")], "stream": False, "options": {"num_ctx": 200}}
    reply = httpx.post(stack.url + "/api/chat", json=body, timeout=LIMIT).json()
    assert "the last" in reply["message"]["content"]
    assert reply["prompt_truncated_count"] > 100
    assert reply["prompt_eval_count"] <= 200
    refused = httpx.post(stack.url + "/api/chat", json=body | {"truncate": False}, timeout=LIMIT)
    assert refused.status_code == 400
    assert "200" in refused.json()["error"]


CALL = '<think>Hm.</think>Let me see.<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'


def weather(city: str) -> str:
    """Tell the weather.

    Args:
      city: Where.
    """
    return f"rain in {city}"


def test_tools_and_thoughts(client: ollama.Client) -> None:
    """A function of Python is a tool; its call comes whole, apart from text and thoughts, and its result goes back."""
    assert set(client.show("caller").capabilities or []) >= {"completion", "tools", "thinking"}
    turns: Any = ask(CALL)
    whole = client.chat("caller", turns, tools=[weather], think=True).message
    assert (whole.thinking, whole.content) == ("Hm.", "Let me see.")
    [call] = whole.tool_calls or []
    assert weather(**call.function.arguments) == "rain in Köln"
    parts = [part.message for part in client.chat("caller", turns, tools=[weather], stream=True)]
    assert "".join(part.thinking or "" for part in parts) == "Hm."
    assert "".join(part.content or "" for part in parts) == "Let me see."
    assert [each.function for part in parts for each in part.tool_calls or []] == [call.function]
    turns += [whole, {"role": "tool", "content": "rain", "tool_name": "weather"}]
    assert "rain" in (client.chat("caller", turns, tools=[weather]).message.content or "")
    with pytest.raises(ollama.ResponseError, match='"echo" does not support tools'):
        client.chat("echo", turns, tools=[weather])
    with pytest.raises(ollama.ResponseError, match='"echo" does not support thinking'):
        client.chat("echo", turns, think="high")


def test_a_format_holds_the_answer(client: ollama.Client) -> None:
    """To JSON, or to a schema, whatever the model would rather say."""
    limit = {"num_predict": 200}
    assert isinstance(
        json.loads(client.chat("echo", ask('{"a": 1}'), format="json", options=limit).message.content or ""), dict
    )
    schema: Any = {
        "type": "object",
        "properties": {"age": {"enum": [7]}},
        "required": ["age"],
        "additionalProperties": False,
    }
    said = client.generate("echo", "no JSON at all", format=schema, options=limit)
    assert json.loads(said.response or "") == {"age": 7}
    parts = client.chat("echo", ask("nor here"), format=schema, options=limit, stream=True)
    assert json.loads("".join(part.message.content or "" for part in parts)) == {"age": 7}


def test_log_probabilities(client: ollama.Client) -> None:
    """One for each token, with the likeliest ones beside it, and together they spell the answer."""
    whole = client.chat("echo", ask("hello"), logprobs=True, top_logprobs=2)
    found = whole.logprobs or []
    assert "".join(each.token for each in found) == whole.message.content == "hello"
    assert all(each.logprob <= 0 and 1 <= len(each.top_logprobs or []) <= 2 for each in found)
    parts = client.generate("echo", "hello", logprobs=True, stream=True)
    assert "".join(each.token for part in parts for each in part.logprobs or []) == "hello"


def test_a_template_of_the_request(client: ollama.Client) -> None:
    """Is rendered in place of the model's own."""
    reply = client.generate("echo", "hi", template="<|user|>{{ messages[-1].content }} there<|end|><|assistant|>")
    assert "hi there" in (reply.response or "")
    with pytest.raises(ollama.ResponseError, match="template") as caught:
        client.generate("echo", "hi", template="{% for %}")
    assert caught.value.status_code == 400


def test_a_gap_is_filled(client: ollama.Client, stack: Stack) -> None:
    """From what stands before it and what follows, by a model that has tokens for that; for others it is refused by name."""
    reply = client.generate("filler", "before", suffix="behind")
    assert (reply.response, reply.prompt_eval_count) == ("behind", len("beforebehind") + 4)
    url = stack.url + "/v1/completions"
    body = {"model": "filler", "prompt": "before", "suffix": "behind"}
    assert httpx.post(url, json=body, timeout=LIMIT).json()["choices"][0]["text"] == "behind"
    for path in ("/v1/completions", "/api/generate"):
        refused = httpx.post(stack.url + path, json=body | {"model": "echo"}, timeout=LIMIT)
        assert "suffix cannot be honoured: 'echo' has no fill-in-the-middle tokens" in refused.text
        assert refused.status_code == 400


def test_models_are_made_copied_and_removed(client: ollama.Client, stack: Stack) -> None:
    """The new ones answer at once, and a base stays as long as something is made of it."""

    def names() -> set[str | None]:
        return {model.model for model in client.list().models}

    steps = [step.status for step in client.create("brief", from_="echo", parameters={"stop": "x"}, stream=True)]
    assert steps[-1] == "success" and "brief:latest" in names()
    reply = client.chat("brief", ask("one x two"))
    assert (reply.message.content, reply.done_reason) == ("one ", "stop")
    assert 'stop "x"' in (client.show("brief").parameters or "")
    client.copy("brief", "short")
    assert "short:latest" in names()
    with pytest.raises(ollama.ResponseError, match="made from") as caught:
        client.delete("echo")
    assert caught.value.status_code == 409
    client.delete("short")
    client.delete("brief")
    assert not names() & {"brief:latest", "short:latest"}
    with pytest.raises(ollama.ResponseError, match="model 'brief' not found"):
        client.chat("brief", ask("hi"))


def test_a_model_is_made_of_a_file_that_was_sent(client: ollama.Client, stack: Stack, tmp_path: Path) -> None:
    """Which its board then has; a second model needs it sent again."""
    made = tiny_model(tmp_path, {"model": "llama"}, [("<unk>", UNKNOWN), *SPM_BYTES])
    assert made.path is not None
    digest = client.create_blob(made.path)
    assert client.create("sent", files={"tiny.gguf": digest}, template="{{ messages[-1].content }}").status == "success"
    assert client.generate("sent", "hi", options={"num_predict": 2}).eval_count in (1, 2)  # its weights are chance
    with pytest.raises(ollama.ResponseError, match="a model was made of it already"):
        client.create("again", files={"tiny.gguf": digest})
    client.delete("sent")
    assert not (stack.folder / "models" / "sent").exists()


def test_a_pull_of_nothing_says_so(client: ollama.Client) -> None:
    """Before anything is fetched."""
    with pytest.raises(ollama.ResponseError):
        list(client.pull("no such model", stream=True))


def test_vectors_of_texts_too_long(client: ollama.Client) -> None:
    """Their end is left out, unless they would rather be refused."""
    [vector] = client.embed("reader", "x" * 10_000).embeddings
    assert sum(number * number for number in vector) == pytest.approx(1.0)
    with pytest.raises(ollama.ResponseError, match="8192") as caught:
        client.embed("reader", "x" * 10_000, truncate=False)
    assert caught.value.status_code == 400
    assert len(client.embeddings("reader", "x").embedding) == len(vector)


def test_a_model_stays_as_long_as_was_asked(client: ollama.Client) -> None:
    """`/api/ps` says when it goes, and when nobody asks for it, it goes then. Nothing is lost by that."""
    left = eventually(lambda: running(client, "echo"), what="a loaded model")
    assert 0 < (left.expires_at - datetime.now(UTC)).total_seconds() <= 600
    client.chat("echo", ask("hi"), keep_alive=-1)
    eventually(lambda: running(client, "echo").expires_at.year > 2200, what="a model that stays")
    assert "hi" in (client.chat("echo", ask("hi"), keep_alive=0).message.content or "")
    eventually(lambda: running(client, "echo") is None, what="its end after its job")
    assert client.generate("echo").done_reason == "load"
    assert running(client, "echo") is not None
    assert client.generate("echo", keep_alive=0).done_reason == "unload"
    assert running(client, "echo") is None


def test_an_administrator_loads_and_unloads_a_model(stack: Stack, client: ollama.Client) -> None:
    """On a board, waiting for it; what is told of it then is what was asked."""
    with httpx.Client(base_url=stack.url, timeout=LIMIT) as http:
        client.generate("echo", keep_alive=0)
        assert http.get("/v1/models/loaded?model=echo").json()["data"] == []
        asked = {"model": "echo", "board": "test-board", "keep_alive": "-1s", "wait": True}
        done = http.post("/v1/models/load", json=asked)
        assert (done.status_code, done.json()["state"]) == (200, "loaded")

        def told() -> dict[str, Any] | None:
            [entry] = http.get(done.json()["url"]).json()["data"]
            return entry if entry["pinned"] else None

        entry = eventually(told, what="the board's breath")
        assert abs(entry["since"] - time.time()) < LIMIT and entry["memory_bytes"] > 0
        assert (entry["state"], entry["until"], entry["problem"]) == ("loaded", None, None)
        [place] = next(each for each in http.get("/v1/models/available").json()["data"] if each["id"] == "echo")[
            "boards"
        ]
        assert (place["state"], place["fits"], place["beside"]) == ("loaded", True, True)
        assert http.post("/v1/models/unload", json={"model": "echo"}).json()["boards"] == ["test-board"]
        assert http.get("/v1/models/loaded?model=echo").json()["data"] == []


@pytest.mark.full
def test_a_model_that_goes_loses_nobody(stack: Stack, client: ollama.Client) -> None:
    """Requests that come in the moment in which it is unloaded are answered."""

    def chat(text: str) -> str:
        with ollama.Client(host=stack.url, timeout=120) as client:
            return client.chat("echo", ask(text)).message.content or ""

    def unloaded() -> int:
        return stack.logs["board"].read_text().count("nobody asks for echo any more")

    words = [f"word {number}" for number in range(8)]
    for _ in range(2):
        before = unloaded()
        client.chat("echo", ask("hi"), keep_alive=0)
        eventually(lambda before=before: unloaded() > before, what="the unloading")  # type: ignore[misc]
        with ThreadPoolExecutor(len(words)) as pool:
            assert list(pool.map(chat, words)) == words
