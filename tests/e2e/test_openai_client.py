"""The official openai client against the whole service, unchanged."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.stack import LIMIT, Stack

TEXT = "Grüße, 世界! 👋🏽 Stop here. And on."


def test_chat(openai_client: openai.OpenAI) -> None:
    """A whole answer with exact usage and a request id."""
    answer = openai_client.chat.completions.create(model="echo", messages=[{"role": "user", "content": TEXT}])
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (TEXT, "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(TEXT.encode()) + 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_stream_with_usage(openai_client: openai.OpenAI) -> None:
    """Every character once and in order though tokens split them; usage comes last, without choices."""
    stream = openai_client.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": TEXT * 20}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT * 20
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == len((TEXT * 20).encode()) + 4
    assert len({chunk.id for chunk in chunks}) == 1


def test_max_tokens_and_stop(openai_client: openai.OpenAI) -> None:
    """`length` after exactly as many tokens as asked for; a stop sequence ends the text just before it."""
    short = openai_client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "abcdefgh"}], max_tokens=3
    )
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("abc", "length")
    assert short.usage is not None
    assert short.usage.completion_tokens == 3
    stopped = openai_client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": TEXT}], stop=["Stop"], max_completion_tokens=200
    )
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == (TEXT.split("Stop")[0], "stop")


def test_several_choices(openai_client: openai.OpenAI) -> None:
    """`n` answers, each whole, streamed and not."""
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "three"}]
    whole = openai_client.chat.completions.create(model="echo", messages=messages, n=3)
    assert [(choice.index, choice.message.content) for choice in whole.choices] == [(i, "three") for i in range(3)]
    texts = {0: "", 1: "", 2: ""}
    for chunk in openai_client.chat.completions.create(model="echo", messages=messages, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "three", 1: "three", 2: "three"}


def test_completions(openai_client: openai.OpenAI) -> None:
    """Text, several texts, token ids; `echo` puts the prompt first."""
    one = openai_client.completions.create(model="echo", prompt="hello", max_tokens=50)
    assert one.choices[0].text == "hello"
    several = openai_client.completions.create(model="echo", prompt=["a", "bc"], max_tokens=50, echo=True)
    assert [choice.text for choice in several.choices] == ["aa", "bcbc"]
    ids = openai_client.completions.create(model="echo", prompt=list(b"ids"), max_tokens=50)
    assert ids.choices[0].text == "ids"
    with pytest.raises(openai.BadRequestError):
        openai_client.completions.create(model="echo", prompt=[99999], max_tokens=5)


def test_models(openai_client: openai.OpenAI) -> None:
    """Listed and looked up; names that mean the same model work everywhere."""
    assert {"echo", "steady"} <= {model.id for model in openai_client.models.list()}
    assert openai_client.models.retrieve("echo").id == "echo"
    answer = openai_client.chat.completions.create(model="ECHO:latest", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "hi"


def test_typed_errors(openai_client: openai.OpenAI) -> None:
    """Each refusal is the exception its user expects, with code, parameter and words to act on."""
    with pytest.raises(openai.NotFoundError) as unknown:
        openai_client.chat.completions.create(model="ehco", messages=[{"role": "user", "content": "hi"}])
    assert unknown.value.code == "model_not_found"
    assert "echo" in unknown.value.message
    assert unknown.value.request_id
    with pytest.raises(openai.BadRequestError) as empty:
        openai_client.chat.completions.create(model="echo", messages=[])
    assert empty.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as long:
        openai_client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x" * 9000}])
    assert long.value.code == "context_length_exceeded"
    assert "8192" in long.value.message
    assert "9004" in long.value.message
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("nothing/of:the-kind")


def test_a_client_that_times_out(openai_client: openai.OpenAI, stack: Stack) -> None:
    """The client's own time-out is its APITimeoutError; the job behind it is cancelled."""
    with pytest.raises(openai.APITimeoutError):
        openai_client.with_options(timeout=1.0).chat.completions.create(
            model="steady", messages=[{"role": "user", "content": "x" * 3000}]
        )
    answer = openai_client.chat.completions.create(model="steady", messages=[{"role": "user", "content": "next"}])
    assert answer.choices[0].message.content == "next"


def test_a_request_id_is_echoed(stack: Stack) -> None:
    """What a client sends to find its request again comes back."""
    reply = httpx.get(f"{stack.url}/v1/models", headers={"X-Request-Id": "my-id-42"}, timeout=LIMIT)
    assert reply.headers["x-request-id"] == "my-id-42"
