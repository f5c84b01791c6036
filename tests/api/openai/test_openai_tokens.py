"""Tokens in the forms of llama.cpp's and vLLM's servers, over a board that says what a test has put down."""

from __future__ import annotations

from typing import Any

import pytest

from api.errors import HttpProblem, of_failed
from tasks.commands import Command, Detokenize, Encode, Render, Tokenize
from tasks.errors import ModelDown, UnknownModel
from tasks.events import Failed, FailureCode
from tasks.requests import ChatRequest, Message
from tests.api.site import Site

CHAT = ChatRequest((Message("user", "Hi"),))
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("path", "body", "command", "said", "answer"),
    [
        ("/tokenize", {"content": "Hi"}, Tokenize("tiny", "Hi", False, True), [1, 2], {"tokens": [1, 2]}),
        (
            "/tokenize",
            {"content": "Hi", "add_special": True, "parse_special": False},
            Tokenize("tiny", "Hi", True, False),
            [1, 2],
            {"tokens": [1, 2]},
        ),
        ("/v1/tokenize", {"content": ""}, Tokenize("tiny", "", False, True), [], {"tokens": []}),
        (
            "/tokenize",
            {"model": "tiny", "prompt": "Hi"},
            Tokenize("tiny", "Hi", True, True),
            [1, 2],
            {"count": 2, "max_model_len": 2048, "tokens": [1, 2]},
        ),
        (
            "/tokenize",
            {"model": "tiny", "messages": MESSAGES},
            Encode("tiny", CHAT),
            [1, 2],
            {"count": 2, "max_model_len": 2048, "tokens": [1, 2]},
        ),
        (
            "/detokenize",
            {"tokens": [1, 2]},
            Detokenize("tiny", (1, 2)),
            [b"\xc3", b"\xb6"],
            {"content": "ö", "prompt": "ö"},
        ),
        ("/detokenize", {"tokens": []}, Detokenize("tiny", ()), [], {"content": "", "prompt": ""}),
        ("/apply-template", {"messages": MESSAGES}, Render("tiny", CHAT), "<user>Hi", {"prompt": "<user>Hi"}),
    ],
)
def test_each_form_has_its_answer(
    place: Site, path: str, body: dict[str, Any], command: Command, said: object, answer: dict[str, Any]
) -> None:
    """Which form it is is told by the key that carries the text."""
    place.world.texts.said = said
    assert place.http.post(path, json=body).json() == answer
    assert place.world.texts.asked == [command]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False}, "add_generation_prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/apply-template", {}, "messages"),
    ],
)
def test_what_is_wrong_is_refused_by_name(place: Site, path: str, body: dict[str, Any], param: str) -> None:
    """Before any board is asked."""
    reply = place.http.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert place.world.texts.asked == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (UnknownModel("x"), 404, "model_not_found"),
        (ModelDown("tiny", "its board is away."), 503, "model_unavailable"),
        (HttpProblem(of_failed(Failed(FailureCode.BAD_PROMPT, "The template says no."))), 400, "invalid_prompt"),
    ],
    ids=["unknown", "away", "refused"],
)
def test_what_a_board_cannot_do_has_its_status(place: Site, error: Exception, status: int, code: str) -> None:
    """In the words of the front that was asked."""
    place.world.texts.said = error
    reply = place.http.post("/tokenize", json={"content": "Hi"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    counted = place.http.post("/v1/messages/count_tokens", json={"messages": MESSAGES})
    assert (counted.status_code, counted.json()["type"]) == (529 if status == 503 else status, "error")


def test_a_model_is_shown_as_llama_cpp_does(place: Site) -> None:
    """With what is known of it; and the service as vLLM does."""
    shown = place.http.get("/props", params={"model": "org/tiny"}).json()
    assert (shown["default_generation_settings"]["n_ctx"], shown["model_alias"]) == (2048, "tiny")
    assert place.http.get("/props", params={"model": "absent"}).status_code == 404
    assert place.http.get("/version").json()["version"]
