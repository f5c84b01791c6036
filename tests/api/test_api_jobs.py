"""Jobs by their id."""

from __future__ import annotations

import msgspec
import pytest

from tasks.api_keys import Scope
from tasks.events import Failed, FailureCode
from tasks.jobs import JobState, Phase
from tests.api.scripted import JOB, TIMINGS, TINY, USAGE
from tests.api.scripted_services import view
from tests.api.site import Site


def test_a_job_is_shown_with_names(place: Site) -> None:
    """What the record keeps by position has names on the wire."""
    place.world.jobs.job = view(
        state=JobState.FAILED, usage=USAGE, timings=TIMINGS, error=Failed(FailureCode.ENGINE_LOST, "Gone.")
    )
    body = place.http.get(f"/v1/jobs/{JOB}").json()
    assert (body["object"], body["id"], body["state"]) == ("job", JOB, "failed")
    assert body["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "cached_tokens": 4,
        "reasoning_tokens": 0,
        "left_out": 0,
        "parked_tokens": 0,
    }
    assert body["timings"]["prefill_ms"] == 20.0
    assert body["error"] == {"code": "engine_lost", "message": "Gone.", "param": None}


def test_a_job_that_waits_says_what_for(place: Site) -> None:
    """In a word, and where its time goes is asked for, in a sentence with the figures; of a job that runs there is nothing."""
    place.world.jobs.job = view(state=JobState.QUEUED, ended_at=None)
    assert place.http.get(f"/v1/jobs/{JOB}").json()["waits_for"] == "turn"
    full = "It needs 4096 MiB."
    status = msgspec.structs.replace(TINY, served=False, loaded=False, boards=("b",), no_room=full)
    place.world.roster.known = [status]
    assert place.http.get(f"/v1/jobs/{JOB}").json()["waits_for"] == "room"
    why = place.http.get(f"/v1/jobs/{JOB}/why").json()
    assert (why["waits_for"], why["why"]) == ("room", full)
    place.world.roster.known = [msgspec.structs.replace(status, no_room="")]
    why = place.http.get(f"/v1/jobs/{JOB}/why").json()
    assert (why["waits_for"], why["why"]) == ("load", "its model is being loaded")
    place.world.jobs.job = view(state=JobState.RUNNING, ended_at=None)
    assert place.http.get(f"/v1/jobs/{JOB}").json()["waits_for"] is None


@pytest.mark.parametrize("job", ["a" * 22, "nothing", "..%2f..%2fetc%2fpasswd", "A" * 22, "a" * 500])
def test_an_unknown_job_is_a_404(place: Site, job: str) -> None:
    """So is whatever cannot be a job's id."""
    for reply in (place.http.get(f"/v1/jobs/{job}"), place.http.post(f"/v1/jobs/{job}/cancel")):
        assert reply.status_code == 404
        assert reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("wait", "seconds"), [("30s", 30.0), ("500ms", 0.5), ("5", 5.0), ("1.5", 1.5), ("10m", 60.0), ("1h", 60.0)]
)
def test_waiting_is_bounded(place: Site, wait: str, seconds: float) -> None:
    """`wait` takes a time with or without its unit, and a minute at most."""
    place.world.jobs.next = view(state=JobState.RUNNING, phase=Phase.PREFILL, position=None)
    assert place.http.get(f"/v1/jobs/{JOB}", params={"wait": wait}).json()["phase"] == "prefill"
    assert place.world.jobs.waits == [seconds]


@pytest.mark.parametrize("wait", ["soon", "-1s", "1d", "1e9", "٣s"])
def test_a_wait_that_is_no_time_is_refused(place: Site, wait: str) -> None:
    """By name."""
    reply = place.http.get(f"/v1/jobs/{JOB}", params={"wait": wait})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "wait")


def test_an_ended_job_is_not_waited_for(place: Site) -> None:
    """Nothing about it can change any more."""
    place.world.jobs.job = view(state=JobState.FINISHED, ended_at=1.0)
    assert place.http.get(f"/v1/jobs/{JOB}?wait=30s").json()["state"] == "finished"
    assert place.world.jobs.waits == []


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (JobState.QUEUED, 200),
        (JobState.RUNNING, 200),
        (JobState.CANCELLED, 200),
        (JobState.FINISHED, 409),
        (JobState.FAILED, 409),
    ],
)
def test_cancelling_twice_is_the_same_as_once(place: Site, state: JobState, status: int) -> None:
    """What has ended by itself is a conflict, which clients must not retry."""
    place.world.jobs.job = view(state=state)
    reply = place.http.post(f"/v1/jobs/{JOB}/cancel")
    assert reply.status_code == status
    if status == 409:
        assert reply.headers["x-should-retry"] == "false"
        assert reply.json()["error"]["code"] == "job_ended"
    else:
        assert reply.json()["state"] == state


@pytest.mark.parametrize(
    ("query", "states", "limit"),
    [
        ("", set(JobState), 50),
        ("?state=active&limit=7", {JobState.QUEUED, JobState.RUNNING}, 7),
        ("?state=failed", {JobState.FAILED}, 50),
    ],
)
def test_jobs_are_listed(place: Site, query: str, states: set[JobState], limit: int) -> None:
    """Those of every model."""
    body = place.http.get(f"/v1/jobs{query}").json()
    assert (body["object"], [job["id"] for job in body["data"]]) == ("list", [JOB])
    assert place.world.queues.listed == (["tiny"], states, limit)


@pytest.mark.parametrize("query", ["state=lost", "limit=0", "limit=201", "limit=x", "limit=-1", "before=2"])
def test_a_list_that_cannot_be_is_refused(place: Site, query: str) -> None:
    """By the parameter's name."""
    reply = place.http.get(f"/v1/jobs?{query}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, query.partition("=")[0])


def test_only_administrators_list_jobs(place: Site) -> None:
    """Whoever knows a job's id may read it."""
    place.world.api_keys.make("user-key", Scope.INFERENCE, Scope.BATCH)
    reply = place.http.get("/v1/jobs", headers={"authorization": "Bearer user-key"})
    assert reply.status_code == 403 and place.world.queues.listed is None
