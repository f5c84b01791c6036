"""Responses through the official Python client, unchanged, against the real server."""

from __future__ import annotations

from typing import Any

import openai
import pydantic
import pytest

from tasks.commands import Count
from tasks.errors import JobFailed, QueueFull
from tasks.events import (
    ChoiceEnded,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)
from tasks.requests import JsonSchema, Message, Tool, ToolCall, ToolChoice
from tests.api.openai.responses.calls import CALLS, WEATHER, asked, kept
from tests.api.scripted import END, JOB, TIMINGS, USAGE, Hold, hello
from tests.api.site import Site, site
from tests.stack import LIMIT


def test_a_whole_response(client: openai.OpenAI, place: Site) -> None:
    """Text, status, usage with its details, and what was asked for."""
    reply = client.responses.create(
        model="tiny", input="Hi", instructions="Be brief.", max_output_tokens=9, metadata={"a": "b"}
    )
    assert (reply.output_text, reply.status, reply.id) == ("Hello", "completed", f"resp_{JOB}")
    assert reply.usage is not None
    assert reply.usage.total_tokens == 15
    assert reply.usage.input_tokens_details.cached_tokens == 4
    assert reply.usage.output_tokens_details.reasoning_tokens == 0
    assert (reply.error, reply.incomplete_details, reply.metadata, reply.instructions) == (
        None,
        None,
        {"a": "b"},
        "Be brief.",
    )
    assert asked(place).messages == (Message("system", "Be brief."), Message("user", "Hi"))
    assert asked(place).max_tokens == 9
    assert reply._request_id is not None


def test_the_stream_helper(client: openai.OpenAI, place: Site) -> None:
    """The client's own accumulator ends with the same response."""
    place.relay.play(*CALLS)
    with client.responses.stream(model="tiny", input="Weather?", tools=[WEATHER]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert final.output_text == "Let me see."
    assert final.output[2].arguments == '{"city":"Köln"}'  # type: ignore[union-attr]
    place.relay.play(*CALLS)
    whole = client.responses.create(model="tiny", input="Weather?", tools=[WEATHER])
    assert [item.id for item in whole.output] == [item.id for item in final.output]
    assert whole.output_text == final.output_text


def test_a_structured_answer(client: openai.OpenAI, place: Site) -> None:
    """The schema reaches the model, and the client reads the answer by it."""

    class City(pydantic.BaseModel):
        name: str

    place.relay.play(TextDelta('{"name":"Köln"}'), ChoiceEnded(0, FinishReason.STOP), END)
    reply = client.responses.parse(model="tiny", input="Which?", text_format=City)
    assert reply.output_parsed == City(name="Köln")
    output = asked(place).output
    assert isinstance(output, JsonSchema)
    assert output.schema["properties"]["name"]["type"] == "string"
    assert reply.text is not None
    assert reply.text.format.type == "json_schema"  # type: ignore[union-attr]


def test_tools_and_their_results(client: openai.OpenAI, place: Site) -> None:
    """A turn with a thought, words and two calls is one turn of the model's; each result knows its tool."""
    client.responses.create(
        model="tiny",
        input=[
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "Wea"}, {"type": "input_text", "text": "ther?"}],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": "Let me see."},
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city":"Köln"}'},
            {"type": "custom_tool_call", "call_id": "b", "name": "note", "input": 'say "x"'},
            {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "Rain."}]},
            {"type": "custom_tool_call_output", "call_id": "b", "output": "noted"},
        ],
        tools=[WEATHER, {"type": "custom", "name": "note"}, {"type": "web_search"}],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
    )
    request = asked(place)
    assert request.messages == (
        Message("user", "Weather?"),
        Message(
            "assistant",
            "Let me see.",
            reasoning="Hm.",
            tool_calls=(ToolCall("a", "weather", '{"city":"Köln"}'), ToolCall("b", "note", '{"input": "say \\"x\\""}')),
        ),
        Message("tool", "Rain.", name="weather", tool_call_id="a"),
        Message("tool", "noted", name="note", tool_call_id="b"),
    )
    assert request.tools[0] == Tool("weather", "Tells it.", WEATHER["parameters"], strict=True)
    assert [tool.name for tool in request.tools] == ["weather", "note"]
    assert request.tool_choice == ToolChoice("required", ("weather",))
    assert not request.parallel_tool_calls


def test_tools_that_codex_sends(client: openai.OpenAI, place: Site) -> None:
    """Free text and namespaces are functions to the model, and come back as the client named them."""
    place.relay.play(
        ToolCallStarted(0, "call_a", "apply_patch"),
        ToolCallDelta(0, '{"input": "*** Begin'),
        ToolCallDelta(0, ' Patch"}'),
        ToolCallStarted(1, "call_b", "crm__find"),
        ToolCallDelta(1, "{}"),
        ChoiceEnded(0, FinishReason.TOOL_CALLS),
        END,
    )
    tools: Any = [
        {
            "type": "custom",
            "name": "apply_patch",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"},
        },
        {
            "type": "namespace",
            "name": "crm",
            "description": "Customers.",
            "tools": [{"type": "function", "name": "find"}],
        },
    ]
    events = list(client.responses.create(model="tiny", input="Go", tools=tools, stream=True))
    final = events[-1].response  # type: ignore[union-attr]
    custom, found = (item.to_dict() for item in final.output)
    assert (custom["type"], custom["input"]) == ("custom_tool_call", "*** Begin Patch")
    assert (found["type"], found["name"], found["namespace"]) == ("function_call", "find", "crm")
    assert [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"] == [
        "*** Begin Patch"
    ]
    assert [tool.name for tool in asked(place).tools] == ["apply_patch", "crm__find"]
    assert "start: x" in asked(place).tools[0].description
    assert [tool.type for tool in final.tools] == ["custom", "namespace"]


def test_thoughts_in_the_place_of_a_summary(client: openai.OpenAI, place: Site) -> None:
    """For those who ask for one; else they are told as what they are."""
    place.relay.play(ReasoningDelta("Hm."), TextDelta("Yes."), ChoiceEnded(0, FinishReason.STOP), END)
    asking = client.responses.create(model="tiny", input="?", reasoning={"effort": "low", "summary": "auto"})
    thought = asking.output[0].to_dict()
    assert (thought["summary"], thought["content"]) == ([{"type": "summary_text", "text": "Hm."}], [])
    assert asked(place).template_options == {"enable_thinking": True, "reasoning_effort": "low"}
    plain = client.responses.create(model="tiny", input="?", reasoning={"effort": "none"})
    thought = plain.output[0].to_dict()
    assert (thought["summary"], thought["content"]) == ([], [{"type": "reasoning_text", "text": "Hm."}])
    assert asked(place).template_options == {"enable_thinking": False}


def test_log_probabilities(client: openai.OpenAI, place: Site) -> None:
    """With as many likeliest tokens as were asked for."""
    place.relay.play(TextDelta("é", 0, (TokenLogprob(b"\xc3\xa9", -0.5, ((b"\xc3\xa9", -0.5),)),)), END)
    reply = client.responses.create(model="tiny", input="?", include=["message.output_text.logprobs"], top_logprobs=1)
    told = reply.output[0].to_dict()["content"][0]["logprobs"]  # type: ignore[index]
    one = {"token": "é", "bytes": [195, 169], "logprob": -0.5}
    assert told == [one | {"top_logprobs": [one]}]
    assert asked(place).logprobs == 1
    kept(place)
    assert client.responses.retrieve(reply.id).output == reply.output
    client.responses.create(model="tiny", input="And?", previous_response_id=reply.id)
    kept(place)
    before = client.responses.input_items.list(reply.id).data[1].to_dict()
    assert before["content"] == [{"type": "output_text", "text": "é", "annotations": [], "logprobs": []}]


def test_an_answer_that_was_cut_off_is_incomplete(client: openai.OpenAI, place: Site) -> None:
    """And says by what."""
    place.relay.play(
        TextDelta("Hel"), ChoiceEnded(0, FinishReason.LENGTH), Finished(FinishReason.LENGTH, USAGE, TIMINGS)
    )
    reply = client.responses.create(model="tiny", input="Hi", max_output_tokens=1)
    assert reply.incomplete_details is not None
    assert (reply.status, reply.incomplete_details.reason, reply.output_text) == (
        "incomplete",
        "max_output_tokens",
        "Hel",
    )
    assert reply.output[0].status == "incomplete"  # type: ignore[union-attr]
    events = list(client.responses.create(model="tiny", input="Hi", stream=True))
    assert events[-1].type == "response.incomplete"


def test_what_was_left_out_is_told(client: openai.OpenAI, place: Site) -> None:
    """Of a conversation that did not fit, to who allowed it."""
    place.relay.play(TextDelta("Hel"), Finished(FinishReason.STOP, Usage(12, 3, left_out=40), TIMINGS))
    reply = client.responses.create(model="tiny", input="Hi", truncation="auto")
    assert reply.usage is not None
    assert reply.usage.input_tokens_details.model_extra == {"left_out_tokens": 40}
    assert asked(place).overflow == "truncate"


def test_a_failure_in_mid_stream(client: openai.OpenAI, place: Site) -> None:
    """Is the last event, and has what was said."""
    place.relay.play(Started("w", "b"), TextDelta("Hel"), Failed(FailureCode.ENGINE_LOST, "The worker died."))
    last = list(client.responses.create(model="tiny", input="Hi", stream=True))[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert (last.response.error.code, last.response.error.message) == ("engine_lost", "The worker died.")
    assert (last.response.status, last.response.output_text) == ("failed", "Hel")


def test_a_refusal_is_a_status(client: openai.OpenAI, place: Site) -> None:
    """As with chats."""
    place.relay.refuse(QueueFull("tiny", 64, 3.0))
    with pytest.raises(openai.RateLimitError) as full:
        client.responses.create(model="tiny", input="Hi")
    assert full.value.code == "rate_limit_exceeded"


def test_a_field_of_the_vocabulary_is_named_as_here(client: openai.OpenAI, place: Site) -> None:
    """An engine that cannot do something names what the shared vocabulary calls it."""
    place.relay.refuse(JobFailed("j", Failed(FailureCode.UNSUPPORTED, "No.", "output")))
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="Hi")
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "text.format")


def test_input_tokens_are_counted(client: openai.OpenAI, place: Site) -> None:
    """By a board, of the request as it would be queued; what went before is counted, too."""
    place.relay.play(*CALLS)
    first = client.responses.create(model="tiny", input="Weather?", tools=[WEATHER])
    kept(place)
    place.world.texts.said = 321
    counted = client.responses.input_tokens.count(
        model="tiny", input="And?", previous_response_id=first.id, instructions="Be brief.", tools=[WEATHER]
    )
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", 321)
    place.relay.play(*hello())
    client.responses.create(
        model="tiny", input="And?", previous_response_id=first.id, instructions="Be brief.", tools=[WEATHER]
    )
    assert place.world.texts.asked == [Count("tiny", asked(place))]


def test_a_conversation_may_be_too_long() -> None:
    """With what went before it has more items, or more bytes, than a request may."""
    small = site(max_messages=4, max_body=2000, drain=0)
    with small as place, openai.OpenAI(base_url=place.url + "/v1", api_key="x", max_retries=0) as client:
        user: Any = {"role": "user", "content": "Hi"}
        client.responses.create(model="tiny", input=[user, user])
        kept(place)
        go_on: Any = {"model": "tiny", "previous_response_id": f"resp_{JOB}"}
        with pytest.raises(openai.BadRequestError) as many:
            client.responses.create(input=[user, user], **go_on)
        assert (many.value.param, "5 items" in many.value.message) == ("input", True)
        with pytest.raises(openai.APIStatusError) as large:
            client.responses.create(input="x" * 1700, **go_on)
        assert (large.value.status_code, large.value.code) == (413, "request_too_large")
        assert len(place.relay.calls) == 1
        client.responses.create(input="x" * 100, **go_on)


def test_a_thought_begins_a_turn(client: openai.OpenAI, place: Site) -> None:
    """Behind words or calls, as words do behind words; what is left alone is a turn as well."""
    thought: Any = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    said: Any = {"role": "assistant", "content": "So."}
    client.responses.create(model="tiny", input=[thought, said, thought, said, said, thought])
    assert asked(place).messages == (
        Message("assistant", "So.", reasoning="Hm."),
        Message("assistant", "So.", reasoning="Hm."),
        Message("assistant", "So."),
        Message("assistant", "", reasoning="Hm."),
    )


@pytest.mark.parametrize("content", ["Hm.", [{"type": "text", "text": "Hm."}], [{"type": "refusal", "refusal": "Hm."}]])
def test_a_thought_is_read_however_it_is_written(client: openai.OpenAI, place: Site, content: Any) -> None:
    """Its content is taken as a message's is."""
    thought: Any = {"type": "reasoning", "summary": [], "content": content}
    client.responses.create(model="tiny", input=[{"role": "user", "content": "Hi"}, thought])
    assert asked(place).messages[1:] == (Message("assistant", "", reasoning="Hm."),)


def test_a_client_that_leaves_ends_what_it_waited_for(place: Site) -> None:
    """Its response is a job that somebody waits for."""
    place.relay.play(Hold())
    client = openai.OpenAI(base_url=place.url + "/v1", api_key="x", max_retries=0, timeout=0.3)

    def ask() -> None:
        with pytest.raises(openai.APITimeoutError):
            client.responses.create(model="tiny", input="Hi")

    with client:
        assert place.relay.begun(ask).closed.wait(LIMIT)
    assert place.relay.calls[-1].attended
