"""The one table of what goes wrong."""

from __future__ import annotations

import json

import pytest

from api.app import FRONTS
from api.errors import ERRORS, FAILURES, Problem, duration, of_error, of_failed, respond
from tasks.errors import (
    CommandFailed,
    FieldRefused,
    JobCancelled,
    JobFailed,
    JobNotFound,
    LimitReached,
    ModelDown,
    QueueFull,
    QueueUnavailable,
    TasksError,
    UnknownModel,
)
from tasks.events import Failed, FailureCode
from tasks.limits import Allowance


def leaves(root: type) -> set[type]:
    """The classes below `root` that have none below themselves. What boards raise to themselves never reaches an API, and what
    the API adds to one is still that one."""
    below = [each for each in root.__subclasses__() if not each.__module__.startswith(("tasks.board", "api."))]
    return set().union(*(leaves(each) for each in below)) if below else {root}


def test_every_failure_code_has_a_status() -> None:
    """A new way to fail cannot be added without deciding what clients see."""
    assert set(FAILURES) == set(FailureCode)


def test_every_error_of_the_queue_has_a_status() -> None:
    """Nor can a new refusal."""
    assert {kind for kind in leaves(TasksError) if kind.__module__ == "tasks.errors"} == {*ERRORS, JobFailed}


@pytest.mark.parametrize("code", FailureCode)
@pytest.mark.parametrize("front", FRONTS, ids=lambda front: front.name)
def test_every_front_says_every_failure(code: FailureCode, front: object) -> None:
    """Each front renders each failure as a JSON object with its message."""
    render = front.render  # type: ignore[attr-defined]
    reply = respond(of_failed(Failed(code, "It broke.", "messages"), "job"), render)
    assert 400 <= reply.status_code < 600
    assert reply.headers["x-job-id"] == "job"
    error = json.loads(bytes(reply.body))["error"]
    assert "It broke." in (error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("code", FailureCode)
def test_openais_errors_have_all_their_keys(code: FailureCode) -> None:
    """Clients reach into each of them, and compare the code with words."""
    reply = respond(of_failed(Failed(code, "It broke.", "messages")), FRONTS[0].render)
    error = json.loads(bytes(reply.body))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["code"], str)


@pytest.mark.parametrize(
    ("error", "status", "code", "param", "retry_after"),
    [
        (UnknownModel("x"), 404, "model_not_found", "model", None),
        (ModelDown("m", "no board", 12.0), 503, "model_unavailable", None, 12.0),
        (QueueFull("m", 4, 9.0), 429, "rate_limit_exceeded", None, 9.0),
        (LimitReached("jobs", 2, 2.0, Allowance(None, None)), 429, "rate_limit_exceeded", None, 2.0),
        (FieldRefused("logit_bias", "no"), 400, "unsupported_parameter", "logit_bias", None),
        (JobCancelled("j"), 409, "job_cancelled", None, None),
        (JobNotFound("x"), 404, "job_not_found", None, None),
        (QueueUnavailable("x"), 503, "queue_unavailable", None, 5.0),
        (CommandFailed("busy", "x"), 502, "board_refused", None, None),
        (JobFailed("j", Failed(FailureCode.CONTEXT_TOO_LONG, "x")), 400, "context_length_exceeded", None, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_becomes_its_problem(
    error: TasksError, status: int, code: str, param: str | None, retry_after: float | None
) -> None:
    """Status, code, field and time come from the error itself where it knows them."""
    problem = of_error(error)
    assert (problem.status, problem.code, problem.param, problem.retry_after) == (status, code, param, retry_after)


def test_a_time_to_wait_is_one_that_clients_accept() -> None:
    """Official clients do not wait longer than a minute; a longer time would make them give up at once."""
    reply = respond(Problem(503, "x", "x", retry_after=900.0), lambda problem: b"{}")
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("60", "60000")


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (0.02, "20ms"),
        (1, "1s"),
        (6.25, "6.25s"),
        (10, "10s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (3723, "1h2m3s"),
    ],
)
def test_a_duration_is_written_as_clients_read_it(seconds: float, written: str) -> None:
    """They take it apart by its letters."""
    assert duration(seconds) == written


def test_what_must_not_be_retried_says_so() -> None:
    """A job that took too long would only be queued once more."""
    reply = respond(of_failed(Failed(FailureCode.DEADLINE, "x")), lambda problem: b"{}")
    assert (reply.status_code, reply.headers["x-should-retry"]) == (504, "false")


def test_a_field_has_the_front_s_own_name() -> None:
    """The shared vocabulary's names do not reach clients that know another."""
    reply = respond(of_error(FieldRefused("prompts", "no")), FRONTS[0].render)
    assert json.loads(bytes(reply.body))["error"]["param"] == "prompt"
