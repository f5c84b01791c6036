"""Ollama's official Python client, unchanged, against the real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from api.answer import Waiting
from tasks.commands import Describe
from tasks.errors import QueueFull
from tasks.events import (
    ChoiceEnded,
    Embedded,
    Failed,
    FailureCode,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
)
from tasks.requests import ChatRequest, CompletionRequest, EmbedRequest, Message
from tests.api.scripted import END, Hold, hello
from tests.api.site import Site, site
from tests.stack import LIMIT

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
VECTOR = b"\0\0\x80?\0\0\0\0"


@pytest.fixture
def client(place: Site) -> Iterator[ollama.Client]:
    """A client of the server."""
    with ollama.Client(host=place.url, timeout=LIMIT) as client:
        yield client


def test_a_whole_chat(client: ollama.Client, place: Site) -> None:
    """Text, reason, counts, and durations that add up."""
    reply = client.chat("tiny", MESSAGES, options={"temperature": 0.5, "num_predict": 7, "stop": ["x"]})
    assert (reply.message.role, reply.message.content, reply.done_reason) == ("assistant", "Hello", "stop")
    assert (reply.model, reply.prompt_eval_count, reply.eval_count) == ("tiny", 12, 3)
    parts = (reply.load_duration, reply.prompt_eval_duration, reply.eval_duration)
    assert all(part and part > 0 for part in parts)
    assert (
        reply.total_duration == sum(part or 0 for part in parts) + 1_500_000
    )  # what it waited, which has no field there
    request = place.relay.calls[-1].request
    assert isinstance(request, ChatRequest)
    assert (request.sampling.temperature, request.max_tokens, request.stop) == (0.5, 7, ("x",))


def test_a_streamed_chat(client: ollama.Client, place: Site) -> None:
    """The parts join to the answer; the last one is done."""
    parts = list(client.chat("tiny", MESSAGES, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "Hello"
    assert [part.done for part in parts] == [False, False, True]
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", 3)


def test_nothing_said_while_it_waits_disturbs_a_client(client: ollama.Client, place: Site) -> None:
    """The line is kept warm with what is no line, and splits at no character that some take for an end of line."""
    place.relay.play(Waiting(2), Waiting(None), TextDelta("a\u2028b\x85c"), Waiting(None), TextDelta("d"), END)
    parts = client.chat("tiny", MESSAGES, stream=True)
    assert "".join(part.message.content or "" for part in parts) == "a\u2028b\x85cd"


def test_the_asynchronous_client(place: Site) -> None:
    """Streamed and whole."""

    async def ask() -> tuple[str, str | None]:
        client = ollama.AsyncClient(host=place.url, timeout=LIMIT)
        said = [part.message.content or "" async for part in await client.chat("tiny", MESSAGES, stream=True)]
        return "".join(said), (await client.generate("tiny", "Hi")).response

    assert asyncio.run(ask()) == ("Hello", "Hello")


def test_thinking_arrives_beside_the_answer(client: ollama.Client, place: Site) -> None:
    """Under its own name, streamed and whole."""
    place.relay.play(ReasoningDelta("Hm."), TextDelta("Yes."), ChoiceEnded(0, FinishReason.STOP), END)
    message = client.chat("tiny", MESSAGES).message
    assert (message.thinking, message.content) == ("Hm.", "Yes.")
    parts = list(client.chat("tiny", MESSAGES, stream=True))
    assert [(part.message.thinking or "", part.message.content) for part in parts] == [
        ("Hm.", ""),
        ("", "Yes."),
        ("", ""),
    ]
    assert client.generate("tiny", "Hi").thinking == "Hm."


def test_calls_of_tools_arrive_whole(client: ollama.Client, place: Site) -> None:
    """Their arguments are objects, in the stream as well."""
    place.relay.play(
        Started("w", "b"),
        ToolCallStarted(0, "call_a", "weather"),
        ToolCallDelta(0, '{"city": '),
        ToolCallDelta(0, '"Köln"}'),
        ChoiceEnded(0, FinishReason.TOOL_CALLS),
        END,
    )
    [call] = client.chat("tiny", MESSAGES).message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Köln"})
    streamed = [call for part in client.chat("tiny", MESSAGES, stream=True) for call in part.message.tool_calls or []]
    assert streamed == [call]


def test_log_probabilities(client: ollama.Client, place: Site) -> None:
    """With each part, and all of them in a whole answer."""
    token = TokenLogprob(b"Hel", -0.25, ((b"Hel", -0.25), (b"\xc3", -2.0)))
    place.relay.play(TextDelta("Hel", 0, (token,)), ChoiceEnded(0, FinishReason.STOP), END)
    reply = client.chat("tiny", MESSAGES, logprobs=True, top_logprobs=2)
    [first] = reply.logprobs or []
    assert (first.token, first.logprob, len(first.top_logprobs or [])) == ("Hel", -0.25, 2)
    parts = list(client.generate("tiny", "Hi", stream=True, logprobs=True))
    assert [each.token for part in parts for each in part.logprobs or []] == ["Hel"]
    assert place.relay.calls[0].request.logprobs == 2  # type: ignore[union-attr]
    assert place.relay.calls[1].request.logprobs == 0  # type: ignore[union-attr]


def test_a_prompt_and_what_follows_it(client: ollama.Client, place: Site) -> None:
    """The context of an answer is the conversation so far, for whoever sends it back."""
    first = client.generate("tiny", "Hi", system="Be brief.")
    client.generate("tiny", "And?", context=first.context)
    request = place.relay.calls[-1].request
    assert isinstance(request, ChatRequest)
    assert request.messages == (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "And?"),
    )
    *_, last = client.generate("tiny", "Hi", system="Be brief.", stream=True)
    assert last.context == first.context


def test_a_raw_prompt_goes_as_it_is(client: ollama.Client, place: Site) -> None:
    """Without a template, and without a context to go on with."""
    reply = client.generate("tiny", "<s>Hi", raw=True)
    request = place.relay.calls[-1].request
    assert isinstance(request, CompletionRequest)
    assert (request.prompts, reply.context) == (("<s>Hi",), None)


def test_the_models(client: ollama.Client, place: Site) -> None:
    """Listed, running and shown, with what clients read of them."""
    [model] = client.list().models
    assert (model.model, model.size, model.digest and len(model.digest)) == ("tiny:latest", 1000, 64)
    assert model.modified_at is not None and model.modified_at.year == 2023
    [running] = client.ps().models
    assert running.context_length == 2048
    assert running.expires_at is not None and running.expires_at.year > 2200
    place.world.texts.said = {"template": "{{ tools }}", "sampling": {"top_k": 20}, "stop": ["</s>"]}
    shown = client.show("tiny:latest")
    assert place.world.texts.asked == [Describe("tiny")]
    assert (shown.template, shown.parameters) == ("{{ tools }}", 'top_k 20\nstop "</s>"')
    assert "PARAMETER top_k 20\n" in (shown.modelfile or "")
    assert shown.capabilities == ["completion"]
    assert (shown.modelinfo or {})["echo.context_length"] == 2048


def test_a_template_of_the_request(client: ollama.Client, place: Site) -> None:
    """Goes to the board, which renders it; one of Ollama's is refused."""
    client.generate("tiny", "Hi", template="{{ messages[0].content }}")
    request = place.relay.calls[-1].request
    assert isinstance(request, ChatRequest) and request.template == "{{ messages[0].content }}"
    with pytest.raises(ollama.ResponseError, match="Go's language"):
        client.generate("tiny", "Hi", template="{{ if .System }}{{ .System }}{{ end }}{{ .Prompt }}")


def test_vectors(client: ollama.Client, place: Site) -> None:
    """Of several texts, of one by the older way, and of none."""
    place.relay.play(Embedded(0, VECTOR), Embedded(1, VECTOR), END)
    assert client.embed("tiny", ["a", "b"], dimensions=2).embeddings == [[1.0, 0.0], [1.0, 0.0]]
    assert place.relay.calls[-1].request == EmbedRequest(("a", "b"), 2, "truncate")
    assert client.embeddings("tiny", "a").embedding == [1.0, 0.0]
    assert client.embed("tiny", "").embeddings == []
    assert client.embeddings("tiny", "").embedding == []


def test_loading_and_unloading(client: ollama.Client, place: Site) -> None:
    """A request for no answer has boards do it."""
    assert client.generate("tiny").done_reason == "load"
    assert client.chat("tiny", keep_alive=0).done_reason == "unload"
    assert place.relay.told == [("load", "tiny"), ("unload", "tiny")]


def test_an_unknown_model_is_a_404(client: ollama.Client) -> None:
    """In the words that clients look for."""
    for ask in (lambda: client.chat("tiy", MESSAGES), lambda: client.show("tiy"), lambda: client.embed("tiy", "a")):
        with pytest.raises(ollama.ResponseError, match="model 'tiy' not found") as caught:
            ask()
        assert caught.value.status_code == 404


def test_a_full_queue_is_a_busy_server(client: ollama.Client, place: Site) -> None:
    """503 in Ollama's words."""
    place.relay.refuse(QueueFull("tiny", 64, 3.0))
    with pytest.raises(ollama.ResponseError, match="server busy, please try again") as caught:
        client.chat("tiny", MESSAGES)
    assert caught.value.status_code == 503


def test_an_error_in_mid_stream_is_raised(client: ollama.Client, place: Site) -> None:
    """The client sees what had come, then the error."""
    place.relay.play(Started("w", "b"), TextDelta("Hel"), Failed(FailureCode.ENGINE_LOST, "The worker died."))
    seen: list[str] = []
    with pytest.raises(ollama.ResponseError, match=r"The worker died\."):
        seen.extend(part.message.content or "" for part in client.chat("tiny", MESSAGES, stream=True))
    assert seen == ["Hel"]


@pytest.mark.parametrize(
    ("param", "message", "says"),
    [
        ("output", "This engine cannot do it.", "format: This engine cannot do it."),
        ("prompts", "'prompt' is empty.", "'prompt' is empty."),
        (None, "It broke.", "It broke."),
    ],
)
def test_a_field_is_named_in_the_sentence(
    client: ollama.Client, place: Site, param: Any, message: str, says: str
) -> None:
    """As there is no other place for it, by the name it has on this wire."""
    place.relay.play(Failed(FailureCode.UNSUPPORTED, message, param))
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("tiny", MESSAGES)
    assert (caught.value.error, caught.value.status_code) == (says, 400)


def test_results_of_tools_find_their_calls(client: ollama.Client, place: Site) -> None:
    """Some clients name neither the tool nor the call of a result."""
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("weather", "time")]
    turns: Any = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "noon", "tool_name": "time"},
        {"role": "tool", "content": "rain"},
    ]
    client.chat("tiny", turns)
    request = place.relay.calls[-1].request
    assert isinstance(request, ChatRequest)
    _, said, time, weather = request.messages
    assert [call.name for call in said.tool_calls] == ["weather", "time"]
    assert (weather.tool_call_id, time.tool_call_id) == tuple(call.id for call in said.tool_calls)
    assert (weather.name, time.name) == ("weather", "time")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_times_out_ends_its_job(place: Site, stream: bool) -> None:
    """Its timeout closes the connection, and that closes the answer."""
    place.relay.play(Hold())

    def ask() -> None:
        with pytest.raises(httpx.TimeoutException):
            list(client.chat("tiny", MESSAGES, stream=stream))  # type: ignore[call-overload]

    with ollama.Client(host=place.url, timeout=0.3) as client:
        assert place.relay.begun(ask).closed.wait(LIMIT)


def test_a_stream_is_gone_on_with_as_it_was_begun(place: Site) -> None:
    """Whoever asks for the job's events gets lines, not server-sent events."""
    place.relay.play(*hello())
    first = place.http.post("/api/chat", json={"model": "tiny", "messages": MESSAGES})
    again = place.http.get(f"/v1/jobs/{first.headers['x-job-id']}/events")
    assert again.headers["content-type"] == "application/x-ndjson"
    assert again.text == first.text


def test_a_key_is_asked_for_but_not_for_the_version() -> None:
    """Clients look whether somebody is there before they have a key."""
    with site(api_keys=("right",), drain=0) as place:
        assert place.http.get("/api/version").status_code == 200
        with (
            ollama.Client(host=place.url) as client,
            pytest.raises(ollama.ResponseError, match="API key") as caught,
        ):
            client.list()
        assert caught.value.status_code == 401
        with ollama.Client(host=place.url, headers={"Authorization": "Bearer right"}) as client:
            assert client.list().models
