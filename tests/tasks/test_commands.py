"""Commands to a board: request and reply, refusals, silence, and the check of a waiting job."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
import redis.asyncio

from npu.catalog import Catalog
from npu.errors import OutOfMemory
from npu.model import SAMPLING_DEFAULTS, Model
from tasks import asking, keys
from tasks.asking import Commander
from tasks.board.desk import Desk
from tasks.board.room import NoRoomYet
from tasks.claims import claim_next
from tasks.commands import (
    Command,
    CommandCode,
    Count,
    Describe,
    Detokenize,
    Encode,
    Keep,
    Load,
    Prepare,
    Render,
    Shelving,
    Tokenize,
    Unload,
)
from tasks.connection import connect
from tasks.envelope import NotUnderstood, decode_envelope, decode_reply, refuse
from tasks.errors import CommandFailed
from tasks.events import FailureCode
from tasks.feed import LiveFeed
from tasks.jobs import JobState, Lane, new_job_id
from tasks.requests import ChatRequest, CompletionRequest, Message, Request
from tasks.settings import TaskSettings
from tasks.store import JobStore
from tests.stack import LIMIT, eventually

pytestmark = pytest.mark.anyio

BOARD = "one"


class Office:
    """A desk with one echo, whose loading a test may hold up or let fail."""

    def __init__(self, client: redis.Redis, folder: Path) -> None:
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.kept: list[tuple[str, float]] = []
        self.trouble: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        model = Model(id="echo", engine="echo", folder=folder, names=("echo:small",))
        settings = TaskSettings(data_dir=folder, models_dir=folder, board_name=BOARD, context_length=128)
        self.desk = Desk(
            client, settings, lambda: Catalog((model,)), self._load, self._unload, self._keep, self._shelve
        )

    def _load(self, model: Model, by_hand: bool) -> None:
        self.gate.wait(LIMIT)
        if self.trouble is not None:
            raise self.trouble
        self.loaded.append(model.id)

    def _shelve(self, command: Shelving) -> object:
        raise CommandFailed("played", f"{command.model} is in /srv/models/x.")

    def _unload(self, model: Model) -> None:
        self.unloaded.append(model.id)

    def _keep(self, model: str, seconds: float) -> None:
        self.kept.append((model, seconds))


def listeners(client: redis.Redis) -> int:
    return int(client.pubsub_numsub(keys.commands(BOARD))[0][1])


@pytest.fixture(scope="module")
def only_office(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """One for all tests: a desk takes a second to close."""
    client = connect(valkey_url)
    made = Office(client, tmp_path_factory.mktemp("office"))
    yield made
    made.gate.set()
    made.desk.close()
    made.desk.close()  # twice is safe
    assert listeners(client) == 0


@pytest.fixture
def office(only_office: Office, client: redis.Redis) -> Iterator[Office]:
    eventually(lambda: listeners(client) == 1, what="a listening desk")
    only_office.loaded, only_office.unloaded, only_office.trouble = [], [], None
    yield only_office
    only_office.gate.set()


@pytest.fixture
async def commander(aclient: redis.asyncio.Redis) -> AsyncIterator[Commander]:
    async with LiveFeed(aclient) as feed, Commander(aclient, feed) as made:
        yield made


@pytest.fixture
def store(aclient: redis.asyncio.Redis) -> JobStore:
    return JobStore(aclient, queue_limit=10, job_ttl=60, deadline=600)


async def ask(commander: Commander, command: Command, seconds: float = LIMIT) -> object:
    return msgspec.json.decode(await commander.ask(BOARD, command, seconds))


async def accept(store: JobStore, request: Request) -> str:
    job = new_job_id()
    await store.accept(job, "echo", request, lane=Lane.INTERACTIVE, owner="")
    return job


async def test_each_command_has_its_reply(commander: Commander, office: Office) -> None:
    """Models answer to their further names too."""
    assert await ask(commander, Tokenize("echo", "hi")) == [256, 104, 105]
    assert await ask(commander, Tokenize("ECHO:small", "<|user|>", add_special=False)) == [259]
    assert await ask(commander, Tokenize("echo", "<|end|>", add_special=False, parse_special=False)) == list(b"<|end|>")
    assert await ask(commander, Detokenize("echo", (256, 104, 105))) == ["", "aA==", "aQ=="]
    said: Any = await ask(commander, Describe("echo"))
    assert "messages" in said["template"] and said["sampling"] == dict(SAMPLING_DEFAULTS)
    chat = ChatRequest((Message("user", "hi"),), template_options={"add_generation_prompt": False})
    assert await ask(commander, Render("echo", chat)) == "<|user|>hi<|end|>"
    assert await ask(commander, Encode("echo", chat)) == [256, 259, 104, 105, 261]
    assert await ask(commander, Count("echo", chat)) == 5
    assert await ask(commander, Load("echo")) is None
    assert await ask(commander, Unload("echo:small")) is None
    assert await ask(commander, Keep("echo:small", 30.0)) is None
    assert office.kept == [("echo", 30.0)]
    assert (office.loaded, office.unloaded) == (["echo"], ["echo"])


async def test_many_at_once_each_get_their_own(commander: Commander, office: Office) -> None:
    """Whatever the order in which the board answers."""
    texts = [f"text {count}" for count in range(30)]
    replies = await asyncio.gather(*(ask(commander, Tokenize("echo", text, add_special=False)) for text in texts))
    assert [bytes(reply).decode() for reply in replies] == texts  # type: ignore[call-overload]


async def test_a_refusal_has_code_and_words(commander: Commander, office: Office) -> None:
    """Of a model that is not there, of one that does not fit, of a prompt the template refuses."""
    with pytest.raises(CommandFailed, match="no model 'absent'") as absent:
        await ask(commander, Load("absent"))
    assert absent.value.code == FailureCode.MODEL_UNAVAILABLE
    office.trouble = OutOfMemory("needs 900 MiB, 100 MiB are free")
    with pytest.raises(CommandFailed, match="900 MiB") as large:
        await ask(commander, Load("echo"))
    assert large.value.code == CommandCode.DOES_NOT_FIT
    office.trouble = NoRoomYet("others are busy")
    with pytest.raises(CommandFailed, match="others are busy") as busy:
        await ask(commander, Load("echo", by_hand=True))
    assert busy.value.code == CommandCode.NO_ROOM_YET
    with pytest.raises(CommandFailed, match="tools") as reserved:
        await ask(commander, Render("echo", ChatRequest((), template_options={"tools": []})))
    assert reserved.value.code == FailureCode.BAD_PROMPT


async def test_a_defect_is_a_refusal_that_keeps_its_words(
    commander: Commander, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has them; the next command is answered."""
    office.trouble = ZeroDivisionError("the user's secret words")
    with pytest.raises(CommandFailed) as broken:
        await ask(commander, Load("echo"))
    assert broken.value.code == FailureCode.INTERNAL
    assert "secret" not in str(broken.value)
    assert "secret" in caplog.text
    office.trouble = None
    assert await ask(commander, Load("echo")) is None


async def test_nobody_listening_is_told_at_once(commander: Commander) -> None:
    """Not after a time-out: there is none in this call that could pass."""
    with pytest.raises(CommandFailed, match="'two'") as away:
        await asyncio.wait_for(commander.ask("two", Load("echo"), seconds=10**6), LIMIT)
    assert away.value.code == "board_away"


async def test_a_board_that_takes_too_long(commander: Commander, office: Office) -> None:
    """A time-out says so; the late reply reaches nobody and harms nothing."""
    office.gate.clear()
    with pytest.raises(CommandFailed) as late:
        await ask(commander, Load("echo"), seconds=0.1)
    assert late.value.code == "timeout"
    office.gate.set()
    assert await ask(commander, Tokenize("echo", "", add_special=False)) == []
    await asyncio.to_thread(eventually, lambda: office.loaded == ["echo"], what="the late load")
    assert commander._pending == {}


async def test_a_slow_command_does_not_hold_up_others(commander: Commander, office: Office) -> None:
    """Loading takes long, and prompts must be checked meanwhile."""
    office.gate.clear()
    loading = asyncio.create_task(ask(commander, Load("echo")))
    assert await ask(commander, Tokenize("echo", "a", add_special=False)) == [97]
    assert not loading.done()
    office.gate.set()
    assert await loading is None


async def test_words_of_another_version_are_ignored(
    commander: Commander, office: Office, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """By the desk and by whoever waits for a reply; both live on."""
    for word in (b"junk", b"{}", b'{"id":"x","reply_to":"y","command":{"type":"teleport","model":"echo"}}'):
        client.publish(keys.commands(BOARD), word)
    client.publish(keys.replies(commander._process), b'{"no": "id"}')
    client.publish(keys.replies(commander._process), json.dumps({"id": "nobody's", "future": 1}))
    assert await ask(commander, Tokenize("echo", "a", add_special=False)) == [97]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (b'{"id":"x","reply_to":"me","version":2,"command":{"type":"load","model":"echo"}}', "reads up to 1"),
        (b'{"id":"x","reply_to":"me","version":2,"command":"all is different"}', "reads up to 1"),
        (b'{"id":"x","reply_to":"me","command":{"type":"teleport","model":"echo"}}', "teleport"),
    ],
    ids=["newer", "newer and of another shape", "of an unknown kind"],
)
async def test_what_this_version_does_not_know_is_refused_with_a_reply(
    client: redis.Redis, word: bytes, says: str
) -> None:
    """Whoever asked hears why at once, instead of a time-out."""
    with client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(keys.replies("me"))
        heard.get_message(timeout=LIMIT)
        with pytest.raises(NotUnderstood, match=says) as unknown:
            decode_envelope(word)
        refuse(client, unknown.value)
        message = eventually(lambda: heard.get_message(timeout=1.0), what="a reply")
    answer = decode_reply(message["data"])
    assert (answer.id, answer.code) == ("x", FailureCode.UNREADABLE)
    assert says in answer.error and "Upgrade the board" in answer.error


@pytest.mark.parametrize("word", [b"junk", b"{}", b'{"id":5}', b'"\xff"'])
def test_what_names_no_sender_reaches_nobody(client: redis.Redis, word: bytes) -> None:
    """There is nobody to tell."""
    with pytest.raises(NotUnderstood) as unknown:
        decode_envelope(word)
    with client.pubsub() as heard:
        heard.psubscribe("*")
        heard.get_message(timeout=LIMIT)
        refuse(client, unknown.value)
        client.publish("after", b"it")
        assert heard.get_message(timeout=LIMIT)["channel"] == b"after"


def test_fields_of_a_later_release_are_ignored() -> None:
    """As long as it did not raise the version."""
    word = b'{"id":"x","reply_to":"me","urgent":true,"command":{"type":"load","model":"echo","slowly":true}}'
    assert decode_envelope(word).command == Load("echo")
    assert bytes(decode_reply(b'{"id":"x","result":5,"mood":"good"}').result) == b"5"


async def test_a_newer_reply_is_told_to_whoever_waits_for_it(commander: Commander, client: redis.Redis) -> None:
    """At once, and with what to do; a reply that cannot be read at all harms nobody."""
    with client.pubsub(ignore_subscribe_messages=True) as board:
        board.subscribe(keys.commands("newer"))
        board.get_message(timeout=LIMIT)
        asking = asyncio.create_task(commander.ask("newer", Load("echo"), LIMIT))
        message = await asyncio.to_thread(eventually, lambda: board.get_message(timeout=1.0), what="the command")
        asked = decode_envelope(message["data"])
        for word in (b'"\xff"', b'{"id":"%s","version":2,"result":{"of":"another shape"},"error":5}'):
            client.publish(keys.replies(asked.reply_to), word.replace(b"%s", asked.id.encode()))
        with pytest.raises(CommandFailed, match="Upgrade this machine") as newer:
            await asking
    assert newer.value.code == FailureCode.UNREADABLE


async def test_commands_go_on_after_the_connection_was_cut(
    commander: Commander, office: Office, client: redis.Redis
) -> None:
    """The desk and the asker both subscribe anew."""
    assert await ask(commander, Load("echo")) is None
    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    reply = None
    async with asyncio.timeout(LIMIT):
        while reply is None:
            # A reply that is published while the asker still reconnects is lost, so it asks again.
            with suppress(CommandFailed):
                reply = await ask(commander, Tokenize("echo", "a", add_special=False), seconds=1.0)
            await asyncio.sleep(0.02)
    assert reply == [97]


async def test_nothing_is_asked_before_a_reply_would_be_heard(
    office: Office, aclient: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed comes back to a Redis a moment later than the rest of a process, and a lost reply is waited for for minutes."""
    monkeypatch.setattr(asking, "HEARD", LIMIT)
    feed = LiveFeed(aclient)
    async with Commander(aclient, feed) as commander:
        asked = asyncio.create_task(ask(commander, Tokenize("echo", "a", add_special=False)))
        await asyncio.wait({asked}, timeout=0.2)
        async with feed:
            assert await asked == [97]


async def test_prepare_fails_only_a_job_that_can_never_run(
    commander: Commander, office: Office, store: JobStore, client: redis.Redis
) -> None:
    """Too long, it ends while it waits, with the figures; others keep their places."""
    first = await accept(store, ChatRequest((Message("user", "fits"),)))
    long = await accept(store, ChatRequest((Message("user", "x" * 500),)))
    last = await accept(store, CompletionRequest(("fits",)))
    assert await ask(commander, Prepare("echo", long)) == "failed"
    view = await store.view(long)
    assert view.state is JobState.FAILED and view.error is not None
    assert view.error.code is FailureCode.CONTEXT_TOO_LONG
    assert "128" in view.error.message and "504" in view.error.message
    assert await ask(commander, Prepare("echo", first)) == "ready"
    assert await ask(commander, Prepare("echo", last)) == "ready"
    assert [(await store.view(job)).position for job in (first, last)] == [1, 2]
    assert client.pttl(keys.job(long)) > 0


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (CompletionRequest(((1, 99999),)), FailureCode.BAD_PROMPT),
        (ChatRequest((Message("user", "x"),), template_options={"messages": []}), FailureCode.BAD_PROMPT),
        (ChatRequest((Message("user", "x"),), version=99), FailureCode.UNREADABLE),
    ],
    ids=["token outside the vocabulary", "reserved option", "newer version"],
)
async def test_prepare_refuses_what_is_wrong(
    commander: Commander, office: Office, store: JobStore, request_: Request, code: FailureCode
) -> None:
    """Each for its own reason, before its turn."""
    job = await accept(store, request_)
    assert await ask(commander, Prepare("echo", job)) == "failed"
    view = await store.view(job)
    assert view.error is not None and view.error.code is code


async def test_prepare_leaves_a_job_that_does_not_wait_alone(
    commander: Commander, office: Office, store: JobStore, client: redis.Redis
) -> None:
    """Running, ended or unknown: it is not the board's any more."""
    job = await accept(store, ChatRequest((Message("user", "x" * 500),)))
    assert claim_next(client, "echo", worker="w", board="b", child=1, call_id="c", lease=60) is not None
    assert await ask(commander, Prepare("echo", job)) == "gone"
    assert (await store.view(job)).state is JobState.RUNNING
    other = await accept(store, ChatRequest((Message("user", "x" * 500),)))
    await store.cancel(other, "test")
    assert await ask(commander, Prepare("echo", other)) == "gone"
    assert (await store.view(other)).state is JobState.CANCELLED
    assert await ask(commander, Prepare("echo", new_job_id())) == "gone"
