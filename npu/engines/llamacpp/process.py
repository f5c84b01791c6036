"""The process a llama-server runs in, seen from the one that uses it (`npu/engines/llamacpp/host.py` is the other side).

Inside the worker's child the library kept Python's lock while it loaded and while it stopped, for minutes at worst, and no
thread of that process could say that it lived. A process can be killed at once, whatever it does.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

from npu.errors import EngineFailed, ModelRefused, OutOfMemory
from npu.hardware.kernel import read

LAST_WORDS_SECONDS = 2.0
"""How long a process may take to end after its connections broke, until one says it did not."""

KILL_SECONDS = 30.0
"""How long the kernel may take to free the memory of a killed process."""

_NAMES = ("PATH", "HOME", "TMPDIR")
_PREFIXES = ("LD_", "OMP_", "GOMP_")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a llama-server is started with."""

    path: str
    """Of the weights."""
    socket: str
    """Where it is to listen."""
    key: str
    """What its clients must show."""
    context: int
    """Tokens."""
    batch: int
    """Tokens prefilled at a time."""
    threads: int
    files: str = ""
    """The folder of the files that it may write its cache to, and read it from; empty: it does neither."""


class ServerProcess:
    """One llama-server. It ends with `close` and with this process, and may be closed from any thread, in any state."""

    def __init__(self) -> None:
        """Start the process, which then waits for `load`. Raises `EngineFailed`."""
        self._closed = False
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", str(Path(__file__).with_name("host.py"))],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=_environment(),
                )
        except OSError as error:
            self._socket.close()
            raise EngineFailed(f"The process for llama.cpp cannot be started: {error}.") from error
        _ALL.add(self)

    def load(self, settings: ServerSettings) -> None:
        """Load the model and wait until it can run. Raises `ModelRefused`, `OutOfMemory`, `EngineFailed`.

        Whatever interrupts the wait, `close` in another thread or an exception in this one, leaves no process behind.
        """
        try:
            self._load(settings)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill it, which frees its memory. Twice is safe."""
        self._closed = True
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS)
        self._socket.close()

    @property
    def running(self) -> bool:
        """Whether it has not ended, by itself or by somebody's hand."""
        return self._process.poll() is None

    @property
    def memory_mb(self) -> float:
        """Millions of bytes it held at the most, its weights among them; 0 once it has ended."""
        for line in read(Path(f"/proc/{self._process.pid}/status")).splitlines():
            name, _, rest = line.partition(":")
            if name == "VmHWM":
                return int(rest.split()[0]) * 1024 / 1e6
        return 0.0

    def last_words(self) -> str | None:
        """How it ended, as a sentence; None when it goes on. Asked when a connection broke, it waits a moment for the end."""
        try:
            status = self._process.wait(LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        return f"The process of llama.cpp ended {_manner(status)}."

    def _load(self, settings: ServerSettings) -> None:
        try:
            self._socket.sendall(json.dumps(asdict(settings)).encode() + b"\n")
            answer = self._read_answer()
        except (OSError, ValueError):
            answer = {}
        if "ready" in answer:
            return
        if "import" in answer:
            raise EngineFailed(
                f"xllamacpp cannot be loaded: {answer['import']}. Slim systems lack a library it needs: install `libgomp1`."
            )
        if "load" in answer:
            raise ModelRefused(
                f"{settings.path}: llama.cpp cannot load this file. It is damaged, needs a newer version than "
                f"{xllamacpp_version()} of xllamacpp, or does not fit into memory."
            )
        if self._closed:
            raise EngineFailed("The engine was closed while it loaded the model.")
        words = self.last_words() or "The process of llama.cpp broke its connection."
        if self._process.returncode == -signal.SIGKILL:
            raise OutOfMemory(
                f"{settings.path}: {words[:-1]} while it loaded the model, which is what the kernel does when memory runs "
                "out. Lower `context_length` in the model's manifest, or unload another model."
            )
        raise EngineFailed(f"{settings.path}: {words[:-1]} while it loaded the model. Fetch the file again.")

    def _read_answer(self) -> dict[str, Any]:
        line = bytearray()
        while not line.endswith(b"\n"):
            part = self._socket.recv(1 << 16)
            if not part:
                return {}
            line += part
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _forget(self) -> None:
        # In a forked process: it belongs to the parent, whose death it would not notice while a copy of the socket is open.
        self._socket.close()
        self._process.returncode = 0  # Popen would complain that nobody waits for it.


def xllamacpp_version() -> str:
    """The installed version. Raises `ModelRefused` when there is none."""
    try:
        return importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        raise ModelRefused("GGUF models need the package xllamacpp, which is not installed here. Install it.") from None


def _environment() -> dict[str, str]:
    """What the loader and the library may need, and nothing of ours: the settings hold keys."""
    return {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - handed on, not read
        if name in _NAMES or name.startswith(_PREFIXES)
    }


def _manner(status: int) -> str:
    if status >= 0:
        return f"with the exit code {status}"
    with contextlib.suppress(ValueError):
        return f"by {signal.Signals(-status).name}"
    return f"by signal {-status}"


def _forget_all() -> None:
    for process in list(_ALL):
        process._forget()
    _ALL.clear()


_ALL: WeakSet[ServerProcess] = WeakSet()
os.register_at_fork(after_in_child=_forget_all)
