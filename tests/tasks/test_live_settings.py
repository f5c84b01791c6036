"""Settings that change while the service runs."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
import redis
import redis.asyncio

from api.settings import ApiSettings
from tasks import keys
from tasks.live_settings import LiveSettings, SettingRefused, SettingsBook, follow
from tasks.settings import TaskSettings, live_names
from tests.fakes.late import Late


@pytest.fixture
def task() -> LiveSettings[TaskSettings]:
    return LiveSettings(TaskSettings(queue_limit=7))


@pytest.fixture
def book(aclient: redis.asyncio.Redis, task: LiveSettings[TaskSettings]) -> SettingsBook:
    return SettingsBook(aclient, (task, LiveSettings(ApiSettings())))


async def test_a_change_is_obeyed_and_taken_back(
    client: redis.Redis, book: SettingsBook, task: LiveSettings[TaskSettings]
) -> None:
    """By the process that made it at once, by any other at its next look; and those go back to what each was started with."""
    other = LiveSettings(TaskSettings(queue_limit=9))
    await book.change({"queue_limit": 128, "deadline": 90}, "key 'ops'")
    assert (task.now.queue_limit, task.now.deadline, task.own.queue_limit) == (128, 90.0, 7)
    assert other.now.queue_limit == 9
    follow(client, other)
    assert other.now.queue_limit == 128
    [shown] = [shown for shown in await book.view() if shown.name == "queue_limit"]
    assert (shown.value, shown.own, shown.changed_by) == (128, 7, "key 'ops'") and shown.changed_at
    await book.change({"queue_limit": None}, "somebody")
    follow(client, other)
    assert (task.now.queue_limit, other.now.queue_limit, other.now.deadline) == (7, 9, 90.0)
    assert [shown.changed_by for shown in await book.view() if shown.name == "queue_limit"] == [None]


async def test_a_change_is_not_undone_by_what_was_read_before_it(
    aclient: redis.asyncio.Redis,
    book: SettingsBook,
    task: LiveSettings[TaskSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The look that is due every other second may arrive after it."""
    first = Late()
    monkeypatch.setattr(aclient, "hgetall", first.read(aclient.hgetall))
    late = asyncio.create_task(book.refresh())
    await first.arrived.wait()
    await book.change({"queue_limit": 128}, "somebody")
    first.passed_on.set()
    await late
    assert task.now.queue_limit == 128


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("queue_limit", 0, "it must be at least 1"),
        ("queue_limit", "128", "a whole number"),
        ("queue_limit", True, "a whole number"),
        ("deadline", float("inf"), "it must be a number"),
        ("job_ttl", 1e300, "it must be at most"),
        ("log_level", "loud", "'debug', 'info'"),
        ("claude_model", "x" * 300, "longer than 200"),
        ("data_dir", "x", "cannot be changed while the service runs"),
        ("queue_limits", 5, "no setting 'queue_limits'.*Did you mean 'queue_limit'"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    client: redis.Redis, book: SettingsBook, name: str, value: object, why: str
) -> None:
    """Nor what was asked for beside it."""
    with pytest.raises(SettingRefused, match=why) as refused:
        await book.change({"job_ttl": 60, name: value}, "somebody")
    assert refused.value.name == name
    assert not client.exists(keys.SETTINGS)


def test_what_another_version_keeps_is_left_out(
    client: redis.Redis, task: LiveSettings[TaskSettings], caplog: pytest.LogCaptureFixture
) -> None:
    """A name that is none here, a value this version would refuse, and what is no record at all; the rest counts."""
    kept = {"by": "newer", "at": 1.0}
    client.hset(keys.SETTINGS, "speed", json.dumps(kept | {"value": 3}))
    client.hset(keys.SETTINGS, "queue_limit", json.dumps(kept | {"value": -1}))
    client.hset(keys.SETTINGS, "deadline", "nonsense")
    client.hset(keys.SETTINGS, "job_ttl", json.dumps(kept | {"value": 5.0}))
    follow(client, task)
    assert (task.now.queue_limit, task.now.deadline, task.now.job_ttl) == (7, 3600.0, 5.0)
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2 and "queue_limit" in warned[0] and "deadline" in warned[1]
    follow(client, task)
    assert len(caplog.records) == 2, "told again at each look"


def test_the_log_level_is_obeyed(client: redis.Redis, task: LiveSettings[TaskSettings]) -> None:
    """By whoever follows, at once; libraries that say too much stay quiet."""
    root, library = logging.getLogger(), logging.getLogger("httpx")
    before = root.level, library.level
    try:
        client.hset(keys.SETTINGS, "log_level", json.dumps({"value": "DEBUG", "by": "x", "at": 1.0}))
        follow(client, task)
        assert task.now.log_level == "debug"
        assert (root.level, library.level) == (logging.DEBUG, logging.WARNING)
    finally:
        root.setLevel(before[0])
        library.setLevel(before[1])


def test_no_secret_can_be_changed() -> None:
    """What is kept is shown to administrators, and lies in Redis as it is."""
    for owner in (TaskSettings, ApiSettings):
        for name in live_names(owner):
            assert "Secret" not in str(owner.model_fields[name].annotation)
