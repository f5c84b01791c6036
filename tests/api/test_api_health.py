"""Probes, and the page at the root."""

from __future__ import annotations

import pytest

from tasks.presence import Presence
from tasks.roster import ModelStatus
from tests.api.scripted import CARD
from tests.api.site import Site


def test_healthz_needs_nothing(place: Site) -> None:
    """The process is up, whatever has become of Redis and the boards."""
    place.world.redis_down = True
    place.world.roster.known = []
    assert place.http.get("/healthz").json() == {"status": "ok"}


def test_readyz_needs_redis_and_a_model(place: Site) -> None:
    """Ready is when a request could be answered; else each reason is given."""
    assert place.http.get("/readyz").status_code == 200
    place.world.redis_down = True
    place.world.roster.known = []
    reply = place.http.get("/readyz")
    assert (reply.status_code, len(reply.json()["reasons"])) == (503, 2)
    assert reply.headers["retry-after"]


@pytest.mark.parametrize(("served", "boards", "status"), [(True, (), 200), (False, ("b",), 200), (False, (), 503)])
def test_a_model_nobody_has_is_not_served(place: Site, served: bool, boards: tuple[str, ...], status: int) -> None:
    """A model that a living board would load counts as served; one that only a card remembers does not."""
    place.world.roster.known = [
        ModelStatus(card=CARD, served=served, loaded=False, loading=False, waiting=0, boards=boards)
    ]
    assert place.http.get("/readyz").status_code == status


def test_who_is_drained_is_named(place: Site) -> None:
    """With the word that ends it: they run, and nothing is wrong with them."""
    place.world.roster.known = [ModelStatus(card=CARD, served=False, loaded=False, loading=False, waiting=0)]
    place.world.roster.alive = [Presence(name=f"board:{each}", board=each, drained=True) for each in ("b2", "b1")]
    [reason] = place.http.get("/readyz").json()["reasons"]
    assert "b1, b2 are drained" in reason and "`rockchipllama boards resume b1`" in reason


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_lists_the_models(place: Site, path: str) -> None:
    """Readiness, with what is loaded."""
    body = place.http.get(path).json()
    assert body["status"] == "ok"
    model = {
        "id": "tiny",
        "context_length": 2048,
        "served": True,
        "loaded": True,
        "loading": False,
        "waiting": 0,
        "queue": "open",
    }
    model["capabilities"] = ["completion", "chat"]
    assert body["models"] == [model | {"engine": CARD.engine_version or CARD.engine}]


def test_the_root_answers_each_visitor(place: Site) -> None:
    """A page for browsers, JSON for those who ask for it, Ollama's words for the rest."""
    assert place.http.get("/").text == "Ollama is running"
    assert place.http.get("/", headers={"accept": "application/json"}).json()["name"] == "RockchipLlama"
    page = place.http.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
