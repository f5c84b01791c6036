"""What is particular to the engine that embeds llama-server."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from npu.engine import End, Prompt, Sampling
from npu.engines import Setup, describe, open_engine, open_tokenizer
from npu.engines.llamacpp.generation import LlamaCppGeneration
from npu.engines.llamacpp.server import Address, publish_address, read_address, withdraw_address
from npu.errors import EngineFailed, ModelRefused, OutOfMemory, PromptRefused
from npu.gguf import read_gguf
from npu.hardware import Memory
from npu.model import Model
from npu.vocabulary import Vocabulary
from tests.npu.demo import MODELS_DIR, demo_model
from tests.npu.engines.hosts import host
from tests.npu.test_gguf import gguf

GREEDY = Sampling(temperature=0.0)
pytestmark = pytest.mark.model

SETUP = Setup(Path("unused"))
"""Describing looks at the file alone."""


@pytest.fixture(scope="module")
def model() -> Model:
    return demo_model("llamacpp")


class TestLoading:
    def test_a_file_cut_short(self, model: Model, tmp_path: Path) -> None:
        assert model.path is not None
        cut = tmp_path / "cut.gguf"
        with model.path.open("rb") as whole:
            cut.write_bytes(whole.read(4_000_000))
        with pytest.raises(ModelRefused, match="cut short"):
            open_engine(replace(model, path=cut), Setup(tmp_path))

    def test_a_file_llama_cpp_cannot_load_leaves_nothing_behind(self, model: Model, tmp_path: Path) -> None:
        odd = tmp_path / "odd.gguf"
        odd.write_bytes(gguf())
        with pytest.raises(ModelRefused, match=r"odd\.gguf"):
            open_engine(replace(model, path=odd), Setup(tmp_path / "run"))
        assert [path for path in (tmp_path / "run").rglob("*") if not path.is_dir()] == []

    def test_too_big_for_memory(self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("npu.engines.llamacpp.engine.read_memory", lambda: Memory(1 << 30, 100 << 20))
        with pytest.raises(OutOfMemory, match="100 MB are free"):
            open_engine(model, Setup(tmp_path))

    def test_without_weights(self, tmp_path: Path) -> None:
        with pytest.raises(ModelRefused, match="needs weights"):
            open_engine(Model(id="x", engine="llamacpp", folder=tmp_path), Setup(tmp_path))

    def test_no_network_port_is_opened_and_the_key_is_private(self, model: Model, tmp_path: Path) -> None:
        engine = open_engine(model, Setup(tmp_path, context_length=256))
        assert psutil.Process(host(engine)).net_connections("inet") == []
        assert stat.S_IMODE((tmp_path / model.id / "server.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / model.id).stat().st_mode) == 0o700
        address = read_address(tmp_path / model.id)
        assert address is not None
        stranger = open_tokenizer(model, Setup(tmp_path / "stranger"))
        publish_address(tmp_path / "stranger" / model.id, 256)
        (tmp_path / "stranger" / model.id / "server.json").write_text(
            json.dumps({"socket": str(address.socket), "key": "guessed", "context_length": 256})
        )
        with pytest.raises(EngineFailed, match="API Key"):
            stranger.encode("hello")
        engine.close()
        assert not address.socket.exists()

    def test_again_in_the_same_process_and_directory(self, model: Model, tmp_path: Path) -> None:
        for _ in range(2):
            engine = open_engine(model, Setup(tmp_path, context_length=256))
            assert list(engine.generate(Prompt(engine.tokenizer.encode("One"), 2), GREEDY))
            engine.close()

    def test_a_directory_too_deep_for_a_socket(self, model: Model, tmp_path: Path) -> None:
        deep = tmp_path / ("d" * 100)
        engine = open_engine(model, Setup(deep, context_length=256))
        address = read_address(deep / model.id)
        assert address is not None
        assert deep not in address.socket.parents
        assert stat.S_IMODE(address.socket.parent.stat().st_mode) == 0o700
        assert open_tokenizer(model, Setup(deep)).encode("Hi")
        engine.close()
        assert not address.socket.parent.exists()

    def test_after_a_fork_in_silence_with_signals_as_they_were(self, tmp_path: Path) -> None:
        """As Celery does it: the parent reads the catalogue, its child loads. Nothing is printed by the library."""
        script = (
            "import os, signal, sys; from pathlib import Path\n"
            "from npu.catalog import find_models; from npu.engines import Setup, open_engine, describe, chat_template\n"
            "from npu.engine import Prompt, Sampling\n"
            "model = find_models(Path(sys.argv[1])).find('smollm2-135m-instruct')\n"
            "describe(model, Setup(Path(sys.argv[2]))); template = chat_template(model); template.render([])\n"
            "if os.fork():\n"
            "    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
            "caught = []\n"
            "signal.signal(signal.SIGTERM, lambda *_: caught.append('TERM'))\n"
            "engine = open_engine(model, Setup(Path(sys.argv[2]), context_length=256))\n"
            "os.kill(os.getpid(), signal.SIGTERM)\n"
            "ids = engine.tokenizer.encode(template.render([{'role': 'user', 'content': 'Hi'}]))\n"
            "assert len(list(engine.generate(Prompt(ids, 3), Sampling(temperature=0.0)))) == 3\n"
            "assert caught == ['TERM']\n"
            "engine.close()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(MODELS_DIR), str(tmp_path)],
            capture_output=True,
            timeout=100,
            check=False,
            cwd=MODELS_DIR.parent,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


class TestFacts:
    def test_of_the_demo_model(self, model: Model) -> None:
        facts = describe(model, SETUP)
        assert (facts.context_length, facts.parameters, facts.quantization, facts.chat) == (8192, "135M", "Q4_1", True)
        assert describe(model, replace(SETUP, context_length=256)).memory_bytes < facts.memory_bytes

    def test_more_than_the_model_was_made_for_is_cut_and_said(self, model: Model) -> None:
        facts = describe(model, replace(SETUP, context_length=100_000))
        assert facts.context_length == 8192
        assert any("100000" in note for note in facts.notes)

    def test_a_base_model_says_it_cannot_chat(self, model: Model, tmp_path: Path) -> None:
        base = tmp_path / "base.gguf"
        base.write_bytes(gguf({"general.architecture": "tiny", "tiny.context_length": 131072}))
        facts = describe(replace(model, path=base, folder=tmp_path), SETUP)
        assert not facts.chat
        assert any("base model" in note for note in facts.notes)
        assert facts.context_length == 8192
        assert any("131072" in note for note in facts.notes)

    def test_an_adapter_is_no_model(self, model: Model, tmp_path: Path) -> None:
        adapter = tmp_path / "poet.gguf"
        adapter.write_bytes(gguf({"general.architecture": "tiny", "general.type": "adapter"}))
        with pytest.raises(ModelRefused, match="LoRA adapter"):
            describe(replace(model, path=adapter, folder=tmp_path), SETUP)


class TestTokenizerWithoutEngine:
    def test_it_says_the_model_is_not_loaded(self, model: Model, tmp_path: Path) -> None:
        with pytest.raises(EngineFailed, match="not loaded yet"):
            open_tokenizer(model, Setup(tmp_path)).encode("hello")

    def test_also_when_a_killed_engine_left_its_address(self, model: Model, tmp_path: Path) -> None:
        address = publish_address(tmp_path / model.id, 256)
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(address.socket))
        left.close()
        with pytest.raises(EngineFailed, match="not loaded yet"):
            open_tokenizer(model, Setup(tmp_path)).encode("hello")
        withdraw_address(tmp_path / model.id)
        assert not address.socket.exists()

    def test_it_decodes_all_the_same(self, model: Model, tmp_path: Path) -> None:
        assert open_tokenizer(model, Setup(tmp_path)).decode([28120]) == b"hello"


ASKED = "<|im_start|>user\nExplain how rain is made.<|im_end|>\n<|im_start|>assistant\n"


class TestGoingOn:
    """Behind the beginning of an answer at temperature 0."""

    def test_in_the_words_it_would_have_had(self, model: Model, tmp_path: Path) -> None:
        """Though another process says them. Read in one go, sixty tokens of this answer lead to another one."""
        one, other = (open_engine(model, Setup(tmp_path / each, context_length=512)) for each in ("one", "other"))
        try:
            asked = Prompt(one.tokenizer.encode(ASKED), 100)
            whole = [piece.token for piece in one.generate(asked, GREEDY)]
            begun = [*asked.tokens, *whole[:60]]
            read: list[int] = []
            run = other.generate(Prompt(begun, 40, said=60), GREEDY, read.append)
            assert [piece.token for piece in run] == whole[60:]
            assert (run.end, run.stats.prompt_tokens, run.stats.generated_tokens) == (End.LENGTH, len(begun), 40)
            assert run.stats.memory_mb > 10  # no process is smaller
            assert read[-60:] == list(range(len(asked.tokens) + 1, len(begun) + 1))
            # Nothing is said twice where it is remembered.
            before = len(read)
            rest = other.generate(Prompt([*begun, *whole[60:90]], 10, said=90), GREEDY, read.append)
            assert [piece.token for piece in rest] == whole[90:]
            assert len(read) <= before + 2
        finally:
            one.close()
            other.close()

    def test_behind_what_it_would_not_have_said(self, model: Model, tmp_path: Path) -> None:
        """As what ends a thought: read token by token, on the engine that said the rest and on another one alike."""
        one, other = (open_engine(model, Setup(tmp_path / each, context_length=512)) for each in ("one", "other"))
        try:
            asked = Prompt(one.tokenizer.encode(ASKED), 20)
            said = [piece.token for piece in one.generate(asked, GREEDY)]
            forced = one.tokenizer.encode(" Wait, no: cats and dogs")
            begun = Prompt([*asked.tokens, *said, *forced], 30, said=20 + len(forced))
            rest = [piece.token for piece in one.generate(begun, GREEDY)]
            assert len(rest) == 30
            again = Prompt([*begun.tokens, *rest[:15]], 15, said=begun.said + 15)
            assert [piece.token for piece in other.generate(again, GREEDY)] == rest[15:]
        finally:
            one.close()
            other.close()

    def test_aborted_while_it_says_the_beginning_again(self, model: Model, tmp_path: Path) -> None:
        engine = open_engine(model, Setup(tmp_path, context_length=512))
        try:
            asked = Prompt(engine.tokenizer.encode(ASKED), 50)
            whole = [piece.token for piece in engine.generate(asked, GREEDY)]
            list(engine.generate(Prompt(engine.tokenizer.encode("Hello"), 1), GREEDY))

            def stop(tokens: int) -> None:
                if tokens == len(asked.tokens) + 5:
                    run.abort()

            begun = Prompt([*asked.tokens, *whole[:40]], 10, said=40)
            run = engine.generate(begun, GREEDY, stop)
            assert list(run) == []
            assert run.end is End.ABORTED
            again = engine.generate(begun, GREEDY)
            assert [piece.token for piece in again] == whole[40:]
        finally:
            engine.close()


def test_tokens_held_back_are_taken_singly_where_bytes_leave_two_ways(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(model, Setup(tmp_path, context_length=512))
    asked = Prompt(
        engine.tokenizer.encode("<|im_start|>user\nWrite 😀 😃 🎉 then 世界你好<|im_end|>\n<|im_start|>assistant\n"), 16
    )
    sure = list(engine.generate(asked, GREEDY))
    monkeypatch.setattr(Vocabulary, "ways", lambda *_: iter([(1,), (2,)]))
    single = engine.generate(asked, GREEDY)
    assert list(single) == sure
    assert single.end is End.LENGTH
    assert single.stats.generated_tokens == 16
    engine.close()


def http(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


class TestBrokenServer:
    """A server that answers as llama-server might on a bad day."""

    @pytest.fixture
    def answering(self, model: Model, tmp_path: Path) -> Iterator[object]:
        assert model.path is not None
        vocabulary = Vocabulary(read_gguf(model.path))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()
        threads: list[threading.Thread] = []

        def start(answer: bytes) -> LlamaCppGeneration:
            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    asked = b""
                    while b"\r\n\r\n" not in asked or not asked.endswith(b"}"):
                        asked += connection.recv(1 << 16)
                    connection.sendall(answer)

            threads.append(threading.Thread(target=serve))
            threads[-1].start()
            address = Address(tmp_path / "s.sock", "key", 512)
            return LlamaCppGeneration(address, vocabulary, 512, Prompt([28120], 4), GREEDY, None)

        yield start
        for thread in threads:
            thread.join(60)
        listener.close()

    @pytest.mark.parametrize(
        ("answer", "error", "words"),
        [
            (b"", EngineFailed, "broke"),
            (b"garbage\r\n\r\n", EngineFailed, "broke"),
            (http(500, b'{"error":{"code":500,"message":"no way"}}'), EngineFailed, "no way"),
            (http(400, b'{"error":{"code":400,"message":"no way"}}'), PromptRefused, "no way"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", EngineFailed, "broke"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", EngineFailed, "without saying why"),
            (http(200, b"data: {half\n\n"), EngineFailed, "broke"),
            (http(200, b'data: {"error":{"code":500,"message":"no way"}}\n\n'), EngineFailed, "no way"),
            (http(200, b'error: {"code":500,"message":"no way"}\n\n'), EngineFailed, "no way"),
        ],
        ids=["closed", "garbage", "500", "400", "cut", "empty", "half", "error event", "error field"],
    )
    def test_it_is_told_in_words(self, answering, answer: bytes, error: type[Exception], words: str) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(error, match=words):
            list(answering(answer))
