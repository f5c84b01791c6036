"""API keys as they are kept."""

from __future__ import annotations

import asyncio

import pytest
import redis
import redis.asyncio

from tasks import api_keys, keys
from tasks.api_keys import ApiKey, ApiKeys, KeyRefused, Scope, digest_of
from tasks.connection import connect_async
from tasks.errors import QueueUnavailable
from tasks.limits import Limits
from tests.fakes.late import Late
from tests.stack import LIMIT

BOTH = (Scope.INFERENCE, Scope.BATCH)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is waited for, however slow this machine is."""
    monkeypatch.setattr(api_keys, "PATIENCE", LIMIT)


def test_only_a_digest_is_kept(client: redis.Redis) -> None:
    """Whoever reads Redis or an append-only file finds no key in it."""
    key, plain = api_keys.create(client, "open-webui", BOTH)
    kept = client.hgetall(keys.API_KEYS)
    assert plain.startswith("rl-") and len(plain) > 40
    assert plain not in repr(kept)
    assert list(kept) == [digest_of(plain.encode()).encode()]  # type: ignore[arg-type]
    assert key.scopes == frozenset(BOTH)


def test_keys_are_listed_and_revoked_by_name_or_id(client: redis.Redis) -> None:
    """A revoked one is gone; another of that name is another key."""
    first, plain = api_keys.create(client, "first", BOTH)
    second, _ = api_keys.create(client, "second", [Scope.ADMIN])
    assert api_keys.listing(client) == [first, second]
    assert api_keys.revoke(client, "first") == first
    assert api_keys.revoke(client, second.id) == second
    assert api_keys.listing(client) == []
    assert api_keys.create(client, "first", BOTH)[1] != plain


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "two\nlines", "taken", "0123456789ab"])
def test_an_unusable_name_is_refused(client: redis.Redis, name: str) -> None:
    """Names are shown in lists, and tell keys apart."""
    api_keys.create(client, "taken", BOTH)
    with pytest.raises(KeyRefused):
        api_keys.create(client, name, BOTH)
    assert len(api_keys.listing(client)) == 1


def test_a_key_that_allows_nothing_is_refused(client: redis.Redis) -> None:
    """It would only puzzle whoever uses it."""
    with pytest.raises(KeyRefused, match="at least one scope"):
        api_keys.create(client, "nothing", [])


def test_revoking_what_is_not_there_names_what_is(client: redis.Redis) -> None:
    """A typing error is seen at once."""
    api_keys.create(client, "open-webui", BOTH)
    with pytest.raises(KeyRefused, match="open-webui"):
        api_keys.revoke(client, "openwebui")


async def test_a_process_knows_new_and_revoked_keys(
    client: redis.Redis, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once what it knows is too old to be relied on."""
    monkeypatch.setattr(api_keys, "FRESH", -1.0)
    known = ApiKeys(aclient)
    assert await known.known() == {}
    key, plain = api_keys.create(client, "one", BOTH)
    assert await known.known() == {digest_of(plain.encode()): key}
    api_keys.revoke(client, "one")
    assert await known.known() == {}


async def test_a_key_that_was_revoked_opens_nothing_again(
    client: redis.Redis, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a request had asked for before that may arrive after it."""
    monkeypatch.setattr(api_keys, "FRESH", -1.0)
    api_keys.create(client, "one", BOTH)
    known, first = ApiKeys(aclient), Late()
    monkeypatch.setattr(aclient, "hgetall", first.read(aclient.hgetall))
    late = asyncio.create_task(known.known())
    await first.arrived.wait()
    await known.revoke("one")
    first.passed_on.set()
    assert await late == {}
    monkeypatch.setattr(api_keys, "FRESH", 10.0**6)
    assert await known.known() == {}


async def test_what_is_fresh_is_not_read_again(
    client: redis.Redis, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request costs no round trip for its key."""
    monkeypatch.setattr(api_keys, "FRESH", 10.0**6)
    known = ApiKeys(aclient)
    await known.known()
    api_keys.create(client, "one", BOTH)
    assert await known.known() == {}


async def test_without_redis_known_keys_go_on_and_unknown_ones_are_an_outage(
    client: redis.Redis, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage revokes nobody; a process that never read a key cannot say no to one."""
    monkeypatch.setattr(api_keys, "FRESH", -1.0)
    key, plain = api_keys.create(client, "one", BOTH)
    known = ApiKeys(aclient)
    await known.known()
    away = connect_async("unix:///nonexistent/valkey.sock")
    monkeypatch.setattr(known, "_client", away)
    assert await known.known() == {digest_of(plain.encode()): key}
    with pytest.raises(QueueUnavailable):
        await ApiKeys(away).known()


async def test_a_redis_that_says_nothing_is_waited_for_once(
    client: redis.Redis, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the request's own call, which ends in its 503, and not by its key before that."""
    monkeypatch.setattr(api_keys, "FRESH", -1.0)
    monkeypatch.setattr(api_keys, "PATIENCE", 0.01)
    key, plain = api_keys.create(client, "one", BOTH)
    known = ApiKeys(aclient)
    await known.known()

    async def silent(name: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(aclient, "hgetall", silent)
    async with asyncio.timeout(LIMIT):
        assert await known.known() == {digest_of(plain.encode()): key}


def test_a_damaged_key_opens_nothing_and_hinders_no_other(client: redis.Redis) -> None:
    """Nor does one that a newer version wrote with scopes unknown here."""
    client.hset(keys.API_KEYS, "aa" * 32, b"{")
    client.hset(keys.API_KEYS, "bb" * 32, b'{"id":"b","name":"b","scopes":["rule"],"created":1.0}')
    key, _ = api_keys.create(client, "one", BOTH)
    assert api_keys.listing(client) == [key]


def test_whether_keys_were_made(client: redis.Redis, valkey_url: str) -> None:
    """A Redis that is away has none to show."""
    assert not api_keys.were_made(valkey_url)
    api_keys.create(client, "one", BOTH)
    assert api_keys.were_made(valkey_url)
    assert not api_keys.were_made("unix:///nonexistent/valkey.sock")


async def test_keys_are_made_limited_and_revoked_by_the_api(aclient: redis.asyncio.Redis, client: redis.Redis) -> None:
    """The process that does it knows at once; the rules are those of the command."""
    book = ApiKeys(aclient)
    key, plain = await book.create("tablet", BOTH, Limits(jobs=2))
    assert await book.known() == {digest_of(plain.encode()): key}
    assert api_keys.listing(client) == [key]
    with pytest.raises(KeyRefused, match="already"):
        await book.create("tablet", BOTH)
    limited = await book.limit(key.id, None)
    assert limited.limits is None and api_keys.listing(client) == [limited]
    assert await book.revoke("tablet") == limited
    assert await book.known() == {} == client.hgetall(keys.API_KEYS)
    with pytest.raises(KeyRefused, match="no API key"):
        await book.revoke("tablet")


async def test_a_name_that_was_taken_meanwhile_stays_one_keys(
    aclient: redis.asyncio.Redis, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revoked by its name, the other one would go on opening everything. What cannot be read has no name."""
    client.hset(keys.API_KEYS, "aa" * 32, b"{")
    client.hset(keys.API_KEYS, "bb" * 32, b"5")
    key, _ = api_keys.create(client, "tablet", BOTH)
    book = ApiKeys(aclient)

    async def stale() -> dict[str, ApiKey]:
        return {}

    monkeypatch.setattr(book, "_look", stale)
    with pytest.raises(KeyRefused, match="named 'tablet' already"):
        await book.create("tablet", BOTH)
    with monkeypatch.context() as patched:
        patched.setattr(api_keys, "_all", lambda client: {})
        with pytest.raises(KeyRefused, match="named 'tablet' already"):
            api_keys.create(client, "tablet", BOTH)
    assert api_keys.listing(client) == [key]


async def test_a_key_that_was_revoked_meanwhile_does_not_come_back(
    aclient: redis.asyncio.Redis, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever limits it read it before that."""
    book = ApiKeys(aclient)
    key, _ = await book.create("tablet", BOTH)
    found = await book.known()

    async def stale() -> dict[str, ApiKey]:
        return found

    client.delete(keys.API_KEYS)
    monkeypatch.setattr(book, "_look", stale)
    with pytest.raises(KeyRefused, match="just been revoked"):
        await book.limit(key.id, Limits(jobs=1))
    monkeypatch.setattr(api_keys, "_all", lambda client: found)
    with pytest.raises(KeyRefused, match="just been revoked"):
        api_keys.limit(client, key.id, Limits(jobs=1))
    assert not client.exists(keys.API_KEYS)
