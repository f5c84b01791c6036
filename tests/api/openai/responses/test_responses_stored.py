"""Responses that are stored: in the background, gone on with, cancelled, and nobody else's."""

from __future__ import annotations

import openai
import pytest

from tasks.events import ChoiceEnded, Finished, FinishReason, Queued, Started, TextDelta, ToolCallDelta, ToolCallStarted
from tasks.jobs import JobState, Lane
from tasks.requests import Message, ToolCall
from tests.api.openai.responses.calls import CALLS, WEATHER, asked, kept
from tests.api.scripted import CANCELLED, JOB, TIMINGS, USAGE, hello
from tests.api.site import Site, site
from tests.stack import LIMIT


def test_a_response_in_the_background(client: openai.OpenAI, place: Site) -> None:
    """Is there at once, waits for nobody, and is asked for until it has ended."""
    reply = client.responses.create(model="tiny", input="Hi", background=True)
    assert (reply.status, reply.output, reply.background) == ("queued", [], True)
    call = place.relay.calls[-1]
    assert (call.attended, call.lane) == (False, Lane.BACKGROUND)
    assert call.kept is not None
    assert call.kept.ttl == 86_400
    assert place.relay.answer().closed.wait(LIMIT)
    assert place.relay.answers[-1].known
    kept(place, Queued(), state=JobState.QUEUED)
    assert client.responses.retrieve(reply.id).status == "queued"
    kept(place, Queued(), Started("w", "b"), TextDelta("Hel"), state=JobState.RUNNING)
    found = client.responses.retrieve(reply.id)
    assert (found.status, found.output_text) == ("in_progress", "Hel")
    kept(place)
    found = client.responses.retrieve(reply.id)
    assert (found.status, found.output_text, found.model) == ("completed", "Hello", "tiny")


def test_a_stream_that_is_gone_on_with(client: openai.OpenAI, place: Site) -> None:
    """By the client's own means: behind the number it had come to."""
    stream = client.responses.create(model="tiny", input="Hi", background=True, stream=True)
    first = [next(stream) for _ in range(4)]
    stream.close()
    assert [event.type for event in first[:3]] == ["response.created", "response.queued", "response.in_progress"]
    kept(place)
    rest = list(client.responses.retrieve(f"resp_{JOB}", stream=True, starting_after=first[-1].sequence_number))
    assert [event.sequence_number for event in first + rest] == list(range(len(first + rest)))
    assert rest[-1].type == "response.completed"
    with client.responses.stream(response_id=f"resp_{JOB}") as again:
        assert again.get_final_response().output_text == "Hello"


def test_what_cannot_be_streamed_again_says_so(client: openai.OpenAI, place: Site) -> None:
    """Only a response that was made in the background, as a stream."""
    client.responses.create(model="tiny", input="Hi", background=True)
    kept(place)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.retrieve(f"resp_{JOB}", stream=True)
    assert caught.value.param == "stream"


def test_a_response_is_cancelled(client: openai.OpenAI, place: Site) -> None:
    """One in the background; what had been said is there, and a second time changes nothing."""
    place.relay.play(Queued(), Started("w", "b"), TextDelta("Hel"), CANCELLED)
    client.responses.create(model="tiny", input="Hi", background=True)
    kept(place, Queued(), Started("w", "b"), TextDelta("Hel"), state=JobState.RUNNING)
    place.world.jobs.ended = lambda: kept(place, state=JobState.CANCELLED)
    reply = client.responses.cancel(f"resp_{JOB}")
    assert (reply.status, reply.output_text, reply.error) == ("cancelled", "Hel", None)
    place.world.jobs.ended = lambda: pytest.fail("it had ended")
    assert client.responses.cancel(f"resp_{JOB}").status == "cancelled"


def test_only_what_is_in_the_background_is_cancelled(client: openai.OpenAI, place: Site) -> None:
    """Whoever waits for an answer ends it by leaving."""
    client.responses.create(model="tiny", input="Hi")
    kept(place)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(f"resp_{JOB}")


def test_a_conversation_goes_on(client: openai.OpenAI, place: Site) -> None:
    """With all that went before, but for the instructions of then."""
    place.relay.play(*CALLS)
    first = client.responses.create(model="tiny", input="Weather?", instructions="Be brief.", tools=[WEATHER])
    kept(place)
    place.relay.play(*hello())
    client.responses.create(
        model="tiny",
        input=[{"type": "function_call_output", "call_id": "call_a", "output": "Rain."}],
        previous_response_id=first.id,
        instructions="Be long.",
    )
    assert asked(place).messages == (
        Message("system", "Be long."),
        Message("user", "Weather?"),
        Message(
            "assistant", "Let me see.", reasoning="Hm.", tool_calls=(ToolCall("call_a", "weather", '{"city":"Köln"}'),)
        ),
        Message("tool", "Rain.", name="weather", tool_call_id="call_a"),
    )
    kept(place)
    items = list(client.responses.input_items.list(f"resp_{JOB}", order="asc", limit=2))
    assert [item.type for item in items] == ["message", "reasoning", "message", "function_call", "function_call_output"]
    newest = client.responses.input_items.list(f"resp_{JOB}", limit=1)
    assert (newest.data[0].type, newest.has_more) == ("function_call_output", True)
    assert len({item.id for item in items}) == 5


def test_a_call_that_was_cut_off_is_not_gone_on_from(client: openai.OpenAI, place: Site) -> None:
    """No tool could answer it; the words before it are."""
    place.relay.play(
        TextDelta("Let me see."),
        ToolCallStarted(0, "call_a", "weather"),
        ToolCallDelta(0, '{"ci'),
        ChoiceEnded(0, FinishReason.LENGTH),
        Finished(FinishReason.LENGTH, USAGE, TIMINGS),
    )
    client.responses.create(model="tiny", input="Weather?")
    kept(place)
    client.responses.create(model="tiny", input="Well?", previous_response_id=f"resp_{JOB}")
    assert asked(place).messages[1:] == (Message("assistant", "Let me see."), Message("user", "Well?"))


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?stream=maybe", "stream"),
        ("?starting_after=1", "starting_after"),
        ("?stream=true&starting_after=-1", "starting_after"),
        ("?stream=true&starting_after=x", "starting_after"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=101", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=msg_1", "after"),
    ],
)
def test_a_wrong_query_is_refused_by_name(place: Site, query: str, param: str) -> None:
    """As a field of a body would be; the page on the API lists them."""
    place.http.post("/v1/responses", json={"input": "Hi", "background": True, "stream": True})
    kept(place)
    error = place.http.get(f"/v1/responses/resp_{JOB}{query}").json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value")
    path = "/v1/responses/{response}" + query.split("?")[0]
    listed = place.http.get("/openapi.json").json()["paths"][path]["get"]["parameters"]
    assert param in [each["name"] for each in listed]


def test_items_by_reference(client: openai.OpenAI, place: Site) -> None:
    """As some clients send back what they were sent: the id alone."""
    place.relay.play(*CALLS)
    first = client.responses.create(model="tiny", input="Weather?")
    kept(place)
    client.responses.create(
        model="tiny",
        input=[{"role": "user", "content": "?"}, {"id": first.output[2].id}],  # type: ignore[list-item]
    )
    call = ToolCall("call_a", "weather", '{"city":"Köln"}')
    assert asked(place).messages == (Message("user", "?"), Message("assistant", "", tool_calls=(call,)))
    for unknown in (f"msg_{JOB}_9", f"msg_{JOB[::-1]}_0", "msg_1"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(model="tiny", input=[{"type": "item_reference", "id": unknown}])
        assert unknown in caught.value.message


def test_what_has_not_ended_is_not_gone_on_with(client: openai.OpenAI, place: Site) -> None:
    """Nobody knows yet what it says."""
    client.responses.create(model="tiny", input="Hi", background=True)
    kept(place, Queued(), state=JobState.QUEUED)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="And?", previous_response_id=f"resp_{JOB}")
    assert caught.value.code == "previous_response_not_ended"


def test_what_is_not_stored_is_not_there(client: openai.OpenAI, place: Site) -> None:
    """Nor is what was deleted, nor what never was."""
    client.responses.create(model="tiny", input="Hi", store=False)
    assert place.relay.calls[-1].kept is None
    client.responses.create(model="tiny", input="Hi")
    kept(place)
    client.responses.delete(f"resp_{JOB}")
    for id in (f"resp_{JOB}", "resp_../../etc", "resp_", "x" * 200):
        for ask in (
            client.responses.retrieve,
            client.responses.delete,
            client.responses.cancel,
            client.responses.input_items.list,
        ):
            with pytest.raises(openai.NotFoundError):
                ask(id)
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(model="tiny", input="Hi", previous_response_id=id)
        assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_a_response_is_its_owners() -> None:
    """Another key learns nothing of it, by whichever way it asks."""
    with site(api_keys=("mine", "other"), drain=0) as place:
        mine, other = (
            openai.OpenAI(base_url=place.url + "/v1", api_key=key, max_retries=0) for key in ("mine", "other")
        )
        with mine, other:
            mine.responses.create(model="tiny", input="Hi", background=True, stream=True).close()
            kept(place)
            id = f"resp_{JOB}"
            for ask in (
                lambda: other.responses.retrieve(id),
                lambda: list(other.responses.retrieve(id, stream=True)),
                lambda: other.responses.cancel(id),
                lambda: other.responses.delete(id),
                lambda: other.responses.input_items.list(id),
                lambda: other.responses.create(model="tiny", input="And?", previous_response_id=id),
                lambda: other.responses.create(model="tiny", input=[{"id": f"msg_{JOB}_0", "type": "item_reference"}]),
            ):
                with pytest.raises(openai.NotFoundError):
                    ask()
            assert mine.responses.retrieve(id).status == "completed"
