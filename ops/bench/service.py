"""A private service to measure: `rockchipllama up` on echo models, in a temporary folder, gone when the block ends."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from ops import environment
from ops.bench.client import Line, chat
from ops.bench.confinement import Confinement
from ops.bench.processes import Member, members
from ops.up import store
from tasks import keys
from tasks.connection import connect
from tasks.settings import PREFIX

QUICK, FAST, PLAIN, GATE = "quick", "fast", "plain", "gate"
BOARD = ("board-1", "board-2", "board-3", "board-4")
MODELS: dict[str, dict[str, float]] = {
    QUICK: {},
    FAST: {"tokens_per_second": 500},
    PLAIN: {"tokens_per_second": 80},
    GATE: {"prefill_tokens_per_second": 2000},
    **{name: {"tokens_per_second": 30} for name in BOARD},
}
"""The echoes by their pace: as fast as it can; the fastest that counts; each token an append of its own; one whose first
job can hold back all others for as long as it reads a long prompt; and some as slow as a board."""
CONTEXT = 131_072

START = 60.0
STOP = 60.0
FILES = 16_384
"""Open files the service may need: one for each client."""


class Service:
    """The service, running. Raises `RuntimeError` with the log's last lines when it does not start, and `NotConfined`."""

    def __init__(self, share: float | None = None) -> None:
        """`share` is that of one core to which all of it is confined; None leaves it the machine."""
        self.share = share
        self._confinement = Confinement(share) if share is not None else None
        self.folder = Path(tempfile.mkdtemp(prefix="rockchipllama-bench-"))
        self.port = _free_port()
        self.ready_seconds = 0.0
        """From its start to its first yes."""
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        for name, options in MODELS.items():
            _write_model(self.folder / "models" / name, name, options)
        (self.folder / "empty.toml").touch()

    @property
    def redis_url(self) -> str:
        """Its Valkey."""
        return store.url(self.data)

    @property
    def data(self) -> Path:
        """What it writes."""
        return self.folder / "data"

    def members(self) -> list[Member]:
        """Its processes."""
        assert self._process is not None
        for process in psutil.Process(self._process.pid).children():
            if process.cmdline()[-1] == "up":
                return members(process.pid)
        raise RuntimeError("the service has ended by itself")

    def load(self, model: str) -> None:
        """Have the model in memory, and everything that answers for the first time done once."""
        with Line(self.port) as line:
            for _ in range(5):
                line.stream(chat(model, "warm", max_tokens=4))

    def settle(self) -> None:
        """Wait until no job is left."""
        client = connect(self.redis_url)
        left = [key for model in MODELS for key in (keys.waiting(model), keys.running(model))]
        deadline = time.monotonic() + START
        while client.exists(*left):
            if time.monotonic() > deadline:
                raise RuntimeError("jobs whose clients have left do not end")
            time.sleep(0.05)
        client.close()

    def __enter__(self) -> Service:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def _start(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        limit = START / (self.share or 1)
        # The guard ends it when the pipe closes, so a benchmark that is killed hard leaves nothing running.
        command = ["/bin/sh", "-c", store.GUARD, "bench-guard", sys.executable, "-m", "ops.cli.main", "up"]
        if self._confinement is not None:
            command = self._confinement.__enter__().command(command)
        begun = time.monotonic()
        with (self.folder / "up.log").open("wb") as log:
            reader, self._lifeline = os.pipe()
            self._process = subprocess.Popen(
                command,
                env=self._environment(),
                stdin=reader,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for the benchmark, which stops the service in order
            )
            os.close(reader)
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() - begun > limit:
                tail = (self.folder / "up.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the service to measure does not start; it said:\n{tail}")
            time.sleep(0.02)
        self.ready_seconds = time.monotonic() - begun

    def _environment(self) -> dict[str, str]:
        # Nothing of the user's own settings: figures are compared between machines.
        bare = {name: value for name, value in environment.for_child({}).items() if not name.upper().startswith(PREFIX)}
        mine = {
            "config": self.folder / "empty.toml",
            "data_dir": self.data,
            "models_dir": self.folder / "models",
            "port": self.port,
            "board_name": "bench",
            "default_model": QUICK,
            "queue_limit": 4096,
        }
        return {**bare, **{environment.variable(name): str(value) for name, value in mine.items()}}

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            family = _family(process.pid)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=STOP)
            for leftover in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    leftover.kill()
            process.wait()
            os.close(self._lifeline)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._confinement is not None:
            self._confinement.__exit__()


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    return []


def _write_model(folder: Path, name: str, options: dict[str, float]) -> None:
    folder.mkdir(parents=True)
    lines = ['engine = "echo"', f'id = "{name}"', f"context_length = {CONTEXT}", "[engine_options]"]
    lines += [f"{key} = {float(value)}" for key, value in options.items()]
    (folder / "manifest.toml").write_text("\n".join(lines) + "\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
