"""Calls to webhooks: to whom, how often, and by whom."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from pathlib import Path
from typing import Any

import openai
import pytest
import redis.asyncio
from pydantic import ValidationError

from api import webhooks
from api.errors import HttpProblem
from api.settings import ApiSettings
from api.webhooks import AGAIN, Refused, check_address, may_call
from tasks import keys
from tasks.jobs import JobState
from tasks.webhooks import Call, CallBook
from tests.api.hooks import CERTIFICATE, called
from tests.api.scripted import JOB
from tests.api.scripted_services import ScriptedJobs, view
from tests.stack import LIMIT, eventually

pytestmark = pytest.mark.anyio

SECRET = "whsec_c2l4dGVlbiBieXRlcyBvZiBpdA=="
LOCAL = ApiSettings(webhook_secret=SECRET, webhook_networks=("127.0.0.0/8",))  # type: ignore[arg-type]
PUBLIC = ApiSettings(webhook_secret=SECRET)  # type: ignore[arg-type]


class Settled(CallBook):
    """Remembers what became of each call."""

    def __init__(self) -> None:
        self.told: list[float | None] = []

    async def settle(self, call: Call, again: float | None = None) -> bool:
        self.told.append(again)
        return True


async def make(url: str, attempt: int = 1, settings: ApiSettings = LOCAL, job: str = JOB) -> float | None:
    """Make a call once; in how many seconds it is due again."""
    jobs, book = ScriptedJobs(), Settled()
    jobs.job = view(state=JobState.FINISHED, ended_at=1700000000.0)
    await webhooks._make(Call(job, JobState.FINISHED, url, attempt, 0), book, jobs, settings)
    [again] = book.told
    return again


async def test_a_call_tells_of_the_job_and_is_signed() -> None:
    """As OpenAI's client checks it; what the record no longer holds is told all the same."""
    with called() as (url, calls):
        assert await make(url) is None
        headers, body = calls.get(timeout=LIMIT)
        client = openai.OpenAI(api_key="none")
        client.webhooks.verify_signature(body, headers, secret=SECRET)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body + b" ", headers, secret=SECRET)
        event = json.loads(body)
        assert (event["type"], event["created_at"], event["data"]["model"]) == ("job.finished", 1700000000, "tiny")
        assert (headers["webhook-id"], headers["host"]) == (event["id"], url.split("/")[2])
        assert await make(url, job="b" * 22) is None
        assert json.loads(calls.get(timeout=LIMIT)[1])["data"] == {"object": "job", "id": "b" * 22, "state": "finished"}


@pytest.mark.parametrize(
    ("status", "attempt", "again"),
    [(204, 1, None), (500, 1, AGAIN[0]), (404, 2, AGAIN[1]), (500, len(AGAIN) + 1, None), (410, 1, None)],
)
async def test_what_is_not_answered_well_is_due_again(status: int, attempt: int, again: float | None) -> None:
    """Later each time, and not for ever."""
    with called(status) as (url, calls):
        assert await make(url, attempt) == again
        assert calls.qsize() == 1


@pytest.mark.parametrize("trouble", ["an address", "a record"])
async def test_what_cannot_be_understood_comes_to_an_end_as_well(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that a version before this one took, a record that one after it wrote: tried again, and given up."""
    if trouble == "a record":
        monkeypatch.setattr(webhooks, "render", lambda view: 1 / 0)
    url = "http://999.999.999.999/" if trouble == "an address" else "http://127.0.0.1:9/"
    assert await make(url) == AGAIN[0]
    assert await make(url, len(AGAIN) + 1) is None


async def test_a_redirect_is_not_followed() -> None:
    """It may lead anywhere."""
    with called() as (aim, reached), called(307, location=aim) as (url, calls):
        assert await make(url) == AGAIN[0]
        assert (calls.qsize(), reached.qsize()) == (1, 0)


async def test_a_call_over_tls_goes_to_who_has_the_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By a certificate of that name, which this machine or the settings trust; nothing is sent to anybody else."""

    async def lookup(self: Any, host: str, port: int, **more: Any) -> list[Any]:
        return [(None, None, None, "", ("127.0.0.1", port))]

    trusting = LOCAL.model_copy(update={"webhook_certificates": CERTIFICATE})
    with called(tls=True) as (url, calls):
        monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", lookup, raising=False)
        named = url.replace("127.0.0.1", "hook.example")
        assert await make(named, settings=trusting) is None
        headers, _ = calls.get(timeout=LIMIT)
        assert headers["host"] == named.split("/")[2]
        for other, settings in ((named, LOCAL), (url, trusting), (url.replace("127.0.0.1", "a.example"), trusting)):
            caplog.clear()
            assert await make(other, settings=settings) == AGAIN[0]
            assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
        assert calls.qsize() == 0


async def test_one_process_goes_on_where_another_has_failed(
    client: redis.Redis, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two look for calls that are due: each attempt is made by one of them, until it is answered well."""
    monkeypatch.setattr(webhooks, "LOOK", 0.02)
    monkeypatch.setattr(webhooks, "AGAIN", (0.05,) * 5)
    jobs, book = ScriptedJobs(), CallBook(aclient)
    with called(500, 503, 200) as (url, calls):
        await aclient.hset(keys.WEBHOOKS, JOB, f"0 finished {url}")  # type: ignore[misc]
        await aclient.zadd(keys.WEBHOOKS_DUE, {JOB: 0})
        async with webhooks.calling(book, jobs, LOCAL), webhooks.calling(book, jobs, LOCAL):
            await asyncio.to_thread(
                eventually, lambda: not client.exists(keys.WEBHOOKS), what="a call that was answered"
            )
        made = [calls.get_nowait()[0]["webhook-id"] for _ in range(3)]
        assert len(set(made)) == 1 and calls.empty()


@pytest.mark.parametrize("text", [None, "no certificate"])
async def test_certificates_that_cannot_be_read_are_told_at_the_start(tmp_path: Path, text: str | None) -> None:
    """And not with the first call."""
    if text is not None:
        (tmp_path / "ca.pem").write_text(text)
    with pytest.raises(ValidationError, match="no certificates can be read"):
        ApiSettings(webhook_certificates=tmp_path / "ca.pem")


async def test_a_name_is_called_at_the_address_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked up once for a call, whatever the name stands for a moment later; one inside is not called at all."""
    asked: list[str] = []

    async def lookup(self: Any, host: str, port: int, **more: Any) -> list[Any]:
        asked.append(host)
        assert host == "hook.example", "the name was looked up again"
        return [(None, None, None, "", ("127.0.0.1", port))]

    with called() as (url, calls):
        named = url.replace("127.0.0.1", "hook.example")
        monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", lookup, raising=False)
        assert await make(named, settings=PUBLIC) == AGAIN[0]
        assert calls.qsize() == 0
        with pytest.raises(Refused):
            await webhooks._resolve("hook.example", 80, PUBLIC)
        asked.clear()
        address = await webhooks._resolve("hook.example", 80, LOCAL)
        assert (asked, str(address)) == (["hook.example"], "127.0.0.1")


@pytest.mark.parametrize(
    ("address", "may"),
    [
        *(("8.8.8.8", True), ("2606:4700::1111", True)),
        *(("10.1.2.3", False), ("127.0.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False)),
        *(("0.0.0.0", False), ("224.0.0.1", False), ("::1", False), ("fe80::1", False), ("fd00::1", False)),
        *(
            ("::ffff:10.0.0.1", False),
            ("64:ff9b::a00:1", False),
            ("::a00:1", False),
            ("fec0::1", False),
            ("2002:a00:1::", False),
        ),
    ],
)
async def test_only_the_internet_is_called_unless_a_network_is_allowed(address: str, may: bool) -> None:
    """In whatever form a private address comes."""
    parsed = ipaddress.ip_address(address)
    assert may_call(parsed, PUBLIC) is may
    assert may_call(ipaddress.ip_address("127.0.0.9"), LOCAL) and not may_call(ipaddress.ip_address("10.0.0.1"), LOCAL)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://example.com",
            "example.com",
            "http://",
            "http://a b/",
            "http://me:secret@example.com/",
            "http://[::1/",
        ),
        *(
            "http://999.999.999.999/",
            "http://[v1.x]/",
            "http://example.com:99999/",
            "http://10.0.0.1/",
            "http://[::ffff:10.0.0.1]/",
            "http://ex\u00e4mple.com/",
        ),
    ],
)
async def test_an_address_that_could_never_be_called_is_refused(url: str) -> None:
    """When the job is asked for."""
    with pytest.raises(HttpProblem) as refused:
        check_address(url, PUBLIC)
    assert refused.value.problem.param == "webhook"
    check_address("https://example.com:8443/a?b=c", PUBLIC)
    with pytest.raises(HttpProblem, match="ROCKCHIPLLAMA_WEBHOOK_SECRET"):
        check_address("https://example.com/", ApiSettings())


async def test_a_call_is_held_by_one_at_a_time(aclient: redis.asyncio.Redis) -> None:
    """Whoever held it too long settles nothing any more; after its time another one takes it, as the next attempt."""
    book = CallBook(aclient)
    await aclient.hset(keys.WEBHOOKS, JOB, "0 finished https://example.com/a b")  # type: ignore[misc]
    await aclient.zadd(keys.WEBHOOKS_DUE, {JOB: 0})
    [late] = await book.take(5, 0.0)
    assert (late.job, late.state, late.url, late.attempt) == (JOB, JobState.FINISHED, "https://example.com/a b", 1)
    await asyncio.sleep(0.002)
    [held] = await book.take(5, 600.0)
    assert held.attempt == 2
    assert await book.take(5, 600.0) == []
    assert not await book.settle(late)
    assert await book.settle(held, 0.0)
    await asyncio.sleep(0.002)
    [again] = await book.take(5, 600.0)
    assert again.attempt == 3
    assert await book.settle(again)
    assert not await aclient.exists(keys.WEBHOOKS, keys.WEBHOOKS_DUE)
