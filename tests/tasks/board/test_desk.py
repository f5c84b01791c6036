"""The desk: no model's commands hold up another's, every command gets its reply, and nothing ends the listening."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import redis

from npu.catalog import Catalog
from npu.errors import EngineFailed
from npu.manifest import read_manifest
from npu.model import Model
from npu.simulator import SimulatedModel, write_model
from tasks import commands, keys
from tasks.board import desk as module
from tasks.board.desk import WAITING, Desk
from tasks.commands import BUSY, Command, Delete, Load, Prepare, Shelving, Tokenize, Unload
from tasks.envelope import CommandReply, Envelope, decode_reply
from tasks.errors import CommandFailed
from tasks.events import FailureCode
from tasks.jobs import new_job_id
from tasks.requests import ChatRequest, Message, encode_request
from tasks.settings import TaskSettings
from tests.stack import LIMIT, eventually

BOARD = "one"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


class Office:
    """A desk with two echoes, one with a template that never ends; and whoever asks it, reading replies as they come."""

    def __init__(self, client: redis.Redis, folder: Path) -> None:
        self.client = client
        self.name = new_job_id()
        """Of its own: what an earlier test's desk still works on is answered elsewhere."""
        self.done: list[str] = []
        self.trouble: Exception | None = None
        self.unloading, self.may_unload = threading.Event(), threading.Event()
        self.models = (
            Model(id="echo", engine="echo", folder=folder, names=("echo:small",)),
            Model(id="endless", engine="echo", folder=folder, template=ENDLESS),
        )
        self._replies = client.pubsub(ignore_subscribe_messages=True)
        self._replies.subscribe(keys.replies(self.name))
        settings = TaskSettings(data_dir=folder, models_dir=folder, board_name=BOARD, rkllm_library="simulator")
        self.desk = Desk(
            client,
            settings,
            lambda: Catalog(self.models),
            self._load,
            self._unload,
            lambda model, seconds: None,
            self._shelve,
        )
        eventually(self._listens, what="a listening desk")

    def _listens(self) -> bool:
        return int(self.client.pubsub_numsub(keys.commands(BOARD))[0][1]) == 1

    def _load(self, model: Model, by_hand: bool) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.done.append(f"load {model.id}")

    def _shelve(self, command: Shelving) -> object:
        raise CommandFailed("played", f"{command.model} is in /srv/models/x.")

    def _unload(self, model: Model) -> bool:
        self.unloading.set()
        assert self.may_unload.wait(LIMIT)
        self.done.append(f"unload {model.id}")
        return True

    def send(self, name: str, command: Command) -> None:
        """Under an id that the reply will have."""
        envelope = Envelope(name, self.name, command)
        self.client.publish(keys.commands(BOARD), msgspec.json.encode(envelope))

    def reply(self) -> CommandReply:
        """The next one."""
        message = eventually(lambda: self._replies.get_message(timeout=1.0), what="a reply")
        return decode_reply(message["data"])

    def job(self, name: str) -> str:
        """A waiting job, as far as its preparation looks at it."""
        request = encode_request(ChatRequest((Message("user", "hi"),)))
        self.client.hset(keys.job(name), mapping={"state": "queued", "request": request})
        return name

    def close(self) -> None:
        self.may_unload.set()
        self.desk.close()
        self._replies.close()


@pytest.fixture
def office(client: redis.Redis, tmp_path: Path) -> Iterator[Office]:
    made = Office(client, tmp_path)
    yield made
    made.close()


def test_an_endless_template_holds_up_no_other_model(office: Office) -> None:
    """Not its loading, not its prompts, not the check of its jobs; nor its own loading."""
    for number in range(20):
        office.send(f"endless {number}", Prepare("endless", office.job(f"j{number}")))
    office.send("load", Load("echo"))
    office.send("own", Load("endless"))
    office.send("tokens", Tokenize("echo", "a"))
    office.send("check", Prepare("echo", office.job("other")))
    wanted, before = {"load", "own", "tokens", "check"}, 0
    while wanted:
        answer = office.reply()
        before += answer.id not in wanted
        wanted.discard(answer.id)
    assert before < 10  # a few, since all templates share one rendering process


def test_a_load_waits_for_no_other_models_unload(office: Office) -> None:
    """Unloading waits for a job in hand."""
    office.send("unload", Unload("endless"))
    assert office.unloading.wait(LIMIT)
    office.send("load", Load("echo"))
    assert office.reply().id == "load"
    office.may_unload.set()
    assert office.reply().id == "unload"


def test_load_and_unload_of_one_model_keep_their_order(office: Office) -> None:
    """By whichever of its names it is called."""
    office.send("1", Load("echo"))
    office.send("2", Unload("echo:small"))
    assert office.unloading.wait(LIMIT)
    office.send("3", Load("ECHO"))
    office.send("4", Unload("echo"))
    office.may_unload.set()
    assert [office.reply().id for _ in range(4)] == ["1", "2", "3", "4"]
    assert office.done == ["load echo", "unload echo", "load echo", "unload echo"]


def test_preparations_too_many_are_left_out(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever asked is told so at once. Without its engine, one waits for it and all others behind that one."""
    loaded = threading.Event()
    begun = threading.Event()
    real = Desk._check

    def check(desk: Desk, model: Model, job: str) -> str:
        begun.set()
        if not loaded.is_set():
            raise EngineFailed("no engine yet")
        return real(desk, model, job)

    monkeypatch.setattr(Desk, "_check", check)
    office.send("first", Prepare("echo", office.job("first")))
    assert begun.wait(LIMIT)
    names = [f"n{number}" for number in range(WAITING["prepare"])]
    for name in names:
        office.send(name, Prepare("echo", office.job(name)))
    office.send("one too many", Prepare("echo", office.job("one too many")))
    answer = office.reply()
    assert (answer.id, answer.code) == ("one too many", BUSY)
    loaded.set()
    answers = [office.reply() for _ in range(len(names) + 1)]
    assert [answer.id for answer in answers] == ["first", *names]
    assert {bytes(answer.result) for answer in answers} == {b'"ready"'}


def test_a_preparation_does_not_wait_for_ever_for_its_model(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker finds out what is wrong with it."""

    def check(*_: object) -> str:
        raise EngineFailed("no engine yet")

    monkeypatch.setattr(Desk, "_check", check)
    monkeypatch.setattr(module, "PREPARE_PATIENCE", 0.1)
    office.send("job", Prepare("echo", office.job("job")))
    answer = office.reply()
    assert answer.code == FailureCode.MODEL_UNAVAILABLE
    assert "was not loaded within" in answer.error and "no engine yet" in answer.error


def test_a_disk_that_fails_is_a_reply_and_no_outage(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """Models may lie on a stick that somebody pulls."""
    office.trouble = OSError(errno.EIO, "Input/output error")
    office.send("load", Load("echo"))
    answer = office.reply()
    assert answer.code == FailureCode.MODEL_UNAVAILABLE
    assert answer.error == "The files of 'echo' cannot be read on this board (Input/output error)."
    assert "Redis" not in caplog.text


def test_what_is_not_understood_is_refused(office: Office) -> None:
    """With a reply, and the next command is answered."""
    word = {"id": "odd", "reply_to": office.name, "command": {"type": "teleport", "model": "echo"}}
    office.client.publish(keys.commands(BOARD), msgspec.json.encode(word))
    answer = office.reply()
    assert (answer.id, answer.code) == ("odd", FailureCode.UNREADABLE)
    office.send("load", Load("absent"))
    assert "no model 'absent'" in office.reply().error


@pytest.mark.parametrize("kind", [redis.exceptions.OutOfMemoryError, ZeroDivisionError])
def test_the_desk_listens_on_whatever_happens(
    office: Office, kind: type[Exception], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis that is full, and a defect, which is told with its traceback once."""
    real, raised = Desk._receive, threading.Event()
    times = 0

    def receive(desk: Desk, data: bytes) -> None:
        nonlocal times
        if times < 2:
            times += 1
            if times == 2:
                raised.set()
            raise kind("played")
        real(desk, data)

    monkeypatch.setattr(Desk, "_receive", receive)
    deadline = time.monotonic() + LIMIT
    while not raised.is_set():
        assert time.monotonic() < deadline
        office.send("lost", Load("echo"))
        raised.wait(0.05)
    eventually(lambda: office._listens() and (office.send("load", Load("echo")), office.done)[1], what="a load")
    told = [record for record in caplog.records if record.exc_info and record.exc_info[0] is kind]
    assert len(told) == (1 if kind is ZeroDivisionError else 0)


def test_a_reply_that_redis_will_not_take_ends_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked has a time-out; the next one is answered."""
    real = module.reply
    refused = threading.Event()

    def reply(*words: object, **more: object) -> None:
        if not refused.is_set():
            refused.set()
            raise redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
        real(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "reply", reply)
    office.send("lost", Load("echo"))
    assert refused.wait(LIMIT)
    office.send("next", Load("echo"))
    assert office.reply().id == "next"


def test_a_model_that_changed_is_prepared_as_it_is_now(office: Office) -> None:
    """Its new template is used without a restart."""
    office.send("old", commands.Render("echo", ChatRequest((Message("user", "hi"),))))
    assert b"hi" in bytes(office.reply().result)
    office.models = (replace(office.models[0], template="new"), office.models[1])
    office.send("new", commands.Render("echo", ChatRequest((Message("user", "hi"),))))
    assert bytes(office.reply().result) == b'"new"'


def test_a_tokenizer_that_is_put_beside_a_model_is_seen(office: Office, tmp_path: Path) -> None:
    """Who copied it there, as the refusal said, need not restart the board."""
    write_model(tmp_path / "npu", SimulatedModel())
    file = tmp_path / "npu" / "tokenizer.json"
    kept = file.rename(tmp_path / "kept")
    office.models = (*office.models, read_manifest(tmp_path / "npu" / "manifest.toml"))
    office.send("1", Tokenize("simulated", "ab"))
    assert "Copy tokenizer.json" in office.reply().error
    kept.rename(file)
    office.send("2", Tokenize("simulated", "ab"))
    assert office.reply().result == msgspec.Raw(b"[97,98]")


def test_what_changes_the_inventory_is_asked_of_the_agent(office: Office) -> None:
    """Also for a model that is not there yet; its refusal reaches whoever asked, without the board's folders."""
    office.send("delete", Delete("new"))
    answer = office.reply()
    assert (answer.code, answer.error) == ("played", "new is in …/x.")


def test_a_tokenizer_that_nobody_asks_for_is_let_go(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time, and made anew when somebody asks again; until then it is kept."""
    made: list[str] = []
    real = module.open_tokenizer
    monkeypatch.setattr(module, "open_tokenizer", lambda model, setup: made.append(model.id) or real(model, setup))
    for _ in range(2):
        office.send("t", Tokenize("echo", "a"))
        assert not office.reply().error and made == ["echo"]
    monkeypatch.setattr(module, "TOKENIZER_KEPT", -1.0)
    eventually(lambda: not office.desk._preparers, what="an empty desk")
    office.send("t", Tokenize("echo", "a"))
    assert not office.reply().error and made == ["echo"] * 2
