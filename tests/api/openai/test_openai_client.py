"""The official Python client, unchanged, against the real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from pydantic import BaseModel

from tasks.errors import ModelDown, QueueFull, UnknownModel
from tasks.events import ChoiceEnded, Failed, FailureCode, FinishReason, Queued, ReasoningDelta, Started, TextDelta
from tasks.requests import ChatRequest
from tests.api.scripted import CANCELLED, END, Hold, hello
from tests.api.site import Site, site
from tests.api.speaker import Speaker
from tests.stack import LIMIT

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(place: Site) -> Iterator[openai.OpenAI]:
    """A client that does not try again by itself."""
    with openai.OpenAI(base_url=place.url + "/v1", api_key="unused", max_retries=0, timeout=LIMIT) as client:
        yield client


def test_a_whole_chat(client: openai.OpenAI) -> None:
    """Text, finish reason, usage with its details, request id."""
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert reply.choices[0].message.content == "Hello"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert (reply.usage.total_tokens, reply.usage.prompt_tokens_details.cached_tokens) == (15, 4)  # type: ignore[union-attr]
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0  # type: ignore[union-attr]
    assert reply._request_id is not None
    assert reply._request_id.startswith("req_")


def test_a_streamed_chat_with_usage(client: openai.OpenAI) -> None:
    """The deltas join to the answer; the last chunk has no choices but the counts."""
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 3)  # type: ignore[union-attr]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_the_stream_helper(client: openai.OpenAI, place: Site) -> None:
    """The client's own accumulator ends with the same completion."""
    place.relay.play(*hello())
    with client.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Hello"


def test_several_choices(client: openai.OpenAI, place: Site) -> None:
    """Each has its own text and reason, streamed or not."""
    script = [
        Queued(),
        Started("w", "b"),
        TextDelta("a", 0),
        TextDelta("b", 1),
        ChoiceEnded(1, FinishReason.LENGTH),
        ChoiceEnded(0, FinishReason.STOP),
        END,
    ]
    place.relay.play(*script)
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, n=2)
    assert [(each.index, each.message.content, each.finish_reason) for each in reply.choices] == [
        (0, "a", "stop"),
        (1, "b", "length"),
    ]
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model="tiny", messages=MESSAGES, n=2, stream=True):
        for each in chunk.choices:
            texts[each.index] += each.delta.content or ""
    assert texts == {0: "a", 1: "b"}


def test_thinking_arrives_beside_the_answer(client: openai.OpenAI, place: Site) -> None:
    """Under both names that clients read, and never in the content."""
    place.relay.play(ReasoningDelta("Hm."), TextDelta("Yes."), ChoiceEnded(0, FinishReason.STOP), END)
    message = client.chat.completions.create(model="tiny", messages=MESSAGES).choices[0].message
    assert message.content == "Yes."
    assert message.model_extra == {"reasoning_content": "Hm.", "reasoning": "Hm."}


def test_a_plain_completion(client: openai.OpenAI, place: Site) -> None:
    """Whole and streamed, with the extras in extra_body."""
    reply = client.completions.create(model="tiny", prompt="x", max_tokens=5, extra_body={"top_k": 3, "min_p": 0.1})
    assert (reply.choices[0].text, reply.object) == ("Hello", "text_completion")
    sampling = place.relay.calls[-1].request.sampling
    assert (sampling.top_k, sampling.min_p) == (3, 0.1)
    chunks = client.completions.create(model="tiny", prompt="x", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"


def test_the_models(client: openai.OpenAI) -> None:
    """Listed, and shown by any of their names, one with a slash included."""
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("org/tiny").created == 1700000000
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("../../etc/passwd")
    assert missing.value.code == "model_not_found"


def test_no_models_while_the_queue_is_away_is_no_empty_list(client: openai.OpenAI, place: Site) -> None:
    """Nobody knows then which there are."""
    place.world.roster.known.clear()
    assert list(client.models.list()) == []
    place.world.roster.away = True
    with pytest.raises(openai.InternalServerError) as away:
        client.with_options(max_retries=0).models.list()
    assert away.value.status_code == 503


def test_an_unknown_model_is_a_not_found_error(client: openai.OpenAI, place: Site) -> None:
    """With code, field, a hint, and the request id."""
    place.relay.refuse(UnknownModel("tiy", "tiny"))
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="tiy", messages=MESSAGES)
    error = caught.value
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    assert "'tiny'" in error.message
    assert error.request_id is not None


def test_a_wrong_field_is_a_bad_request_error(client: openai.OpenAI) -> None:
    """Named as the client wrote it."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=3)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, modalities=["audio"])
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "modalities")


def test_a_format_that_cannot_be_kept_is_named_as_the_client_wrote_it(client: openai.OpenAI, place: Site) -> None:
    """Whoever finds that out."""
    from tasks.errors import JobFailed

    place.relay.refuse(JobFailed("j", Failed(FailureCode.UNSUPPORTED, "No.", "output")))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, response_format={"type": "json_object"})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "response_format")


def test_a_context_too_long_is_a_bad_request_even_in_a_stream(client: openai.OpenAI, place: Site) -> None:
    """Known before the first byte, it is a status."""
    from tasks.errors import JobFailed

    place.relay.refuse(JobFailed("j", Failed(FailureCode.CONTEXT_TOO_LONG, "Too long.", "messages")))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def test_a_full_queue_is_a_rate_limit_error(client: openai.OpenAI, place: Site) -> None:
    """With the time after which the client would try again."""
    place.relay.refuse(QueueFull("tiny", 64, 3.0))
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert (caught.value.code, caught.value.response.headers["retry-after"]) == ("rate_limit_exceeded", "3")


def test_a_model_that_is_down_is_a_server_error(client: openai.OpenAI, place: Site) -> None:
    """503, which clients try again."""
    place.relay.refuse(ModelDown("tiny", "its board is away."))
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert (caught.value.status_code, caught.value.code) == (503, "model_unavailable")


def test_a_refused_client_tries_again_by_itself(place: Site) -> None:
    """With its retries on, it waits as told and asks once more."""
    place.relay.refuse(QueueFull("tiny", 64, 1.0))
    client = openai.OpenAI(base_url=place.url + "/v1", api_key="x", max_retries=1, timeout=LIMIT)
    with client, pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert len(place.relay.calls) == 2


def test_a_cancelled_job_is_not_tried_again(place: Site) -> None:
    """A conflict that says so is asked for once only."""
    place.relay.play(Started("w", "b"), CANCELLED)
    client = openai.OpenAI(base_url=place.url + "/v1", api_key="x", timeout=LIMIT)
    with client, pytest.raises(openai.ConflictError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert caught.value.code == "job_cancelled"
    assert len(place.relay.calls) == 1


def test_an_error_in_mid_stream_is_raised(client: openai.OpenAI, place: Site) -> None:
    """The client sees what had come, then the error; not a short answer that looks whole."""
    place.relay.play(Started("w", "b"), TextDelta("Hel"), Failed(FailureCode.ENGINE_LOST, "The worker died."))
    seen: list[str] = []
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match=r"The worker died\.") as caught:
        seen.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert ("".join(seen), caught.value.code) == ("Hel", "engine_lost")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_times_out_ends_its_job(place: Site, stream: bool) -> None:
    """Its timeout closes the connection, and that closes the answer."""
    place.relay.play(Hold())
    client = openai.OpenAI(base_url=place.url + "/v1", api_key="x", max_retries=0, timeout=0.3)

    def ask() -> None:
        # In the middle of a stream the client lets its HTTP library's own error through.
        with pytest.raises((openai.APITimeoutError, httpx2.TimeoutException)):
            list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=stream))

    with client:
        assert place.relay.begun(ask).closed.wait(LIMIT)


def test_a_wrong_key_is_an_authentication_error() -> None:
    """As at the real one; a right key passes."""
    with site(api_keys=("right",), drain=0) as place:
        client = openai.OpenAI(base_url=place.url + "/v1", api_key="wrong", max_retries=0)
        with client, pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=place.url + "/v1", api_key="right", max_retries=0) as client:
            assert client.models.list().data


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": Weather.model_json_schema()}},
    {"type": "function", "function": {"name": "time", "description": "Tells the time."}},
]
THOUGHT = "<think>\nTwo things.\n</think>\n\n"
BOTH = (
    THOUGHT + "Let me see.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)


def test_a_loop_with_two_tools(client: openai.OpenAI, place: Site) -> None:
    """What the model calls goes to the client, and what that answers back to the model, by the calls' ids."""
    speaker = Speaker(BOTH, "<think>Good.</think>It rains at noon.")
    place.relay.speak(speaker)
    messages = list(MESSAGES)
    first = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.content == "Let me see."
    assert first.message.reasoning_content == "Two things."  # type: ignore[attr-defined]
    calls = first.message.tool_calls or []
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls if call.type == "function"] == [
        ("weather", {"city": "Köln", "days": 2}),
        ("time", {}),
    ]
    messages.append(first.message)
    messages += [{"role": "tool", "tool_call_id": call.id, "content": f"result {call.id}"} for call in calls]
    last = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS)
    assert (last.choices[0].message.content, last.choices[0].finish_reason) == ("It rains at noon.", "stop")
    read = speaker.prompts[-1]
    assert "Tells the time." in read
    assert (
        f'assistant: Let me see. {calls[0].id} {{"name": "weather", "arguments": {{"city": "Köln", "days": 2}}}}'
        in read
    )
    assert f"tool: result {calls[1].id} for {calls[1].id} of time" in read
    assert last.usage is not None
    assert last.usage.completion_tokens_details.reasoning_tokens == -(-len("<think>Good.</think>") // 3)  # type: ignore[union-attr]


def test_calls_are_streamed(client: openai.OpenAI, place: Site) -> None:
    """Thought, text, then each call: id and name first, arguments in parts. The client puts them together."""
    place.relay.speak(Speaker(BOTH, size=1))
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion().choices[0]
    assert kinds.count("tool_calls.function.arguments.delta") > 20
    assert kinds.count("tool_calls.function.arguments.done") == 2
    calls = final.message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", '{"city": "Köln", "days": 2}'),
        ("time", "{}"),
    ]
    assert (final.message.content, final.finish_reason) == ("Let me see.", "tool_calls")


def test_tools_of_a_schema_are_parsed(client: openai.OpenAI, place: Site) -> None:
    """The client's own way to tools of pydantic: strict ones."""
    place.relay.speak(Speaker(BOTH))
    tool = openai.pydantic_function_tool(Weather, name="weather")
    reply = client.chat.completions.parse(model="tiny", messages=MESSAGES, tools=[tool], parallel_tool_calls=False)
    [call] = reply.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == Weather(city="Köln", days=2)
    [asked] = place.relay.calls
    assert isinstance(asked.request, ChatRequest)
    assert asked.request.tools[0].strict


def test_a_model_that_may_not_call(client: openai.OpenAI, place: Site) -> None:
    """Does not see the tools, and what looks like a call is text."""
    speaker = Speaker(BOTH)
    place.relay.speak(speaker)
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="none").choices[0]
    assert (reply.message.tool_calls, reply.finish_reason) == (None, "stop")
    assert "<tool_call>" in (reply.message.content or "")
    assert "weather" not in speaker.prompts[0]


def test_a_model_that_knows_no_tools(client: openai.OpenAI, place: Site) -> None:
    """Is not given any, and the client is told so."""
    place.relay.speak(Speaker("Hi", template="{{ messages[0].content }}"))
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tools")


def test_a_budget_of_thought(client: openai.OpenAI, place: Site) -> None:
    """Ends the thought; what the model says behind it is the answer."""
    place.relay.speak(Speaker("<think>" + "hm " * 50, size=1))
    reply = client.chat.completions.create(
        model="tiny", messages=MESSAGES, extra_body={"thinking_budget_tokens": 20}, max_tokens=60
    )
    assert reply.choices[0].message.reasoning_content == "hm hm hm hm h"  # type: ignore[attr-defined]
    assert reply.usage is not None
    assert reply.usage.completion_tokens_details.reasoning_tokens == 29  # type: ignore[union-attr]
