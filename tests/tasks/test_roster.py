"""The roster: what names mean, who is alive, and that a pulse leaves no trace on disk."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest
import redis
import redis.asyncio

from tasks import keys, roster
from tasks.card import CARD_VERSION, Card
from tasks.claims import Renewal, claim_next, renew
from tasks.errors import UnknownModel
from tasks.events import Finished, FinishReason, Timings, Usage
from tasks.jobs import Lane, new_job_id
from tasks.presence import ALIVE, Presence, breathe, breathe_async, leave
from tasks.requests import ChatRequest, Message
from tasks.roster import Roster, announce, withdraw
from tasks.store import JobStore
from tasks.stream import EventWriter
from tasks.version import VERSION
from tests.fakes.late import Late
from tests.stack import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("standing")]


def card(model: str, *names: str, board: str = "one", **rest: object) -> Card:
    return Card(id=model, board=board, names=names, **rest)  # type: ignore[arg-type]


def worker(model: str, board: str = "one", state: str = "loaded") -> Presence:
    return Presence(name=f"{model}@{board}", board=board, model=model, state=state)


def board(name: str = "one") -> Presence:
    return Presence(name=f"board:{name}", board=name)


def breathed(client: redis.Redis, presence: Presence, *, seconds_ago: float) -> None:
    """A breath taken some time ago, by the clock that stands."""
    at = int(client.get(keys.CLOCK).partition(b":")[2]) - int(seconds_ago * 1000)  # type: ignore[union-attr]
    client.hset(keys.PRESENCE, presence.name, f"{at}:".encode() + msgspec.json.encode(presence))


async def read(
    aclient: redis.asyncio.Redis, aliases: dict[str, str] | None = None, default: str | None = None
) -> Roster:
    made = Roster(aclient, aliases or {}, default)
    await made.refresh()
    return made


async def test_a_reader_is_no_board(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """API processes breathe where boards and workers do, and serve nothing."""
    announce(client, card("echo"))
    await breathe_async(aclient, "api:x")
    snapshot = (await read(aclient)).snapshot
    assert (snapshot.boards, snapshot.workers, snapshot.problems) == ((), (), ())


async def test_names_resolve_in_order(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Exact ids, then aliases, then `:latest`, then further names; in any case of letters."""
    announce(client, card("qwen3-0.6b", "qwen3:0.6b", "Qwen3-0.6B-w8a8", "shared"))
    announce(client, card("echo", "other"))
    announce(client, card("shared"))
    made = await read(aclient, {"Fast": "qwen3:0.6b", "echo": "shared", "other": "shared", "lost": "nothing"})
    meant = {
        "echo": "echo",  # an id, though an alias has the same name
        "shared": "shared",  # an id, though it is another's further name
        "fast": "qwen3-0.6b",
        "FAST": "qwen3-0.6b",
        "other": "shared",  # an alias, though it is another's further name
        "echo:latest": "echo",
        "Echo:LATEST": "echo",
        "fast:latest": "qwen3-0.6b",
        "qwen3:0.6b": "qwen3-0.6b",
        "QWEN3-0.6B-W8A8": "qwen3-0.6b",
    }
    assert {name: made.resolve(name).card.id for name in meant} == meant
    for unknown in ("lost", "qwen3", "latest", ":latest", "x" * 10_000):
        with pytest.raises(UnknownModel):
            made.resolve(unknown)


async def test_a_clash_is_told_once(
    client: redis.Redis, aclient: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The first in the order of ids keeps the name, and the log says who else wanted it, once."""
    announce(client, card("beta", "small"))
    announce(client, card("alpha", "small"))
    with caplog.at_level(logging.WARNING):
        made = await read(aclient)
        for _ in range(3):
            await made.refresh()
    assert made.resolve("small").card.id == "alpha"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert all(word in told[0] for word in ("small", "alpha", "beta"))


async def test_names_with_an_adapter(
    client: redis.Redis, aclient: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind any name of a model stands one of its adapters; an alias may mean the two; other models' names come first."""
    announce(client, card("qwen3-0.6b", "qwen3:0.6b", adapters=("poet", "bard")))
    announce(client, card("other", "qwen3-0.6b:bard"))
    with caplog.at_level(logging.WARNING):
        made = await read(
            aclient, {"mine": "qwen3:0.6b", "Rhymes": "QWEN3:0.6b:Poet", "no": "qwen3:0.6b:cook"}, "rhymes"
        )
    meant = {
        "qwen3-0.6b": "qwen3-0.6b",
        "qwen3-0.6b:poet": "qwen3-0.6b:poet",
        "QWEN3:0.6B:Bard": "qwen3-0.6b:bard",
        "mine:poet": "qwen3-0.6b:poet",
        "rhymes": "qwen3-0.6b:poet",
        "qwen3-0.6b:poet:latest": "qwen3-0.6b:poet",
        "qwen3-0.6b:bard": "other",
    }
    assert {name: made.resolve(name).name for name in meant} == meant
    assert made.resolve(None).name == "qwen3-0.6b:poet"
    assert [record.getMessage() for record in caplog.records] == [
        "the name 'qwen3-0.6b:bard' is claimed by other and qwen3-0.6b:bard; it means other"
    ]
    for unknown in ("qwen3-0.6b:cook", "no", "rhymes:bard", "other:poet", ":poet", "poet"):
        with pytest.raises(UnknownModel):
            made.resolve(unknown)
    assert [status.name for status in made.resolve("mine").adapted()] == ["qwen3-0.6b:poet", "qwen3-0.6b:bard"]


async def test_a_name_may_say_that_it_is_for_the_background(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Any name of a model, and the default one's; it is the same model."""
    announce(client, card("qwen3-0.6b", "qwen3:0.6b", adapters=("poet",)))
    made = await read(aclient, {"fast": "qwen3:0.6b"}, "fast")
    for name in ("qwen3-0.6b", "QWEN3:0.6b", "fast", "qwen3:0.6b:poet", ""):
        behind, itself = made.resolve(f"{name}@Background"), made.resolve(name)
        assert made.resolve(f"{name}@background:latest") == behind
        assert (behind.background, itself.background) == (True, False)
        assert (behind.name, behind.card) == (itself.name, itself.card)
    for unknown in ("other@background", "qwen3-0.6b@nowhere", "fast@background@background" + "@background" * 5000):
        with pytest.raises(UnknownModel):
            made.resolve(unknown)


async def test_the_default_model(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """The one that is set; unset, one that is served now, else the first."""
    with pytest.raises(UnknownModel):
        (await read(aclient)).resolve(None)
    announce(client, card("alpha"))
    announce(client, card("beta", "b"))
    assert (await read(aclient)).resolve(None).card.id == "alpha"
    breathe(client, worker("beta"))
    assert (await read(aclient)).resolve(None).card.id == "beta"
    assert (await read(aclient, default="alpha")).resolve(None).card.id == "alpha"
    assert (await read(aclient, {"mine": "b"}, default="mine")).resolve(None).card.id == "beta"
    for name in (None, ""):
        # One that is not there is the board's to complain of; clients get the model it loaded instead.
        assert (await read(aclient, default="bet")).resolve(name).card.id == "beta"


async def test_the_default_model_can_chat(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Though others come first and are served; an echo only where nothing else is; what cannot chat only where nothing can."""
    announce(client, card("alpha", abilities=("embedding",)))
    announce(client, card("base", chat=False))
    breathe(client, worker("alpha"))
    assert (await read(aclient)).resolve(None).card.id == "alpha"
    announce(client, card("chats-echo", engine="echo"))
    assert (await read(aclient)).resolve(None).card.id == "chats-echo"
    announce(client, card("chats-too"))
    assert (await read(aclient)).resolve(None).card.id == "chats-too"


async def test_the_default_model_is_none_made_from_another(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """While that one is there, whichever of them is served; else it is as any other."""
    announce(client, card("a-pirate", base="qwen"))
    breathe(client, worker("a-pirate"))
    assert (await read(aclient)).resolve(None).card.id == "a-pirate"
    announce(client, card("qwen"))
    assert (await read(aclient)).resolve(None).card.id == "qwen"
    assert (await read(aclient, default="a-pirate")).resolve(None).card.id == "a-pirate"


async def test_a_name_whose_files_are_refused(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Who asks for it is told which board has it and why it is none; not any more when that board is gone."""
    breathe(client, msgspec.structs.replace(board(), refused={"qwen3-0.6b": "…/Qwen3.gguf was cut off."}))
    with pytest.raises(UnknownModel, match=r"'QWEN3-0.6b' cannot be used.*'one'.*…/Qwen3.gguf was cut off\."):
        (await read(aclient)).resolve("QWEN3-0.6b")
    leave(client, "board:one")
    with pytest.raises(UnknownModel, match="does not exist"):
        (await read(aclient)).resolve("qwen3-0.6b")


async def test_an_alias_for_nothing_is_told_once(
    client: redis.Redis, aclient: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """As soon as there is a board that might have what it means."""
    made = await read(aclient, {"fast": "qwen3"})
    assert not caplog.records
    breathe(client, board())
    for _ in range(3):
        await made.refresh()
    (told,) = (record.getMessage() for record in caplog.records)
    assert "'fast'" in told and "'qwen3'" in told


async def test_an_unknown_name_is_answered_with_the_nearest(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Aliases and further names count; nothing alike, no guess; a long name is not repeated whole."""
    announce(client, card("smollm2-135m-instruct", "smollm2:135m"))
    made = await read(aclient, {"assistant": "smollm2:135m"})
    for wrong, nearest in {
        "smolm2-135m-instruct": "smollm2-135m-instruct",
        "SMOLLM2:135": "smollm2:135m",
        "asistant": "assistant",
        "gpt-4o": None,
    }.items():
        with pytest.raises(UnknownModel) as unknown:
            made.resolve(wrong)
        assert unknown.value.nearest == nearest
        assert (nearest or wrong) in str(unknown.value)
    with pytest.raises(UnknownModel) as long:
        made.resolve("y" * 100_000)
    assert len(str(long.value)) < 300


async def test_who_breathes_is_there(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Served by workers, at home on boards; each state shows."""
    for model in ("idle", "loading", "loaded", "busy", "none"):
        announce(client, card(model))
        if model != "none":
            breathe(client, worker(model, state=model))
    breathe(client, board())
    made = await read(aclient)
    seen = {status.card.id: (status.served, status.loading, status.loaded, status.boards) for status in made.models()}
    assert seen == {
        "idle": (True, False, False, ("one",)),
        "loading": (True, True, False, ("one",)),
        "loaded": (True, False, True, ("one",)),
        "busy": (True, False, True, ("one",)),
        "none": (False, False, False, ("one",)),
    }
    assert made.snapshot.boards == ("one",)
    assert len(made.snapshot.workers) == 4


async def test_who_does_not_breathe_is_gone(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """After a while for readers, and soon after that from Redis; its card stays."""
    announce(client, card("echo"))
    breathed(client, worker("echo"), seconds_ago=ALIVE + 1)
    breathed(client, board(), seconds_ago=ALIVE - 2)
    status = (await read(aclient)).resolve("echo")
    assert (status.served, status.boards) == (False, ("one",))
    breathed(client, worker("echo"), seconds_ago=ALIVE * 4 + 1)
    assert client.hlen(keys.PRESENCE) > 0
    breathe(client, board())
    assert client.hkeys(keys.PRESENCE) == [b"board:one"]
    leave(client, "board:one")
    status = (await read(aclient)).resolve("echo")
    assert (status.served, status.boards) == (False, ())


async def test_a_model_on_two_boards_is_one_model(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Its card is that of a board that lives."""
    announce(client, card("echo", board="one", notes=("first",)))
    announce(client, card("echo", board="two", notes=("second",)))
    breathe(client, board("two"))
    [status] = (await read(aclient)).models()
    assert (status.card.notes, status.boards) == (("second",), ("two",))


async def test_jobs_that_wait_are_counted(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Per model."""
    announce(client, card("echo"))
    announce(client, card("idle"))
    store = JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)
    for _ in range(2):
        await store.accept(new_job_id(), "echo", ChatRequest((Message("user", "x"),)), lane=Lane.INTERACTIVE, owner="")
    made = await read(aclient)
    assert (made.resolve("echo").waiting, made.resolve("idle").waiting) == (2, 0)


async def test_find_looks_again_before_it_says_no(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """A model that was announced a moment ago is found without waiting for the next refresh."""
    made = await read(aclient)
    announce(client, card("echo"))
    with pytest.raises(UnknownModel):
        made.resolve("echo")
    assert (await made.find("echo")).served is False
    breathe(client, worker("echo"))
    assert (await made.find("echo")).served is True
    with pytest.raises(UnknownModel):
        await made.find("ohce")


async def test_a_reading_that_is_late_hides_nothing_newer(
    client: redis.Redis, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The roster is read each second and by who has changed something, who must not be shown what was before."""
    first, last = Late(), Roster(aclient, {}, None)
    monkeypatch.setattr(roster, "read_roster_async", first.read(roster.read_roster_async))
    announce(client, card("old"))
    late = asyncio.create_task(last.refresh())
    await first.arrived.wait()
    announce(client, card("new"))
    await last.refresh()
    first.passed_on.set()
    await late
    assert [status.card.id for status in last.models()] == ["new", "old"]


async def test_withdrawn_models_are_forgotten(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Only those that the board itself no longer has; another board's stay."""
    for where in ("one", "two"):
        for model in ("kept", "removed"):
            announce(client, card(model, board=where))
    withdraw(client, "one", {"kept"})
    assert sorted(client.hkeys(keys.CARDS)) == [b"kept/one", b"kept/two", b"removed/two"]
    withdraw(client, "two", set())
    assert [status.card.id for status in (await read(aclient)).models()] == ["kept"]


async def test_what_cannot_be_read_hides_nothing_else(
    client: redis.Redis, aclient: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged card or breath is skipped with a warning."""
    announce(client, card("echo"))
    breathe(client, worker("echo"))
    client.hset(keys.CARDS, "odd/one", b'{"id": 5}')
    client.hset(keys.PRESENCE, "odd@one", client.hget(keys.PRESENCE, "echo@one")[:-5])  # type: ignore[index]
    with caplog.at_level(logging.WARNING):
        made = await read(aclient)
        for _ in range(3):
            await made.refresh()
    assert [(status.card.id, status.served) for status in made.models()] == [("echo", True)]
    assert len(caplog.records) == 2  # once each, however often it is read
    assert {word for record in caplog.records for word in record.getMessage().split() if word.startswith("odd")} == {
        "odd/one",
        "odd@one",
    }


async def test_a_newer_card_is_skipped_and_told_once(
    client: redis.Redis, aclient: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """What its fields mean is not known here; fields that only a later release has are no reason."""
    announce(client, card("echo"))
    announce(client, card("newer", version=CARD_VERSION + 1))
    later = msgspec.json.decode(msgspec.json.encode(card("later"))) | {"mood": "good"}
    client.hset(keys.CARDS, "later/one", msgspec.json.encode(later))
    with caplog.at_level(logging.WARNING):
        made = await read(aclient)
        await made.refresh()
    assert [status.card.id for status in made.models()] == ["echo", "later"]
    [told] = [record.getMessage() for record in caplog.records]
    assert "newer/one" in told and "upgrade" in told
    with caplog.at_level(logging.WARNING):
        announce(client, card("newest", version=CARD_VERSION + 1))
        await made.refresh()
    assert len(caplog.records) == 2 and "newest/one" in caplog.records[-1].getMessage()


async def test_a_board_of_another_release_is_told_once(
    client: redis.Redis, aclient: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, and in the notes of the models that it serves. One of this release, and one that tells none, are no news."""
    for name, version in (("one", VERSION), ("two", "9.9.9"), ("old", "")):
        announce(client, card("both", board=name, notes=("It is small.",)))
        breathe(client, Presence(name=f"board:{name}", board=name, version=version))
    announce(client, card("alone", board="one"))
    with caplog.at_level(logging.WARNING):
        made = await read(aclient)
        await made.refresh()
    [told] = [record.getMessage() for record in caplog.records]
    assert "The board 'two' runs version 9.9.9" in told and "upgrade" in told
    assert made.resolve("both").card.notes == ("It is small.", told)
    assert made.resolve("alone").card.notes == ()


def on_disk(client: redis.Redis) -> tuple[int, bytes]:
    """The append-only file: its size by the server's own account, and its bytes."""
    # A busy disk lets the server hold back what it has already accepted.
    eventually(lambda: int(client.info("persistence")["aof_buffer_length"]) == 0, what="the file to be written")
    size = int(client.info("persistence")["aof_current_size"])
    folder = Path(client.config_get("dir")["dir"]) / "appendonlydir"
    return size, b"".join(path.read_bytes() for path in sorted(folder.glob("*.aof")))


async def test_a_pulse_never_touches_the_append_only_file(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """Hundreds of breaths and renewals add not one byte to it, and an unchanged card none either: SD cards wear."""
    store = JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)
    await store.accept(new_job_id(), "echo", ChatRequest((Message("user", "x"),)), lane=Lane.INTERACTIVE, owner="")
    held = claim_next(client, "echo", worker="w", board="one", child=1, call_id="c", lease=60)
    assert held is not None
    announce(client, card("echo"))
    before = on_disk(client)
    assert held.job.encode() in before[1]
    for count in range(300):
        breathe(client, worker("echo", state="busy"))
        breathe(client, board(f"board-{count % 3}"))
        assert renew(client, held, 60, "prefill" if count % 2 else "decode", count) is Renewal.RENEWED
        announce(client, card("echo"))
    assert on_disk(client) == before
    client.set("rl:order", 1)
    assert on_disk(client)[0] > before[0]


async def test_how_long_jobs_take_stays_out_of_the_append_only_file(
    client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """It is written in the step that ends a job, all the rest of which is kept."""
    store = JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)
    await store.accept(new_job_id(), "echo", ChatRequest((Message("user", "x"),)), lane=Lane.INTERACTIVE, owner="")
    held = claim_next(client, "echo", worker="w", board="one", child=1, call_id="c", lease=60)
    assert held is not None
    with EventWriter(client, held.job, "echo", held.token, held.seq, lambda: None, patience=5) as writer:
        writer.end(Finished(FinishReason.STOP, Usage(1, 1), Timings()))
    assert client.exists(keys.PACE)
    # What earlier tests wrote is in the same file, up to where it was emptied for this one.
    written = on_disk(client)[1].rpartition(b"FLUSHALL")[2]
    assert b"rl:pace" not in written
    # The step's last write comes after it, and is there: nobody has a turn where nothing waits or runs.
    assert written.endswith(b"rl:turns:echo\r\n$13\r\nrl:lanes:echo\r\n*1\r\n$4\r\nEXEC\r\n")


async def test_an_announced_change_is_written(client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
    """A card that differs replaces the old one."""
    announce(client, card("echo"))
    announce(client, card("echo", "again"))
    assert (await read(aclient)).resolve("again").card.id == "echo"


async def test_it_keeps_itself_fresh(
    client: redis.Redis, aclient: redis.asyncio.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Open, it reads anew by itself, also after a reading that failed; until then the old one serves."""
    announce(client, card("old"))
    async with Roster(aclient, {}, None) as made:
        client.delete(keys.CARDS)
        client.set(keys.CARDS, "of another type")
        await asyncio.to_thread(eventually, lambda: "could not be read" in caplog.text, what="a failed reading")
        assert made.resolve("old").card.id == "old"
        client.delete(keys.CARDS)
        announce(client, card("new"))
        await asyncio.to_thread(eventually, lambda: [status.card.id for status in made.models()] == ["new"])
