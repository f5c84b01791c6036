"""The process llama.cpp runs in: it can be ended in any state, it ends with its parent, and its death harms nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from npu.engine import Prompt, Sampling, TextEngine
from npu.engines import Setup, open_engine
from npu.engines.llamacpp.process import ServerProcess, ServerSettings
from npu.engines.llamacpp.server import Call, read_address
from npu.errors import EngineFailed, OutOfMemory
from npu.model import Model
from tests.npu.demo import MODELS_DIR, demo_model
from tests.npu.engines.hosts import WAIT, host, kill_host, wait_until_gone
from tests.npu.engines.test_llamacpp import GREEDY

pytestmark = pytest.mark.model

ENDLESS = "<|im_start|>" * 700_000
"""In one string, hours of tokenizing."""


@pytest.fixture(scope="module")
def model() -> Model:
    return demo_model("llamacpp")


@pytest.fixture
def engine(model: Model, tmp_path: Path) -> Iterator[TextEngine]:
    engine = open_engine(model, Setup(tmp_path, context_length=1024))
    yield engine
    engine.close()


def works(engine: TextEngine) -> bool:
    return len(list(engine.generate(Prompt(engine.tokenizer.encode("One two"), 3), GREEDY))) == 3


def tokenizing(folder: Path) -> threading.Thread:
    """Keep the server of this folder tokenizing, in a thread that ends with it; it has begun when this returns."""
    address = read_address(folder)
    assert address is not None
    sent = threading.Event()

    class Watched(Call):
        def _send(self):  # type: ignore[no-untyped-def]
            with self._lock:
                self._connection.connect()
            self._connection.request("POST", self._path, self._body, self._headers)
            sent.set()
            return self._connection.getresponse()

    def ask() -> None:
        with pytest.raises((OSError, ValueError)):
            Watched(address, "/tokenize", {"content": ENDLESS, "parse_special": True}).result()

    thread = threading.Thread(target=ask)
    thread.start()
    assert sent.wait(WAIT)
    return thread


def blocked(tmp_path: Path) -> ServerSettings:
    """A model whose load never ends: nobody writes into this pipe. The library waits with Python's lock in its hands."""
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    return ServerSettings(str(pipe), str(tmp_path / "s.sock"), "key", context=256, batch=64, threads=1)


class TestClosing:
    def test_while_it_tokenizes(self, engine: TextEngine, model: Model, tmp_path: Path) -> None:
        pid, thread = host(engine), tokenizing(tmp_path / model.id)
        engine.close()
        assert not psutil.pid_exists(pid)
        thread.join(WAIT)
        assert not thread.is_alive()

    def test_while_it_generates(self, engine: TextEngine) -> None:
        pieces = iter(engine.generate(Prompt([40], 900), Sampling(ignore_eos=True)))
        next(pieces)
        engine.close()
        with pytest.raises(EngineFailed, match="ended by SIGKILL"):
            list(pieces)

    def test_while_it_loads(self, tmp_path: Path) -> None:
        server, said = ServerProcess(), list[BaseException]()

        def load() -> None:
            try:
                server.load(blocked(tmp_path))
            except EngineFailed as error:
                said.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        wait_until_it_has_the_library(server._process.pid)
        server.close()
        thread.join(WAIT)
        assert "closed while it loaded" in str(said[0])
        assert not psutil.pid_exists(server._process.pid)

    def test_an_interrupted_load_leaves_nothing_behind(self, tmp_path: Path) -> None:
        class Interrupted(BaseException):
            pass

        def interrupt(*_: object) -> None:
            raise Interrupted

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            server = ServerProcess()
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(Interrupted):
                server.load(blocked(tmp_path))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert not psutil.pid_exists(server._process.pid)


class TestDeath:
    def test_in_mid_answer_it_is_told_with_its_signal_and_the_next_open_works(
        self, engine: TextEngine, model: Model, tmp_path: Path
    ) -> None:
        pieces = iter(engine.generate(Prompt([40], 900), Sampling(ignore_eos=True)))
        next(pieces)
        os.kill(host(engine), signal.SIGSEGV)
        with pytest.raises(EngineFailed, match="ended by SIGSEGV"):
            list(pieces)
        engine.close()
        again = open_engine(model, Setup(tmp_path, context_length=256))
        assert works(again)
        again.close()

    def test_while_nobody_asks_it_anything_a_new_one_is_started(self, engine: TextEngine) -> None:
        for _ in range(2):
            kill_host(engine)
            assert works(engine)
        kill_host(engine)
        assert len(list(engine.generate(Prompt([40], 3), GREEDY))) == 3

    def test_killed_while_it_loads(self, tmp_path: Path) -> None:
        """As the kernel does it when memory runs out."""
        server = ServerProcess()

        def kill() -> None:
            wait_until_it_has_the_library(server._process.pid)
            os.kill(server._process.pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(OutOfMemory, match="SIGKILL while it loaded"):
            server.load(blocked(tmp_path))
        thread.join(WAIT)


class TestParent:
    """What becomes of it when its parent is killed and can say nothing."""

    def left_by(self, script: str, *words: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            stdout=subprocess.PIPE,
            text=True,
            timeout=WAIT,
            check=False,
            cwd=MODELS_DIR.parent,
        )
        assert done.returncode == -signal.SIGKILL
        return int(done.stdout)

    @pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
    def test_while_it_loads(self, tmp_path: Path, stopped: bool) -> None:
        """Also one that was stopped, which acts on no gentler signal until somebody lets it go on."""
        script = (
            "import os, sys, threading; from pathlib import Path\n"
            "from npu.engines.llamacpp.process import ServerProcess\n"
            "from tests.npu.engines.hosts import stop\n"
            "from tests.npu.engines.test_llamacpp_process import blocked, wait_until_it_has_the_library\n"
            "server = ServerProcess()\n"
            "threading.Thread(target=server.load, args=(blocked(Path(sys.argv[1])),)).start()\n"
            "wait_until_it_has_the_library(server._process.pid)\n"
            "if sys.argv[2:]: stop(server._process.pid)\n"
            "print(server._process.pid, flush=True); os.kill(os.getpid(), 9)\n"
        )
        wait_until_gone(self.left_by(script, str(tmp_path), *["stop"] * stopped))

    def test_while_nobody_asks_it_anything_and_it_is_stopped(self, tmp_path: Path) -> None:
        script = (
            "import os, sys; from pathlib import Path\n"
            "from npu.engines import Setup, open_engine\n"
            "from tests.npu.engines.hosts import host, stop\n"
            "from tests.npu.engines.test_llamacpp_tokenizer import sentencepiece\n"
            "engine = open_engine(sentencepiece(Path(sys.argv[1])), Setup(Path(sys.argv[1]), context_length=256))\n"
            "stop(host(engine))\n"
            "print(host(engine), flush=True); os.kill(os.getpid(), 9)\n"
        )
        wait_until_gone(self.left_by(script, str(tmp_path)))

    def test_while_it_tokenizes_and_a_forked_child_lives_on(self, model: Model, tmp_path: Path) -> None:
        """Of the socket that ties it to its parent the child has no copy; and what the child closes stays open."""
        script = (
            "import os, sys, time; from pathlib import Path\n"
            "from npu.catalog import find_models; from npu.engines import Setup, open_engine\n"
            "from tests.npu.engines.hosts import host\n"
            "from tests.npu.engines.test_llamacpp_process import tokenizing, works\n"
            "run = Path(sys.argv[2])\n"
            "engine = open_engine(find_models(Path(sys.argv[1])).find('smollm2-135m-instruct'), Setup(run, context_length=256))\n"
            "ready = os.pipe()\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    engine.close()\n"
            "    os.write(ready[1], b'closed')\n"
            "    os.close(1); time.sleep(600)\n"
            "assert os.read(ready[0], 6) == b'closed'\n"
            "assert works(engine)\n"
            "tokenizing(run / 'smollm2-135m-instruct')\n"
            "Path(sys.argv[2], 'child').write_text(str(child))\n"
            "print(host(engine), flush=True); os.kill(os.getpid(), 9)\n"
        )
        pid = self.left_by(script, str(MODELS_DIR), str(tmp_path))
        child = int((tmp_path / "child").read_text())
        try:
            wait_until_gone(pid)
            assert psutil.pid_exists(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_it_knows_no_settings_of_ours(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCKCHIPLLAMA_API_KEYS", "secret")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    engine = open_engine(model, Setup(tmp_path, context_length=256))
    environment = psutil.Process(host(engine)).environ()
    engine.close()
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert not [name for name in environment if name.startswith("ROCKCHIPLLAMA")]


def test_a_stopping_service_does_not_take_it_along(engine: TextEngine) -> None:
    """Ctrl-C and SIGTERM reach the whole group; the answer in hand is still to be finished."""
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(host(engine), number)
    pid = host(engine)
    assert works(engine)
    assert host(engine) == pid


def wait_until_it_has_the_library(pid: int) -> None:
    """Wait until the process has mapped the library, which it does just before it loads."""
    deadline = threading.Event()
    for _ in range(int(WAIT / 0.01)):
        if "xllamacpp" in Path(f"/proc/{pid}/maps").read_text():
            return
        deadline.wait(0.01)
    raise AssertionError("the library was never loaded")
