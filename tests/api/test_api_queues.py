"""The queues of models, and who may do what with them."""

from __future__ import annotations

import msgspec
import pytest

from tasks.api_keys import Scope
from tasks.errors import QueueDraining
from tasks.jobs import JobState, Lane
from tasks.presence import Presence
from tasks.queue_book import Held
from tasks.standing import Gate, Standing
from tests.api.scripted import TINY
from tests.api.site import Site

JOBS = [
    Held("a" * 22, JobState.QUEUED, "key:1", Lane.INTERACTIVE),
    Held("b" * 22, JobState.QUEUED, "key:2", Lane.BATCH),
    Held("c" * 22, JobState.RUNNING, "key:1", Lane.BATCH),
]


def test_a_queue_is_shown(place: Site) -> None:
    """How many wait in each lane and run, what that is likely to mean for one more, and which boards are at it how fast."""
    place.world.queues.jobs = JOBS
    place.world.roster.known = [msgspec.structs.replace(TINY, boards=("b1", "b2"))]
    place.world.roster.alive = [
        Presence(name="tiny@b1", board="b1", model="tiny", state="busy", prefill_tps=80.0, decode_tps=9.5)
    ]
    queue = {
        "object": "queue",
        "id": "tiny",
        "state": "open",
        "waiting": 2,
        "lanes": {"interactive": 1, "background": 0, "batch": 1},
        "running": 1,
        "estimated_wait": 12.0,
        "job_seconds": 4.0,
        "boards": [
            {"name": "b1", "state": "busy", "prefill_tps": 80.0, "decode_tps": 9.5},
            {"name": "b2", "state": "unloaded"},
        ],
    }
    assert place.http.get("/v1/queue").json() == {"object": "list", "data": [queue]}
    shown = place.http.get("/v1/queue/org/tiny").json()  # by any of its names
    owners = shown.pop("owners")
    assert shown == queue
    assert owners == [
        {"owner": "key:1", "waiting": 1, "running": 1},
        {"owner": "key:2", "waiting": 1, "running": 0},
    ]


@pytest.mark.parametrize(("step", "state"), [("pause", "paused"), ("drain", "draining"), ("resume", "open")])
def test_a_queue_is_paused_drained_and_opened(place: Site, step: str, state: str) -> None:
    """The answer shows it as it then is; nobody can tell how long a pause will be."""
    shown = place.http.post(f"/v1/queue/tiny/{step}").json()
    assert (shown["state"], shown["estimated_wait"]) == (state, None if state == "paused" else 4.0)


def test_jobs_are_cancelled_by_what_they_are(place: Site) -> None:
    """What waits unless all is asked for, of one owner, in one lane."""
    place.world.queues.jobs = JOBS
    assert place.http.post("/v1/queue/tiny/cancel").json()["cancelled"] == 3
    place.http.post("/v1/queue/tiny/cancel?state=all&owner=key:2&lane=batch")
    assert place.world.queues.cancelled == [("tiny", False, None, None), ("tiny", True, "key:2", Lane.BATCH)]


@pytest.mark.parametrize("query", ["ownr=key:1", "state=running", "lane=fast", "all"])
def test_a_filter_that_is_not_understood_cancels_nothing(place: Site, query: str) -> None:
    """Left out, it would have meant everybody's jobs."""
    reply = place.http.post(f"/v1/queue/tiny/cancel?{query}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, query.partition("=")[0])
    assert place.world.queues.cancelled == []


def test_only_administrators_change_anything(place: Site) -> None:
    """Others may look, and see of nobody how much he asks for."""
    place.world.queues.jobs = JOBS
    for plain, scopes in (("user-key", (Scope.INFERENCE, Scope.BATCH)), ("admin-key", (Scope.ADMIN,))):
        place.world.api_keys.make(plain, *scopes)
    user, admin = ({"authorization": f"Bearer {plain}"} for plain in ("user-key", "admin-key"))
    for step in ("pause", "drain", "resume", "cancel"):
        refused = place.http.post(f"/v1/queue/tiny/{step}", headers=user)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
    assert place.world.queues.standing.gate is Gate.OPEN and place.world.queues.cancelled == []
    assert "owners" not in place.http.get("/v1/queue/tiny", headers=user).json()
    for step in ("pause", "drain", "resume", "cancel"):
        assert place.http.post(f"/v1/queue/tiny/{step}", headers=admin).status_code == 200
    assert "owners" in place.http.get("/v1/queue/tiny", headers=admin).json()


def test_an_unknown_model_has_no_queue(place: Site) -> None:
    """For those who look as for those who change."""
    assert place.http.get("/v1/queue/none").json()["error"]["code"] == "model_not_found"
    for step in ("pause", "drain", "resume", "cancel"):
        assert place.http.post(f"/v1/queue/none/{step}").status_code == 404


def test_a_draining_queue_refuses_with_words(place: Site) -> None:
    """503, and when to come again."""
    place.relay.refuse(QueueDraining("tiny"))
    reply = place.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "queue_draining")
    assert reply.headers["retry-after"] == "60"
    assert "administrator" in reply.json()["error"]["message"]


def test_a_wait_is_told_from_what_is_before_a_job() -> None:
    """Those that wait, and where all workers are busy the one that one of them is at."""
    assert Standing(Gate.OPEN, running=0, pace=4.0).wait(0) == 0
    assert Standing(Gate.OPEN, running=2, pace=4.0).wait(0) == 4
    assert Standing(Gate.DRAINING, running=0, pace=4.0).wait(3) == 12
    assert Standing(Gate.PAUSED, running=0, pace=4.0).wait(3) is None
