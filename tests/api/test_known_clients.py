"""What is known of widely used clients: the requests nobody waits for, and the clock in a system message."""

from __future__ import annotations

from typing import Any

import pytest

from api import known_clients
from api.known_clients import clock_last, is_side_request, without_own_tools
from tasks.jobs import Lane
from tasks.requests import ChatRequest, CompletionRequest, Message, Tool, ToolCall, ToolChoice
from tests.api.site import Site, site

CLOCK = "Current time is 14:23:11. Today's date is 2026-11-27."
CHAT = "### Chat History:\n<chat_history>\nUSER: Hi\nASSISTANT: Hello\n</chat_history>"


def task(wanted: str) -> str:
    """A side request as Open WebUI puts it together, shortened."""
    return f"### Task:\nDo it well.\n\n### Guidelines:\n- Be short.\n\n### Output:\nJSON format: {wanted}\n\n{CHAT}"


def chat(*contents: str, role: Any = "user") -> ChatRequest:
    return ChatRequest(tuple(Message(role, content) for content in contents))


@pytest.mark.parametrize("key", ["title", "tags", "follow_ups"])
def test_a_side_request_is_known(key: str) -> None:
    """By its one turn: a task, the key of the answer, the chat."""
    assert is_side_request(chat(task(f'{{ "{key}": "…" }}')))


@pytest.mark.parametrize(
    "request_",
    [
        chat("Hi"),
        chat(task('{ "queries": [] }')),  # a chat waits for these
        chat(task("whatever") + '"title": "in the chat"'),
        chat("What does this do?\n" + task('{ "title": "…" }')),
        chat('### Task:\nWrite JSON: { "title": "…" }'),
        chat("Hi", task('{ "title": "…" }')),
        chat(task('{ "title": "…" }'), role="system"),
        CompletionRequest((task('{ "title": "…" }'),)),
    ],
)
def test_what_somebody_waits_for_is_none(request_: Any) -> None:
    """Nor is a question about such a request."""
    assert not is_side_request(request_)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_side_requests_go_behind_chats(place: Site, path: str) -> None:
    """In every dialect; a chat does not."""
    for text, lane in ((task('{ "tags": [] }'), Lane.BACKGROUND), ("Hi", Lane.INTERACTIVE)):
        body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
        body |= {"options": {"num_predict": 50}} if path == "/api/chat" else {"max_tokens": 50}
        assert place.http.post(path, json=body).status_code == 200
        assert place.relay.calls[-1].lane is lane


def test_the_clock_goes_to_the_end() -> None:
    """Its own words stay, and so does everything else."""
    said = clock_last(ChatRequest((Message("system", f"{CLOCK}\nYou are a voice.\nBe kind.\n"), Message("user", "Hi"))))
    assert said.messages == (Message("system", f"You are a voice.\nBe kind.\n{CLOCK}"), Message("user", "Hi"))
    assert clock_last(said) == said


@pytest.mark.parametrize(
    "content",
    [
        CLOCK,
        f"{CLOCK}\n",
        f"{CLOCK} You are a voice.",
        f"You are a voice.\n{CLOCK}\nBe kind.",
        "Current time is now.\nBe.",
    ],
)
def test_another_clock_stays_where_it_is(content: str) -> None:
    """Only a line of its own at the very beginning, in the one form that is known, is moved."""
    for request in (chat(content, "Hi", role="system"), ChatRequest(())):
        assert clock_last(request) is request
    assert clock_last(chat(f"{CLOCK}\nWhat time is it?")) == chat(f"{CLOCK}\nWhat time is it?")


def test_both_can_be_switched_off() -> None:
    """By a setting each."""
    system = {"role": "system", "content": f"{CLOCK}\nBe kind."}
    with site(side_requests=False, clock_last=False, drain=0) as place:
        for messages in ([{"role": "user", "content": task('{ "title": "…" }')}], [system]):
            assert place.http.post("/v1/chat/completions", json={"messages": messages}).status_code == 200
        first, second = place.relay.calls
        assert first.lane is Lane.INTERACTIVE
        assert second.request == chat(system["content"], role="system")


def own_tools(count: int, size: int = 700) -> tuple[Tool, ...]:
    """So many of Open WebUI's, each described in about as many bytes."""
    names = ["get_current_timestamp", *sorted(known_clients._OWN_TOOLS - {"get_current_timestamp"})]
    return tuple(Tool(name, "x" * size) for name in names[:count])


def test_tools_that_nobody_asked_for_are_left_out() -> None:
    """Where the model knows none, or they would take more than half of its context; else they stay."""
    asked = ChatRequest((Message("user", "Hi"),), tools=own_tools(36), tool_choice=ToolChoice("none"))
    assert without_own_tools(asked, calls_tools=False, context_length=100_000) == ChatRequest(asked.messages)
    assert without_own_tools(asked, calls_tools=True, context_length=8192).tools == ()
    assert without_own_tools(asked, calls_tools=True, context_length=32_768) is asked
    few = ChatRequest((Message("user", "Hi"),), tools=own_tools(2))
    assert without_own_tools(few, calls_tools=True, context_length=2048) is few


@pytest.mark.parametrize(
    "more",
    [
        {"tools": (*own_tools(5), Tool("weather"))},
        {"tools": (Tool("search_web"), Tool("view_file"))},
        {"tools": own_tools(5), "tool_choice": ToolChoice("required")},
        {
            "tools": own_tools(5),
            "messages": (Message("assistant", "", tool_calls=(ToolCall("1", "view_file", "{}"),)),),
        },
    ],
    ids=["one is the user's", "none is always there", "a call is wanted", "one was called"],
)
def test_other_tools_stay(more: dict[str, Any]) -> None:
    """A model that knows none refuses them by name then."""
    request = ChatRequest(**{"messages": (Message("user", "Hi"),), **more})
    assert without_own_tools(request, calls_tools=False, context_length=512) is request


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_the_answer_says_how_many_were_left_out(place: Site, path: str) -> None:
    """And the setting hands them on."""
    tools = [{"type": "function", "function": {"name": tool.name}} for tool in own_tools(7)]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "tools": tools}
    reply = place.http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    assert (reply.headers["x-tools-left-out"], place.relay.calls[-1].request.tools) == ("7", ())  # type: ignore[union-attr]
    assert "x-tools-left-out" not in place.http.post(path, json=body | {"tools": tools[1:]}).headers
    with site(spare_tools=False, drain=0) as other:
        other.http.post(path, json=body)
        assert len(other.relay.calls[-1].request.tools) == 7  # type: ignore[union-attr]
