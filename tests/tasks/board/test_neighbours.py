"""A board copies a model from another one: a real desk lends it, and whoever pulls has a hub of its own to fall back on."""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock
from urllib.error import HTTPError

import msgspec
import pytest
import redis

from npu.catalog import find_models
from tasks import keys
from tasks.asking import ask
from tasks.board import lending
from tasks.board.agent import Agent
from tasks.board.desk import Desk
from tasks.board.lending import Lending
from tasks.board.pull.download import direct_opener, opener
from tasks.board.pull.errors import PullFailed
from tasks.board.pull.fetch import pull
from tasks.board.pull.hub import Hub as Client
from tasks.board.pull.machine import Machine
from tasks.board.pull.neighbours import Neighbours
from tasks.board.pull.record import read_record
from tasks.board.pull.shelf import Shelf, shelf_of
from tasks.board.route import redis_host
from tasks.board.settings import BoardSettings
from tasks.commands import AWAY, CommandCode, Lend, Loan, PullProgress, PullStep
from tasks.connection import connect
from tasks.errors import CommandFailed
from tasks.presence import Presence, breathe
from tasks.prompting.cards import card_of
from tasks.prompting.setup import setup_of
from tasks.roster import announce
from tasks.settings import TaskSettings
from tests.fakes.hub import Hub, Repo
from tests.npu.tiny_model import NORMAL, tiny_model
from tests.stack import LIMIT, eventually

REPO = "people/Tiny-1B-GGUF"
FILE = "Tiny-1B-Q4_K_M.gguf"
MANIFEST = f'id = "tiny-1b"\nnames = ["tiny:1b", "{REPO}", "mine"]\nfile = "{FILE}"\ncontext_length = 512\n'
INDEX = """
[[model]]
name = "tiny:1b"
licence = "free"
[[model.file]]
engine = "llamacpp"
repository = "{0}"
revision = "main"
file = "{1}"
sha256 = "{2}"
dtype = "Q4_K_M"
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model that a board can describe."""
    tokenizer = {"model": "gpt2", "pre": "gpt-2", "bos_token_id": 0, "merges": ["a b"]}
    model = tiny_model(tmp_path_factory.mktemp("tiny"), tokenizer, [(letter, NORMAL) for letter in "abcdefgh"])
    assert model.path is not None
    return model.path.read_bytes()


class Lender:
    """The board `one`, as far as it takes to lend: models, and a desk that takes commands."""

    def __init__(self, url: str, folder: Path, weights: bytes) -> None:
        self.models_dir = folder / "models"
        self.home = self.models_dir / "tiny-1b"
        self.home.mkdir(parents=True)
        (self.home / FILE).write_bytes(weights)
        (self.home / "manifest.toml").write_text(MANIFEST)
        (self.home / ".hidden").write_text("a secret")
        for name, text in (("echo", 'engine = "echo"\n'), ("made", 'base = "tiny-1b"\nnames = ["made:latest"]\n')):
            (self.models_dir / name).mkdir()
            (self.models_dir / name / "manifest.toml").write_text(text)
        self.catalog = find_models(self.models_dir)
        self.lending = Lending(lambda: self.catalog, self.models_dir, url, 0)
        self.settings = TaskSettings(data_dir=folder, models_dir=self.models_dir, board_name="one", redis_url=url)
        self.client = connect(url)
        nothing = Mock()
        self.desk = Desk(
            *(self.client, self.settings, lambda: self.catalog, nothing, nothing, nothing),
            lambda command: self.lending.lend(command),  # type: ignore[arg-type]
        )
        eventually(lambda: self.client.pubsub_numsub(keys.commands("one"))[0][1] == 1, what="a listening desk")


@pytest.fixture(scope="module")
def lender(valkey_url: str, weights: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lender]:
    made = Lender(valkey_url, tmp_path_factory.mktemp("one"), weights)
    yield made
    made.desk.close()
    made.lending.close()


@dataclass
class Pair:
    """The board `one` has a model; `two` has none, and a hub."""

    client: redis.Redis
    lender: Lender
    shelf: Shelf
    hub: Hub
    weights: bytes

    def pull(self, what: str = "tiny:1b") -> list[PullProgress]:
        """As if it had not been pulled before."""
        shutil.rmtree(self.copied, ignore_errors=True)
        self.hub.asked.clear()
        return self.pull_again(what)

    def pull_again(self, what: str = "tiny:1b") -> list[PullProgress]:
        steps = list(pull(what, self.shelf, pull_id="p", local=True))
        assert (steps[-1].step, steps[-1].id) == (PullStep.DONE, "tiny-1b")
        return steps

    def lend(self, model: str) -> Loan:
        return msgspec.json.decode(ask(self.client, "one", Lend(model), LIMIT), type=Loan)

    @property
    def copied(self) -> Path:
        return self.shelf.models_dir / "tiny-1b"


@pytest.fixture
def pair(
    client: redis.Redis,
    valkey_url: str,
    tmp_path: Path,
    lender: Lender,
    weights: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Pair]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (lender.home / "LICENSE").write_text("do as you like")
    for model in lender.catalog.models:
        announce(client, card_of(model, "one", setup_of(lender.settings)))
    breathe(client, Presence(name="board:one", board="one"))
    index = tmp_path / "index.toml"
    index.write_text(INDEX.format(REPO, FILE, hashlib.sha256(weights).hexdigest()))
    (tmp_path / "models").mkdir()
    hub = Hub()
    hub.repos[REPO] = Repo({FILE: weights})
    with hub.serving():
        machine = Machine(None, None, 4 << 30)
        shelf = Shelf(
            *(tmp_path / "models", lambda: machine, Client(opener(), hub.url, pause=0.0), index),
            neighbours=Neighbours(client, "two", valkey_url),
            pause=0.0,
            wait=lambda _: None,
        )
        yield Pair(client, lender, shelf, hub, weights)


def test_a_model_is_copied_before_the_internet_is_asked(pair: Pair) -> None:
    """With all that is its own, and what it answers to; afterwards it is as if it had been pulled."""
    steps = pair.pull()
    assert any("asked for it" in step.message for step in steps)
    assert pair.hub.asked == []
    assert (pair.copied / FILE).read_bytes() == pair.weights
    names = {path.name for path in pair.copied.iterdir()}
    assert names == {FILE, "manifest.toml", "LICENSE", "pulled.json"}
    [model] = find_models(pair.shelf.models_dir).models
    assert (model.names[:3], model.context_length) == (("tiny:1b", REPO, "mine"), 512)
    record = read_record(pair.copied)
    assert record is not None and record.source == {"board": "one", "file": FILE}
    pair.pull_again()  # is there already: nobody is asked but the hub, as ever
    assert pair.hub.ranges() == []


def test_it_is_known_by_each_of_its_names(pair: Pair) -> None:
    """Also by one that the internet knows nothing of."""
    for what in ("mine", REPO, f"hf.co/{REPO}:latest", f"{REPO}/{FILE}"):
        pair.pull(what)
        assert pair.hub.asked == []


def test_a_copy_goes_on_where_it_ended(pair: Pair) -> None:
    """With another ticket. What the digest shows to be another file is fetched from the internet instead."""
    stage = pair.shelf.models_dir / ".partial" / "tiny-1b"
    half = len(pair.weights) // 2

    def begun(head: bytes) -> None:
        stage.mkdir(parents=True, exist_ok=True)
        (stage / FILE).write_bytes(head)
        (stage / f"{FILE}.etag").write_text(f'"{hashlib.sha256(pair.weights).hexdigest()}"')

    begun(bytes(half))
    steps = pair.pull()
    assert any("It was not copied from the board 'one'" in step.message for step in steps)
    assert (pair.copied / FILE).read_bytes() == pair.weights and pair.hub.ranges()
    begun(pair.weights[:half])
    fetching = [step for step in pair.pull() if step.step is PullStep.FETCHING and step.file == FILE]
    assert min(step.completed for step in fetching) >= half and pair.hub.asked == []
    assert (pair.copied / FILE).read_bytes() == pair.weights


def test_the_internet_is_asked_when_the_neighbour_will_not_do(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port cannot be reached, it has another file than the index knows, or one that does not fit here."""
    with monkeypatch.context() as patched:
        patched.setattr(lending._Handler, "do_HEAD", lambda handler: handler.send_error(503))
        assert any("cannot be reached from here" in step.message for step in pair.pull())
        assert pair.hub.ranges()
    pair.shelf.index.write_text(INDEX.format(REPO, FILE, hashlib.sha256(b"other").hexdigest()))
    with pytest.raises(PullFailed):  # nor is that what the hub has
        pair.pull()
    assert pair.hub.asked
    pair.shelf = replace(pair.shelf, machine=lambda: Machine(None, None, 1 << 20))
    with pytest.raises(PullFailed):
        pair.pull(REPO)
    assert pair.hub.asked


def test_a_ticket_opens_one_model_and_no_more(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other path, nothing without one, nothing that was changed since, and nothing when it is over."""
    loan = pair.lend("mine")
    assert [file.name for file in loan.files] == [FILE, "LICENSE", "manifest.toml"]

    def status(url: str) -> int:
        try:
            return int(direct_opener().open(urllib.request.Request(url), timeout=LIMIT).status)
        except HTTPError as error:
            return error.code

    assert status(f"{loan.url}/{FILE}") == 200
    root = loan.url.rpartition("/")[0]
    inside = [f"{loan.url}/{path}" for path in ("", ".hidden", "..%2Fecho%2Fmanifest.toml")]
    for url in (f"{root}/{FILE}", f"{root}/x/{FILE}", *inside):
        assert status(url) == 404
    (pair.lender.home / "LICENSE").write_text("do as I say")
    assert status(f"{loan.url}/LICENSE") == 404
    monkeypatch.setattr(lending, "LASTS", -1.0)
    monkeypatch.setattr(lending, "LOOK", 0.0)
    pair.lender.lending._look()
    with pytest.raises(OSError):  # nobody listens there any more
        status(f"{loan.url}/{FILE}")


def test_a_ticket_lasts_while_a_file_is_sent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one takes hours over a slow line, and others come after it."""
    moments: list[float] = []

    def monotonic() -> float:
        moments.append(len(moments) + 1e9)
        return moments[-1]

    loan = pair.lend("tiny-1b")
    ticket = pair.lender.lending._tickets[loan.url.rpartition("/")[2]]
    monkeypatch.setattr(lending, "CHUNK", len(pair.weights) // 8)
    monkeypatch.setattr(lending, "time", Mock(monotonic=monotonic))
    with direct_opener().open(urllib.request.Request(f"{loan.url}/{FILE}"), timeout=LIMIT) as sent:
        assert sent.read() == pair.weights
    assert ticket.used > moments[0] + 5


def test_what_cannot_be_lent(pair: Pair) -> None:
    """Is said to whoever asks, and that nobody is there."""
    for model, why in (("echo", "no weights"), ("made", "made from tiny-1b"), ("none", "no model")):
        with pytest.raises(CommandFailed, match=why):
            pair.lend(model)
    with pytest.raises(CommandFailed) as away:
        ask(pair.client, "three", Lend("tiny-1b"), LIMIT)
    assert away.value.code == AWAY


def test_a_board_may_keep_its_models_to_itself(lender: Lender) -> None:
    """Then it asks nobody for theirs either."""
    open_handed, closed = (Agent(lender.settings, BoardSettings(neighbours=kind)) for kind in (True, False))
    for agent in (open_handed, closed):
        agent._announced.catalog = lender.catalog
    with pytest.raises(CommandFailed) as refused:
        closed._change(Lend("tiny-1b"))
    assert refused.value.code == CommandCode.NOT_POSSIBLE
    loan = open_handed._change(Lend("tiny-1b"))
    assert isinstance(loan, Loan) and loan.id == "tiny-1b"
    open_handed._lending.close()
    for agent in (open_handed, closed):
        shelf = shelf_of(lender.settings, agent._board_settings, neighbours=Mock())
        assert (shelf.neighbours is None) == (agent is closed)


def test_a_board_that_answers_nonsense_writes_nowhere_else(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it calls its files becomes names here."""
    good = pair.lend("tiny-1b")
    for name in ("../evil.gguf", "/etc/evil.gguf", ".hidden.gguf", "a\nb.gguf", "x" * 300):
        first = msgspec.structs.replace(good.files[0], name=name)
        bad = msgspec.structs.replace(good, files=(first, *good.files[1:]))
        monkeypatch.setattr(pair.lender.lending, "lend", lambda _, bad=bad: bad)
        assert any("makes no model" in step.message for step in pair.pull())


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("redis://board.x:secret@192.168.1.5:6380/0", "192.168.1.5"),
        ("rediss://rack.example:6379/0", "rack.example"),
        ("redis://127.0.0.1:6379/0", None),
        ("redis://localhost/0", None),
        ("unix:///run/valkey.sock", None),
    ],
)
def test_where_redis_is(url: str, host: str | None) -> None:
    """None is this machine."""
    assert redis_host(url) == host
