"""More boards than one: `up --share`, and `join` with a data directory of its own as the second board."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from ops.up import sharing, store
from tasks import keys
from tasks.connection import connect
from tasks.events import EVENTS_VERSION
from tasks.version import VERSION
from tests.npu.tiny_model import NORMAL, tiny_model
from tests.stack import LIMIT, command_of, eventually, free_port, kill_all

MANIFEST = 'engine = "echo"\nid = "{}"\ncontext_length = 8192\n[engine_options]\ntokens_per_second = 100.0\n'

LONG = "-".join(f"word{number}" for number in range(150))
"""It takes eleven seconds to say."""


class Command:
    """One `rockchipllama` command with a data directory and two echo models: one of its own, and one that all have."""

    def __init__(self, folder: Path, *words: str, **variables: str) -> None:
        for model in (f"echo-of-{folder.name}", "twin"):
            manifest = folder / "models" / model / "manifest.toml"
            manifest.parent.mkdir(parents=True, exist_ok=True)
            manifest.write_text(MANIFEST.format(model))
        self.folder = folder
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ops.cli.main", *words),
                    *("--data-dir", str(folder / "data"), "--models-dir", str(folder / "models")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,  # the source folder knows its version before any other place is asked
                env={name: value for name, value in os.environ.items() if not name.startswith("ROCKCHIPLLAMA_")}
                | {"ROCKCHIPLLAMA_DEFAULT_MODEL": "twin", "ROCKCHIPLLAMA_LEASE": "3"}
                | variables,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self.output.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """All that it has started."""
        return psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []

    def pull_the_plug(self) -> None:
        """End everything at once, as when the power is gone."""
        kill_all([psutil.Process(self.process.pid), *self.family()])
        self.process.wait(LIMIT)

    def stop(self) -> None:
        """Ask it to end, and wait for that."""
        family = self.family()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(LIMIT)
        finally:
            kill_all(family)


class Shared(Command):
    """A service that is shared on this machine's loopback."""

    def __init__(self, folder: Path) -> None:
        self.port, self.share_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(
            folder,
            *("up", "--share", "--port", str(self.port)),
            ROCKCHIPLLAMA_BOARD_NAME="first",
            ROCKCHIPLLAMA_SHARE_HOST="127.0.0.1",
            ROCKCHIPLLAMA_SHARE_PORT=str(self.share_port),
        )
        eventually(lambda: "Ctrl-C stops everything." in self.said or self.process.poll() is not None, what="readiness")
        assert self.process.poll() is None, self.said
        told = rf"boards  join at 127\.0\.0\.1:{self.share_port}; `\S*rockchipllama boards invite NAME`"
        assert re.search(told, self.said), self.said
        token = sharing.Access(folder / "data").shown()
        assert token is not None
        self.join_url = token.url("127.0.0.1", self.share_port)

    def client(self) -> redis.Redis:
        """Its Valkey, for this machine."""
        return connect(store.url(self.folder / "data"))

    def ask(self, model: str) -> httpx.Response:
        """A short chat."""
        body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "hello boards"}]}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=LIMIT)

    def states(self, board: str) -> dict[str, str]:
        """The models of a board, and how each is."""
        found = httpx.get(f"{self.url}/v1/boards", timeout=LIMIT).json()["data"]
        return {model["id"]: model["state"] for each in found if each["id"] == board for model in each["models"]}

    def stream(self, text: str, begun: threading.Barrier | None = None) -> tuple[str, str]:
        """An answer and its job's id. With `begun`, a part of it is waited for, and all who do."""
        body = {"model": "twin", "stream": True, "messages": [{"role": "user", "content": text}]}
        said = ""
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=LIMIT) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    said += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                if begun is not None and len(said) > 20:
                    begun.wait()
                    begun = None
            return said, answer.headers["x-job-id"]

    def boards(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of an administrator, over HTTP."""
        return command("boards", *words, "--url", self.url)

    def models(self) -> dict[str, list[str]]:
        """What it serves, with the boards that have it."""
        found = httpx.get(f"{self.url}/v1/queue", timeout=LIMIT).json()["data"]
        return {model["id"]: [board["name"] for board in model["boards"]] for model in found}


def of_release(folder: Path, version: str, **formats: int) -> dict[str, str]:
    """Variables that make a command another release, which writes events in such a format."""
    known = folder / f"rockchipllama-{version}.dist-info" / "METADATA"
    known.parent.mkdir(parents=True)
    known.write_text(f"Metadata-Version: 2.1\nName: rockchipllama\nVersion: {version}\n")
    changes = "".join(f"tasks.events.{name} = {number}\n" for name, number in formats.items())
    (folder / "sitecustomize.py").write_text(f"import tasks.events\n{changes}")
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One for all tests here."""
    service = Shared(tmp_path_factory.mktemp("shared") / "first")
    try:
        yield service
    finally:
        service.stop()


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command with a data directory, that ends by itself."""
    return command(*words, "--data-dir", str(folder / "data"), **variables)


def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """One that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.main", *words],
        env={name: value for name, value in os.environ.items() if not name.startswith("ROCKCHIPLLAMA_")} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )


def test_a_board_joins_with_one_line_comes_back_and_is_cut_off(shared: Shared, tmp_path: Path) -> None:
    """The second time nothing has to be typed; a token that was revoked ends it at once, and other boards go on."""
    folder = tmp_path / "second"
    invited = run(shared.folder, "boards", "invite", "second")
    assert invited.returncode == 0, invited.stderr
    [url] = re.findall(r"rockchipllama join (rl://\S+)", invited.stdout)
    board = Command(folder, "join", url, "--name", "second")
    try:
        eventually(lambda: shared.models().get("echo-of-second") == ["second"], what=board.said)
        listed = httpx.get(f"{shared.url}/v1/boards", timeout=LIMIT).json()["data"]
        assert [(board["id"], [model["id"] for model in board["models"]]) for board in listed] == [
            ("first", ["echo-of-first", "twin"]),
            ("second", ["echo-of-second", "twin"]),
        ]
        assert listed[1]["version"] == VERSION and listed[1]["memory"]["total"] > listed[1]["memory"]["available"] > 0
        refused = run(folder, "keys", "list")
        assert refused.returncode == 1 and "where the service runs" in refused.stderr
        answer = shared.ask("echo-of-second")
        assert answer.status_code == 200 and "hello" in answer.json()["choices"][0]["message"]["content"]
        token = sharing.parse(url)[0]
        lines = [psutil.Process(board.process.pid).cmdline(), *map(command_of, board.family())]
        assert token.secret not in str(lines), "every user of the machine reads those"
    finally:
        board.stop()
    assert (folder / "data" / "joined").stat().st_mode & 0o077 == 0
    assert url.partition("second.")[2].partition("@")[0] not in board.said, "a secret in the log"
    eventually(lambda: shared.models()["echo-of-second"] == [], what="the board has left")

    board = Command(folder, "up", ROCKCHIPLLAMA_BOARD_NAME="second")
    try:
        eventually(lambda: shared.models()["echo-of-second"] == ["second"], what=board.said)
        tokens = json.loads(run(shared.folder, "boards", "tokens", "--json").stdout)
        assert tokens == [{"name": sharing.FIRST}, {"name": "second"}]
        assert "lets nobody in" in run(shared.folder, "boards", "revoke", "second").stdout
        told = "the worker's parent is not let in by Redis: its token was revoked"
        eventually(lambda: "the board is not let in by Redis" in board.said and told in board.said, what=board.said)
        assert r"\n" not in board.said
        assert shared.ask("twin").status_code == 200
    finally:
        board.pull_the_plug()  # how a board leaves was seen above
    refused = run(tmp_path / "third", "join", url)
    assert refused.returncode == 2 and "was revoked" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.full
def test_a_drained_board_hands_its_streams_over(shared: Shared, tmp_path: Path) -> None:
    """32 streams of a model that two boards have: each gets its whole answer once, whichever board began it. One whose other
    board is free is read there before it is let go of here."""
    board = Command(tmp_path / "second", "join", shared.join_url, "--name", "second")
    begun = threading.Barrier(3, timeout=LIMIT)
    try:
        both = ("first", "second")
        eventually(lambda: [shared.states(each).get("twin") for each in both] == ["loaded"] * 2, what=board.said)
        texts = [*(f"{number} {LONG}" for number in range(2)), *(f"{number} short" for number in range(2, 32))]
        with ThreadPoolExecutor(32) as pool:
            answers = [pool.submit(shared.stream, text, begun) for text in texts[:2]]
            begun.wait()
            assert httpx.post(f"{shared.url}/v1/boards/first/drain", timeout=LIMIT).json()["drained"]
            answers += [pool.submit(shared.stream, text) for text in texts[2:]]
            assert [answer.result(LIMIT)[0] for answer in answers] == texts
        assert re.search("job handed back .*now=waiting", shared.said), shared.said
        eventually(lambda: set(shared.states("first").values()) == {"unloaded"}, what="it serves nothing")
        assert "drained" in run(shared.folder, "boards").stdout
        assert shared.boards("resume", "first").returncode == 0
        eventually(lambda: shared.states("first").get("twin") == "loaded", what="it serves again")
        begun = threading.Barrier(2, timeout=LIMIT)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(shared.stream, LONG, begun)
            begun.wait()
            busy = eventually(lambda: next((each for each in both if shared.states(each)["twin"] == "busy"), None))
            assert httpx.post(f"{shared.url}/v1/boards/{busy}/drain", timeout=LIMIT).status_code == 200
            text, job = answer.result(LIMIT)
        assert text == LONG
        assert f"job read ahead job={job}" in (shared if busy == "second" else board).said
        assert shared.boards("resume", busy).returncode == 0
        unknown = shared.boards("drain", "third")
        assert unknown.returncode == 1 and "first, second" in unknown.stderr
    finally:
        shared.client().delete(keys.DRAINED)
        board.stop()


@pytest.mark.full
def test_a_board_whose_plug_is_pulled_loses_no_answer(shared: Shared, tmp_path: Path) -> None:
    """It found the service by its token alone. It loaded the model that was asked for, and put it away when its time was over.
    Then both boards are in the middle of an
    answer, and one is gone with all its processes: the other says both to their ends, and it comes back with nothing typed."""
    kitchen = tmp_path / "kitchen"
    token = shared.join_url.removeprefix("rl://").partition("@")[0]
    board = Command(kitchen, "join", token, "--name", "kitchen")
    loaded = {"echo-of-kitchen": "unloaded", "twin": "loaded"}
    try:
        eventually(lambda: shared.states("kitchen") == loaded or board.process.poll() is not None, what="it is there")
        assert board.process.poll() is None, board.said
        asked = {"model": "echo-of-kitchen", "prompt": "once", "stream": False, "keep_alive": "1s"}
        for times in (1, 2):
            answer = httpx.post(f"{shared.url}/api/generate", json=asked, timeout=LIMIT).json()
            assert "once" in answer["response"], answer
            assert board.said.count("loaded echo-of-kitchen in") == times
            put_away = "nobody asks for echo-of-kitchen any more"
            eventually(lambda: board.said.count(put_away) == times, what="its time is over")  # noqa: B023
        eventually(lambda: shared.states("first").get("twin") == "loaded", what="both have it")
        begun = threading.Barrier(3, timeout=LIMIT)
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(shared.stream, f"{number} {LONG}", begun) for number in range(2)]
            begun.wait()
            board.pull_the_plug()
            assert [answer.result(LIMIT)[0] for answer in answers] == [f"{number} {LONG}" for number in range(2)]
        jobs = [httpx.get(f"{shared.url}/v1/jobs/{answer.result()[1]}", timeout=LIMIT).json() for answer in answers]
        assert sorted((job["board"], job["attempts"]) for job in jobs) == [("first", 1), ("first", 2)]
        board = Command(kitchen, "join", ROCKCHIPLLAMA_BOARD_NAME="kitchen")
        eventually(lambda: shared.states("kitchen").get("twin") == "loaded", what=board.said)
    finally:
        board.stop()


@pytest.mark.full
def test_boards_of_other_releases_are_told_and_harm_nobody(shared: Shared, tmp_path: Path) -> None:
    """One that differs in its version alone serves like any other. One that writes events as nobody here can read them fails
    the jobs that it answers, in words, and no others; it computes nothing that nobody reads."""
    release = of_release(tmp_path / "release", "9.9.9")
    later = of_release(tmp_path / "later", "10.0.0", EVENTS_VERSION=EVENTS_VERSION + 1)
    boards = [
        Command(tmp_path / "second", "join", shared.join_url, "--name", "second", **release),
        Command(tmp_path / "third", "join", shared.join_url, "--name", "third", **later),
    ]
    told = "The board 'second' runs version 9.9.9"
    try:
        eventually(lambda: shared.states("second") and shared.states("third"), what=boards[0].said)
        listed = httpx.get(f"{shared.url}/v1/boards", timeout=LIMIT).json()["data"]
        assert [board["version"] for board in listed] == [VERSION, "9.9.9", "10.0.0"]
        eventually(lambda: told in shared.said, what="the log")
        model = httpx.get(f"{shared.url}/v1/models/echo-of-second", timeout=LIMIT).json()
        assert told in model["meta"]["notes"][-1]
        assert "The board 'first' runs version" in boards[1].said, "whoever joins is told as well"
        assert f"({VERSION}, 10.0.0, 9.9.9)" in run(shared.folder, "boards").stdout
        assert shared.ask("echo-of-second").status_code == 200
        failed = shared.ask("echo-of-third")
        assert failed.json()["error"]["code"] == "unreadable_record", failed.text
        assert "newer version" in failed.json()["error"]["message"]
        job = failed.headers["x-job-id"]
        eventually(lambda: shared.client().hget(keys.job(job), "state") not in (b"queued", b"running"), what="its end")
        assert shared.ask("echo-of-first").status_code == shared.ask("echo-of-second").status_code == 200
    finally:
        for board in boards:
            board.stop()


@pytest.mark.full
def test_a_conversation_stays_on_its_board(shared: Shared, tmp_path: Path) -> None:
    """Two of them, while both boards have nothing else to do: each goes on where it began, in whatever order turns come."""
    board = Command(tmp_path / "second", "join", shared.join_url, "--name", "second")
    try:
        both = ("first", "second")
        eventually(lambda: [shared.states(each).get("twin") for each in both] == ["loaded"] * 2, what=board.said)
        talks: tuple[list[dict[str, str]], ...] = ([], [])
        served: tuple[list[str], ...] = ([], [])
        for turn, which in enumerate((0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0)):
            talks[which].append({"role": "user", "content": f"Turn {turn} of talk {which}"})
            body = {"model": "twin", "max_tokens": 8, "messages": talks[which]}
            reply = httpx.post(f"{shared.url}/v1/chat/completions", json=body, timeout=LIMIT)
            talks[which].append(reply.json()["choices"][0]["message"])
            job = httpx.get(f"{shared.url}/v1/jobs/{reply.headers['x-job-id']}", timeout=LIMIT).json()
            served[which].append(job["board"])
        assert [len(set(boards)) for boards in served] == [1, 1], served
    finally:
        board.stop()


def test_a_board_reaches_what_it_needs_and_no_more(shared: Shared) -> None:
    """A token opens jobs and models. Without one nothing answers, and no token opens the API keys or the server."""
    token, host, port = sharing.parse(shared.join_url)
    board = connect(token.redis_url(host, port))
    assert board.ping()
    ours = {name for name, key in vars(keys).items() if isinstance(key, str) and key.startswith("rl:a")}
    assert ours == {"API_KEYS"}, "boards may not reach what begins with an a"
    with pytest.raises(redis.exceptions.NoPermissionError):
        board.hgetall("rl:api_keys")
    with pytest.raises(redis.exceptions.ResponseError, match="No permissions to access a key"):
        board.eval("return redis.call('HGETALL', 'rl:api_keys')", 0)
    with pytest.raises(redis.exceptions.NoPermissionError):
        board.config_get("*")
    with pytest.raises(redis.exceptions.NoPermissionError):
        board.execute_command("ACL", "LIST")
    with pytest.raises(redis.exceptions.AuthenticationError):
        connect(f"redis://{host}:{port}/0", retries=0).ping()


def test_two_boards_of_one_name_and_a_damaged_url_are_refused(shared: Shared, tmp_path: Path) -> None:
    """By a sentence that says what to do, and nothing is kept of what was refused."""
    token, host, _ = sharing.parse(shared.join_url)
    taken = run(tmp_path, "join", shared.join_url, "--name", "first")
    assert taken.returncode == 1 and "--name" in taken.stderr and token.secret not in taken.stderr
    damaged = run(tmp_path, "join", shared.join_url.replace(token.secret, token.secret[:8]))
    assert damaged.returncode == 2 and "cut off" in damaged.stderr and token.secret[:8] not in damaged.stderr
    nobody = run(tmp_path, "join", JOIN_URL=token.url(host, free_port()))
    assert nobody.returncode == 1 and "up --share" in nobody.stderr
    nothing = run(tmp_path, "join")
    assert nothing.returncode == 1 and "joined nothing" in nothing.stderr
    assert not (tmp_path / "data" / "joined").exists()


@pytest.mark.full
def test_a_board_copies_a_model_from_the_first(shared: Shared, tmp_path: Path) -> None:
    """It is told so over HTTP, and the internet is never asked: there is none."""
    tokenizer = {"model": "gpt2", "pre": "gpt-2", "bos_token_id": 0, "merges": ["a b"]}
    made = tiny_model(tmp_path, tokenizer, [(letter, NORMAL) for letter in "abcdefgh"])
    assert made.path is not None
    home = shared.folder / "models" / "own"
    home.mkdir()
    shutil.copy(made.path, home / "Own-1B-Q4_0.gguf")
    board = Command(tmp_path / "copier", "join", shared.join_url, "--name", "copier", HF_ENDPOINT="http://127.0.0.1:9")
    try:
        eventually(lambda: "own-1b" in shared.models() and "copier" in shared.models()["twin"], what="both boards")
        asked = {"model": "own:1b", "board": "copier", "stream": False}
        done = httpx.post(f"{shared.url}/api/pull", json=asked, timeout=LIMIT)
        assert done.json() == {"status": "success"}, board.said
        assert sorted(shared.models()["own-1b"]) == ["copier", "first"]
        copied = board.folder / "models" / "own-1b" / "Own-1B-Q4_0.gguf"
        assert copied.read_bytes() == made.path.read_bytes()
    finally:
        board.stop()
        shutil.rmtree(home)
