"""The official Python client, unchanged, against the real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest

from tasks.api_keys import Scope
from tasks.commands import Count
from tasks.errors import ModelDown, QueueFull, UnknownModel
from tasks.events import (
    ChoiceEnded,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Queued,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from tasks.requests import ChatRequest, Message, Tool, ToolCall
from tests.api.scripted import CANCELLED, END, TIMINGS, USAGE, Hold, Step, hello
from tests.api.site import Site
from tests.stack import LIMIT

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "name": "weather",
    "description": "Of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALLS: list[Step] = [
    Queued(),
    Started("w", "b"),
    TextDelta("Let me see. "),
    ToolCallStarted(0, "call_a", "weather"),
    ToolCallDelta(0, '{"city":'),
    ToolCallDelta(0, '"Köln"}'),
    ChoiceEnded(0, FinishReason.TOOL_CALLS),
    Finished(FinishReason.TOOL_CALLS, USAGE, TIMINGS),
]


@pytest.fixture
def client(place: Site) -> Iterator[anthropic.Anthropic]:
    """A client that does not try again by itself."""
    with anthropic.Anthropic(base_url=place.url, api_key="unused", max_retries=0, timeout=LIMIT) as client:
        yield client


def asked(place: Site) -> ChatRequest:
    """What the queue was asked last."""
    request = place.relay.calls[-1].request
    assert isinstance(request, ChatRequest)
    return request


def test_a_whole_message(client: anthropic.Anthropic) -> None:
    """Text, reason, usage, ids."""
    message = client.messages.create(model="tiny", max_tokens=64, messages=MESSAGES, system="Be kind.")
    assert [(block.type, block.text) for block in message.content] == [("text", "Hello")]  # type: ignore[union-attr]
    assert (message.stop_reason, message.stop_sequence, message.model) == ("end_turn", None, "tiny")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (8, 4, 3)
    assert message.id.startswith("msg_")
    assert message._request_id is not None and message._request_id.startswith("req_")


def test_the_stream_helper(client: anthropic.Anthropic) -> None:
    """The texts as they come, and the same message at the end."""
    with client.messages.stream(model="tiny", max_tokens=64, messages=MESSAGES) as stream:
        assert list(stream.text_stream) == ["Hel", "lo"]
        message = stream.get_final_message()
    assert (message.content[0].text, message.stop_reason) == ("Hello", "end_turn")  # type: ignore[union-attr]
    assert (message.usage.input_tokens, message.usage.output_tokens) == (8, 3)


def test_events_come_in_their_order(client: anthropic.Anthropic) -> None:
    """The message begins, a block begins, says, ends; the message ends."""
    stream = client.messages.create(model="tiny", max_tokens=64, messages=MESSAGES, stream=True)
    assert [event.type for event in stream] == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_tool_is_called_and_answered(client: anthropic.Anthropic, place: Site, streamed: bool) -> None:
    """The client sends back what it got, and the queue sees the same call and its result."""
    place.relay.play(*CALLS)
    if streamed:
        with client.messages.stream(model="tiny", max_tokens=64, messages=MESSAGES, tools=[WEATHER]) as stream:
            said = stream.get_final_message()
    else:
        said = client.messages.create(model="tiny", max_tokens=64, messages=MESSAGES, tools=[WEATHER])
    assert said.stop_reason == "tool_use"
    call = said.content[1]
    assert call.type == "tool_use"
    assert (call.id, call.name, call.input) == ("toolu_call_a", "weather", {"city": "Köln"})
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Rain"}]}
    turns: Any = [*MESSAGES, {"role": "assistant", "content": said.content}, {"role": "user", "content": [result]}]
    client.messages.create(model="tiny", max_tokens=64, messages=turns, tools=[WEATHER])
    request = asked(place)
    assert request.tools == (Tool("weather", "Of a city", WEATHER["input_schema"]),)
    assert request.messages == (
        Message("user", "Hi"),
        Message("assistant", "Let me see. ", tool_calls=(ToolCall("call_a", "weather", '{"city":"Köln"}'),)),
        Message("tool", "Rain", name="weather", tool_call_id="call_a"),
    )


def test_a_conversation_is_counted(client: anthropic.Anthropic, place: Site) -> None:
    """With its tools, by a board, and nothing is queued."""
    place.world.texts.said = 42
    counted = client.messages.count_tokens(model="tiny", messages=MESSAGES, system="Be kind.", tools=[WEATHER])
    assert counted.input_tokens == 42
    [command] = place.world.texts.asked
    assert isinstance(command, Count)
    assert [message.role for message in command.request.messages] == ["system", "user"]
    assert [tool.name for tool in command.request.tools] == ["weather"]
    assert place.relay.calls == []


def test_the_tool_runner(client: anthropic.Anthropic, place: Site) -> None:
    """The client's own loop calls a function of Python, and asks again with what it returned."""
    cities: list[str] = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Of a city.

        Args:
            city: Its name.
        """
        cities.append(city)
        place.relay.script = [TextDelta("Wet."), ChoiceEnded(0, FinishReason.STOP), END]
        return "Rain"

    place.relay.play(*CALLS)
    runner = client.beta.messages.tool_runner(model="tiny", max_tokens=64, messages=MESSAGES, tools=[weather])
    final = runner.until_done()
    assert (cities, final.content[0].text) == (["Köln"], "Wet.")  # type: ignore[union-attr]
    assert asked(place).messages[-1].content == "Rain"


def test_thoughts_are_blocks_of_their_own(client: anthropic.Anthropic, place: Site) -> None:
    """Where they were asked for; sent back they are the turn's thoughts again."""
    place.relay.play(Queued(), ReasoningDelta("Hm."), TextDelta("Yes."), ChoiceEnded(0, FinishReason.STOP), END)
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    with client.messages.stream(model="tiny", max_tokens=2048, messages=MESSAGES, thinking=thinking) as stream:
        said = stream.get_final_message()
    assert [block.type for block in said.content] == ["thinking", "text"]
    assert said.content[0].thinking == "Hm."  # type: ignore[union-attr]
    assert said.content[0].signature  # type: ignore[union-attr]
    assert asked(place).thinking_budget == 1024
    turns: Any = [*MESSAGES, {"role": "assistant", "content": said.content}, *MESSAGES]
    quiet = client.messages.create(model="tiny", max_tokens=64, messages=turns)
    assert asked(place).messages[1] == Message("assistant", "Yes.", reasoning="Hm.")
    assert [block.type for block in quiet.content] == ["text"]
    assert asked(place).template_options == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (UnknownModel("x", "tiny"), anthropic.NotFoundError, 404),
        (QueueFull("tiny", 64, 3.0), anthropic.RateLimitError, 429),
        (ModelDown("tiny", "no board"), anthropic.InternalServerError, 529),
        (ZeroDivisionError("x"), anthropic.InternalServerError, 500),
    ],
    ids=["unknown model", "full", "down", "defect"],
)
def test_errors_are_the_clients_own(
    client: anthropic.Anthropic, place: Site, error: Exception, kind: type[anthropic.APIStatusError], status: int
) -> None:
    """By their status and type, with the id under which the server's log has the request."""
    place.relay.refuse(error)
    with pytest.raises(kind) as caught:
        client.messages.create(model="x", max_tokens=64, messages=MESSAGES)
    body: Any = caught.value.body
    assert caught.value.status_code == status
    assert body["request_id"] == caught.value.request_id
    assert body["error"]["message"]


def test_a_full_queue_is_tried_again(place: Site) -> None:
    """After the time that the answer names, by itself."""
    place.relay.refuse(QueueFull("tiny", 64, 1.0))
    waits: list[str] = []

    def look(reply: httpx2.Response) -> None:
        waits.append(reply.headers.get("retry-after", ""))
        place.relay.play(*hello())

    http = anthropic.DefaultHttpxClient(event_hooks={"response": [look]})
    with anthropic.Anthropic(base_url=place.url, api_key="unused", max_retries=1, http_client=http) as client:
        message = client.messages.create(model="tiny", max_tokens=64, messages=MESSAGES)
    assert (waits, message.content[0].text) == (["1", ""], "Hello")  # type: ignore[union-attr]


def test_an_error_in_mid_stream_is_raised(client: anthropic.Anthropic, place: Site) -> None:
    """A failure and a cancellation alike; what was said before is there."""
    for end in (Failed(FailureCode.ENGINE_FAILED, "It broke."), CANCELLED):
        place.relay.play(Queued(), TextDelta("Hel"), end)
        texts: list[str] = []
        with (
            pytest.raises(anthropic.APIStatusError, match=r"It broke|cancelled"),
            client.messages.stream(model="tiny", max_tokens=64, messages=MESSAGES) as stream,
        ):
            texts.extend(stream.text_stream)
        assert texts == ["Hel"]


def test_a_client_that_leaves_closes_its_answer(client: anthropic.Anthropic, place: Site) -> None:
    """In mid-stream."""
    place.relay.play(Queued(), TextDelta("Hel"), Hold())
    with client.messages.stream(model="tiny", max_tokens=64, messages=MESSAGES) as stream:
        assert next(iter(stream.text_stream)) == "Hel"
    assert place.relay.answer().closed.wait(LIMIT)


def test_models_are_listed(client: anthropic.Anthropic) -> None:
    """In this dialect, on the path that OpenAI's clients use as well."""
    [model] = list(client.models.list())
    assert (model.id, model.type, model.max_input_tokens, model.created_at.year) == ("tiny", "model", 2048, 2023)
    assert client.models.retrieve("org/tiny").id == "tiny"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("absent")


def test_a_key_may_be_sent_as_its_clients_do(place: Site) -> None:
    """In `x-api-key`; a wrong one is an error of this dialect."""
    place.world.api_keys.make("right", Scope.INFERENCE)
    for key, good in (("right", True), ("wrong", False)):
        with anthropic.Anthropic(base_url=place.url, api_key=key, max_retries=0) as client:
            if good:
                assert client.messages.create(model="tiny", max_tokens=64, messages=MESSAGES).content
                continue
            with pytest.raises(anthropic.AuthenticationError) as caught:
                client.messages.create(model="tiny", max_tokens=64, messages=MESSAGES)
            assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
