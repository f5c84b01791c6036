"""What OpenAI has and this service has not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import openai
import pytest

from api.openai.not_offered import METHODS, NOT_OFFERED
from tests.api.site import Site
from tests.stack import LIMIT

PAGE = (Path(__file__).parents[3] / "docs" / "openai.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("word", NOT_OFFERED)
@pytest.mark.parametrize("method", METHODS)
def test_each_says_so(place: Site, word: str, method: str) -> None:
    """Itself and all below it, in the words of errors here; official clients do not try again."""
    what, why = NOT_OFFERED[word]
    # As an id of a response it is none, which is said in other words.
    for path in (f"/v1/{word}", f"/v1/{word}/x/y")[word == "responses/compact" and method != "POST" :]:
        reply = place.http.request(method, path)
        assert (reply.status_code, reply.headers["x-should-retry"]) == (404, "false")
        assert reply.json()["error"] == {
            "message": f"{what}: not offered by this service; {why}.",
            "type": "invalid_request_error",
            "param": None,
            "code": "not_offered",
        }


def test_each_has_its_row() -> None:
    """In the table of the page."""
    section = PAGE.split("## Not offered\n", 1)[1].split("\n## ", 1)[0]
    firsts = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    assert {word for first in firsts for word in re.findall(r"`/v1/([\w/-]+)`", first)} == set(NOT_OFFERED)


def test_the_official_client_understands(place: Site) -> None:
    """It raises what it raises for anything that is not there."""
    client: Any = openai.OpenAI(base_url=place.url + "/v1", api_key="x", timeout=LIMIT)
    with client:
        for ask in (
            lambda: client.moderations.create(input="x"),
            lambda: client.images.generate(prompt="x"),
            lambda: client.audio.speech.create(model="x", voice="alloy", input="x"),
            lambda: client.vector_stores.list(),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                ask()
            assert caught.value.code == "not_offered"
