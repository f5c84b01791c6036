"""llama.cpp's conversations are kept in memory when others displace them, and loaded when they go on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from npu.engine import End, Prompt, Sampling, Stats
from npu.engines import Setup, parking
from npu.engines.llamacpp import generation as llamacpp_generation
from npu.engines.llamacpp.engine import LlamaCppEngine
from npu.engines.llamacpp.generation import LlamaCppGeneration
from npu.engines.llamacpp.parking import LlamaCppFiles, LlamaCppParking
from npu.engines.llamacpp.server import Address
from npu.errors import EngineFailed
from npu.memory_file import MemoryFile
from npu.vocabulary import Vocabulary
from tests.npu.demo import demo_model

GREEDY = Sampling(temperature=0.0)
ONE = "The keeper climbed the stairs each evening, and counted them, for there was little else."
TWO = "A loaf of bread takes flour, water, salt and time, of which people have the least."
pytestmark = pytest.mark.model


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LlamaCppEngine]:
    """With conversations short enough for a test."""
    monkeypatch.setattr(parking, "WORTH_MS", 0.0)
    model = demo_model("llamacpp")
    engine = LlamaCppEngine(model, Setup(tmp_path, context_length=256))
    yield engine
    engine.close()


def ask(engine: LlamaCppEngine, tokens: list[int], owner: str = "", returns: bool = True) -> tuple[list[int], Stats]:
    run = engine.generate(Prompt(tokens, 3, owner=owner, returns=returns), GREEDY)
    return [piece.token for piece in run], run.stats


def test_a_conversation_that_was_displaced_is_not_read_again(engine: LlamaCppEngine) -> None:
    """Another's is read, though it is the same; and the memory is given back when it is wanted."""
    one, two, more = (engine.tokenizer.encode(text) for text in (ONE, TWO, " And what then?"))
    said, _ = ask(engine, one, "a")
    engine.pause_parking(3600)
    assert engine.park() > 3000 and engine.parked_bytes == 0
    engine.pause_parking(0)
    assert engine.park() == 0
    ahead = engine.parked_bytes
    assert ahead > 0
    longer = [*one, *said, *more]
    undisturbed, stats = ask(engine, longer, "a")
    assert stats.parked_tokens == 0 and stats.cached_tokens >= len(one)
    ask(engine, two, "a", returns=False)
    assert engine.parked_bytes > ahead
    longer += undisturbed
    again, stats = ask(engine, [*longer, *more], "a", returns=False)
    assert stats.parked_tokens >= len(longer) - 2 and len(again) == 3
    assert stats.prompt_tokens - stats.cached_tokens <= len(more) + 2
    _, stats = ask(engine, [*longer, *more[:1]], "b")
    assert stats.parked_tokens == 0
    engine.unpark()
    assert engine.parked_bytes == 0
    assert engine._server is not None
    engine._server.close()
    engine.park()
    assert engine.parks  # with the next server


def test_what_was_aborted_counts_as_far_as_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells nothing of how long a prompt takes."""

    class Cut:
        """A call that breaks when it is cancelled, as a connection does."""

        def __init__(self, *_: object) -> None:
            self.cancelled = False

        def events(self) -> Iterator[dict[str, Any]]:
            for processed in (20, 60):
                yield {"prompt_progress": {"total": 100, "cache": 20, "processed": processed, "time_ms": 1}}
            assert self.cancelled
            raise ConnectionResetError

        def cancel(self) -> None:
            self.cancelled = True

        close = cancel

    monkeypatch.setattr(llamacpp_generation, "Call", Cut)
    address, prompt = Address(tmp_path / "s.sock", "key", 256), Prompt(range(100), 3, returns=True)
    parking = LlamaCppParking(lambda: address, 1 << 20, 1)
    run = LlamaCppGeneration(
        *(address, cast(Vocabulary, None), 256, prompt, GREEDY, lambda tokens: run.abort() if tokens == 60 else None),
        parking=parking,
    )
    assert list(run) == [] and run.end is End.ABORTED
    assert run.tokens == list(range(60))
    assert parking._held is not None and (parking._held.tokens, parking._held.prompt) == (run.tokens, 60)
    assert parking._files.read_ms == 0


class Scripted(LlamaCppParking):
    """Of a server that does with each file what it is told, and holds a conversation that would take long to read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(lambda: Address(folder / "s.sock", "key", 256), 1 << 20, 1)
        self.doing: Callable[[], None] = lambda: None
        monkeypatch.setattr(LlamaCppFiles, "_ask", lambda _, action, file: self._save(file))
        self.reads()

    def reads(self) -> None:
        stats = Stats(prompt_tokens=100, cached_tokens=0, prefill_ms=100_000.0, generated_tokens=0, decode_ms=0.0)
        self.end(Prompt(range(100), 3, returns=True), list(range(100)), stats, read_ms=100_000.0)

    def _save(self, file: MemoryFile) -> dict[str, int]:
        file.path.write_bytes(b"state")
        self.doing()
        return {"n_saved": 100}


def test_a_server_that_dies_over_a_file_costs_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is asked again, as others may have killed that one, but not a third where the second dies as well."""
    scripted = Scripted(tmp_path, monkeypatch)
    parking, before = scripted.parking, set(os.listdir("/proc/self/fd"))

    def dies() -> None:
        raise ConnectionResetError

    for fate, works in ((dies, True), (lambda: None, True), (dies, True), (dies, False)):
        scripted.doing = fate
        scripted.park()
        assert parking.works is (fate is not dies)
        scripted.forget()
        assert parking.works is works
        scripted.reads()
        parking.empty()
    parking.close()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_what_a_pause_kept_from_memory_is_tried_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it had begun to be written. What is there is not written again."""
    now, written = 1000.0, []
    monkeypatch.setattr(parking.time, "monotonic", lambda: now)
    scripted = Scripted(tmp_path, monkeypatch)
    scripted.doing = lambda: (written.append(now), scripted.parking.pause(15))[0]
    assert scripted.park() == 15 and scripted.parking.size == 0
    now += 14
    assert scripted.park() == 1 and len(written) == 1
    now += 1
    scripted.doing = lambda: written.append(now)
    assert scripted.park() == 0 and scripted.parking.size > 0
    assert scripted.park() == 0 and written == [1000.0, 1015.0]
    scripted.parking.close()


@pytest.mark.full
def test_the_state_is_the_very_same(engine: LlamaCppEngine) -> None:
    """What goes on behind a conversation that was loaded goes on as behind one that never left."""
    one, two, more = (engine.tokenizer.encode(text) for text in (ONE, TWO, " And what then?"))
    said, _ = ask(engine, one, "a")
    undisturbed, _ = ask(engine, [*one, *said, *more], "a", returns=False)
    ask(engine, two, returns=False)
    assert ask(engine, one, "b")[0] == said
    ask(engine, two, returns=False)
    after, stats = ask(engine, [*one, *said, *more], "b", returns=False)
    assert stats.parked_tokens >= len(one) and after == undisturbed


@pytest.mark.full
def test_what_fails_is_read_and_told_once(engine: LlamaCppEngine, caplog: pytest.LogCaptureFixture) -> None:
    """A file that the server refuses costs a prefill, and the server goes on."""
    one, two = (engine.tokenizer.encode(text) for text in (ONE, TWO))
    said, _ = ask(engine, one)
    ask(engine, two, returns=False)
    caplog.set_level(logging.WARNING)
    for name in Path("/proc/self/fd").iterdir():
        if name.is_symlink() and "memfd:rockchipllama" in os.readlink(name):
            os.pwrite(int(name.name), b"\0" * 64, 0)
    for _ in range(2):
        again, stats = ask(engine, one)
        assert again == said and stats.parked_tokens == 0
        ask(engine, two, returns=False)
    assert len(caplog.messages) == 1 and "not parked any more" in caplog.messages[0]


@pytest.mark.full
def test_it_can_be_switched_off(tmp_path: Path) -> None:
    """Then the server can write and read no files."""
    model = replace(demo_model("llamacpp"), engine_options={"parking_mb": 0})
    engine = LlamaCppEngine(model, Setup(tmp_path, context_length=256))
    try:
        one, two = (engine.tokenizer.encode(text) for text in (ONE, TWO))
        ask(engine, one), ask(engine, two)
        assert engine.parked_bytes == 0
        file = MemoryFile()
        with pytest.raises(EngineFailed, match="not support"):
            LlamaCppFiles(lambda: engine._address).write(file, one, None)
        file.close()
    finally:
        engine.close()
