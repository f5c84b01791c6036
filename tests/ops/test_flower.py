"""Flower, as people see it: a real one, watching calls that are announced to it as workers do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from tornado.httpserver import HTTPServer
from tornado.options import options

from ops import environment
from ops.flower.server import Server
from ops.flower.settings import FlowerSettings
from ops.flower.watch import FlowerRefused, watch
from tasks.broker import celery_app
from tasks.queue import SERVE
from tasks.settings import ROOT
from tests.stack import LIMIT, eventually, free_port

JOB = "abcdefghijklmnopqrstuv"
PASSWORD = ("ada", "a long random word")


@dataclass
class Watching:
    """A Flower that runs in a folder of its own."""

    http: httpx.Client
    folder: Path
    said: str


@pytest.fixture(scope="module")
def flower(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watching]:
    folder = tmp_path_factory.mktemp("flower")
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ROCKCHIPLLAMA_REDIS_URL": valkey_url,
        "ROCKCHIPLLAMA_FLOWER_LOGIN": ":".join(PASSWORD),
    }
    command = [sys.executable, "-m", "ops.cli.main", "flower", "--port", str(port)]
    (folder / "flowerconfig.py").write_text("read_only = False\n")
    with (
        subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT) as http,
    ):
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            eventually(lambda: answers(http), what="Flower answers")
            yield Watching(http, folder, said)
        finally:
            process.terminate()


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthcheck").status_code == 200
    except httpx.TransportError:
        return False


def test_it_asks_for_the_password(flower: Watching) -> None:
    """Whoever has none sees whether it runs, and nothing else."""
    assert [flower.http.get(path).status_code for path in ("/workers", "/tasks", "/healthcheck")] == [401, 401, 200]
    assert flower.http.get("/workers", auth=PASSWORD).status_code == 200


def test_calls_are_named_by_model_lane_and_job(flower: Watching, valkey_url: str) -> None:
    """Instead of a function's name and three words in brackets."""
    arguments = repr(("qwen3", "batch", JOB))
    query = {"draw": 1, "start": 0, "length": 10, "search[value]": "", "order[0][column]": 0, "order[0][dir]": "asc"}

    def shown() -> list[dict[str, str]]:
        with celery_app(valkey_url) as app, app.events.default_dispatcher(hostname="qwen3@b1") as events:
            events.send("task-received", uuid="u1", name=SERVE, args=arguments, kwargs="{}")
        reply = flower.http.get("/tasks/datatable", params={**query, "columns[0][data]": "name"}, auth=PASSWORD)
        assert reply.status_code == 200, reply.text
        found: list[dict[str, str]] = reply.json()["data"]
        return found

    eventually(shown, what="the call is shown")
    [task] = shown()
    assert (task["name"], task["args"], task["worker"]) == ("qwen3, batch", JOB, "qwen3@b1")


def test_it_only_looks(flower: Watching) -> None:
    """What it ended, boards would start again, and no client would be told; a file of Flower's in the folder says otherwise."""
    ended = flower.http.post("/api/worker/shutdown/qwen3@b1", auth=PASSWORD)
    assert ended.status_code == 403


def test_it_keeps_nothing_on_the_disk(flower: Watching) -> None:
    """SD cards wear."""
    assert [path.name for path in flower.folder.iterdir()] == ["flowerconfig.py"]


def test_it_says_where_it_is(flower: Watching) -> None:
    """Before anything else."""
    assert flower.said.startswith(f"Flower shows workers and calls at {str(flower.http.base_url).rstrip('/')}, ")


def test_it_is_not_open_to_a_network_without_a_login() -> None:
    """What is asked for, and when, is not for everybody."""
    with pytest.raises(FlowerRefused, match="ROCKCHIPLLAMA_FLOWER_LOGIN"):
        watch(FlowerSettings(flower_host="0.0.0.0", flower_login=None))


@pytest.mark.parametrize("login", ["ada", ":secret", "ada:"])
def test_a_login_is_a_name_and_a_password(login: str) -> None:
    """What Flower would let nobody in with, or anybody."""
    with pytest.raises(ValidationError):
        FlowerSettings(flower_login=SecretStr(login))


@pytest.mark.full
def test_in_a_container_a_login_that_is_none_is_one_sentence() -> None:
    """Without the login, since what a container says is kept."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.flower"],
        env=environment.for_child({"ROCKCHIPLLAMA_FLOWER_LOGIN": "sesame"}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "flower_login" in done.stderr
    assert "sesame" not in done.stderr


@pytest.fixture
def flowers_options() -> Iterator[None]:
    """Those that Flower keeps for the whole process, as they were."""
    before = options.as_dict()
    yield
    for name, value in before.items():
        setattr(options, name, value)


async def statuses(settings: FlowerSettings, *hosts: str) -> list[int]:
    """Of the page with all calls, asked for by each of these names."""
    port = free_port()
    listening = HTTPServer(Server(settings, "127.0.0.1", port))
    listening.listen(port, "127.0.0.1")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT) as http:
        found = [(await http.get("/tasks", headers={"Host": host})).status_code for host in hosts]
    listening.stop()
    return found


@pytest.mark.usefixtures("flowers_options")
async def test_without_a_login_it_answers_under_names_of_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that has its own name lead here would be shown everything. One who knows the password is no such page."""
    hosts = ("127.0.0.1:5555", "localhost", "flower:5555", "rebound.example.org:5555", "board.example.org")
    assert await statuses(FlowerSettings(flower_login=None), *hosts) == [200, 200, 200, 403, 403]
    monkeypatch.setenv("ROCKCHIPLLAMA_ALLOWED_HOSTS", "board.example.org")
    assert await statuses(FlowerSettings(flower_login=None), *hosts[-2:]) == [403, 200]
    assert await statuses(FlowerSettings(flower_login=SecretStr(":".join(PASSWORD))), *hosts[-2:]) == [401, 401]


@pytest.mark.usefixtures("flowers_options")
async def test_variables_of_flowers_own_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for where it listens, which it has said already."""
    monkeypatch.setenv("FLOWER_MAX_TASKS", "7")
    monkeypatch.setenv("FLOWER_PORT", "1")
    Server(FlowerSettings(), "127.0.0.1", 5555)
    assert (options.max_tasks, options.port) == (7, 5555)
