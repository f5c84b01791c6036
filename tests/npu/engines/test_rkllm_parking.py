"""Conversations that others displace from the cache are kept in memory and loaded again, against a simulator that knows every
answer."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npu.engine import Prompt, Sampling, Stats
from npu.engines import Setup, parking
from npu.engines.rkllm import engine as rkllm_engine
from npu.engines.rkllm import parking as rkllm_parking
from npu.engines.rkllm import parking_trial
from npu.engines.rkllm.cache_file import Trial, try_file
from npu.engines.rkllm.engine import RkllmEngine
from npu.engines.rkllm.facts import read_loaded
from npu.engines.rkllm.parking_trial import BEGUN
from npu.errors import EngineFailed
from npu.hardware import Memory
from npu.manifest import read_manifest
from npu.model import LoraAdapter, Model
from npu.rkllm.handle import Handle
from npu.self_test import SelfTest
from npu.simulator import Adapter, Profile, SimulatedModel, write_adapter, write_model
from tests.npu.engines.test_rkllm import GREEDY, LANGUAGE, expected
from tests.simulators import share_simulators

TOLD = SimulatedModel(profile=Profile(prefill_tps=500, decode_tps=50), time_scale=0.001)
"""Tells the speed of a board, and takes no time."""
SLOW = SimulatedModel(profile=Profile(prefill_tps=400))
"""Slow enough to be measured by."""
QUICK = SimulatedModel(profile=Profile(prefill_tps=2000))
"""Read so quickly that no file could be quicker."""
GIB = 1 << 30


class Bench:
    """Loads simulated models, and chats with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.setup = Setup(folder / "run")
        share_simulators(self.setup.runtime_dir)
        self.engines: list[RkllmEngine] = []

    def model(self, simulated: SimulatedModel = TOLD, **changes: Any) -> Model:
        write_model(self.folder / "model", simulated)
        return replace(
            read_manifest(self.folder / "model" / "manifest.toml"), **{"sampling_defaults": GREEDY, **changes}
        )

    def load(self, model: Model, version: str = "1.3.0") -> RkllmEngine:
        self.setup = replace(self.setup, rkllm_library=f"simulator-{version}")
        engine = RkllmEngine(model, self.setup)
        self.engines.append(engine)
        return engine

    def test(self, model: Model) -> SelfTest:
        loaded = read_loaded(model, self.setup)
        assert loaded is not None and loaded.self_test is not None
        return loaded.self_test


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for engine in bench.engines:
        engine.close()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parking helps, however busy this machine is."""

    def judge(engine: RkllmEngine, test: SelfTest, folder: Path) -> SelfTest:
        return replace(test, parks=True, park_ms=0.01, unpark_ms=0.01, parked_bytes=1024)

    monkeypatch.setattr(rkllm_engine, "try_parking", judge)


class Chat:
    """One conversation with an engine."""

    def __init__(self, engine: RkllmEngine, about: str, owner: str = "", adapter: str | None = None) -> None:
        self.engine = engine
        self.owner = owner
        self.adapter = adapter
        self.tokens = LANGUAGE.tokenize(f"<|im_start|>system\n{about}{' words' * 200}<|im_end|>\n")
        self.first = self.tokens
        self.new = 0

    def ask(self, text: str = "And now?", sampling: Sampling | None = None) -> Stats:
        """One turn; its answer is what a model says that has read everything."""
        asked = LANGUAGE.tokenize(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
        self.tokens += asked
        prompt = Prompt(self.tokens, 10, self.adapter, owner=self.owner, returns=True)
        generation = self.engine.generate(prompt, sampling or Sampling(**GREEDY))  # type: ignore[arg-type]
        answer = [piece.token for piece in generation]
        assert answer == LANGUAGE.expected_answer(self.tokens, 10, Adapter(self.adapter) if self.adapter else None)
        self.new = len(asked)
        self.tokens = [*self.tokens, *answer]
        return generation.stats


def once(engine: RkllmEngine, tokens: Sequence[int]) -> Stats:
    """A prompt that will not come back."""
    generation = engine.generate(Prompt(tokens, 5), Sampling(**GREEDY))  # type: ignore[arg-type]
    assert [piece.token for piece in generation] == expected(list(tokens), 5)
    return generation.stats


def read(stats: Stats) -> int:
    return stats.prompt_tokens - stats.cached_tokens


def parked(engine: RkllmEngine) -> int:
    """Bytes."""
    assert engine.loaded.cache.parking is not None
    return engine.loaded.cache.parking.size


def memory_files() -> list[str]:
    folder = Path("/proc/self/fd")
    return [name.name for name in folder.iterdir() if name.is_symlink() and "memfd:rockchipllama" in os.readlink(name)]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("version", "turns"), [("1.2.3", 2), ("1.3.0", 10)])
def test_two_conversations_are_each_read_once(bench: Bench, version: str, turns: int) -> None:
    """Though they take turns with each other and with three prompts that come once, sampled by whom it may be: at most 1.15
    times what is new is read."""
    engine = bench.load(bench.model(), version)
    one, two = Chat(engine, "One."), Chat(engine, "Two.")
    sides = [LANGUAGE.tokenize(f"Give {what}: words" * 20) for what in ("a title", "three tags", "a question")]
    all_read = all_new = 0
    for turn in range(turns):
        for chat in (one, two):
            stats = chat.ask("And what then? " * 4)
            assert turn == 0 or stats.parked_tokens > 300
            all_read, all_new = all_read + read(stats), all_new + chat.new + (len(chat.first) if turn == 0 else 0)
            for side in sides:
                once(engine, side)
    assert all_read <= 1.15 * all_new
    by_us = Sampling(temperature=0.0, seed=1)
    stats = one.ask(sampling=by_us)
    assert read(stats) <= one.new + 2 and stats.parked_tokens > 300
    assert read(two.ask()) <= two.new + 2
    assert len(memory_files()) <= 3


@pytest.mark.usefixtures("measured")
def test_what_goes_on_at_once_is_not_parked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the cache; also where its last answer comes back otherwise, without its thoughts."""
    monkeypatch.setattr(parking, "WORTH_MS", 0.0)
    engine = bench.load(bench.model(replace(TOLD, profile=Profile(prefill_tps=100, decode_tps=5000))))
    chat = Chat(engine, "One.")
    for _ in range(3):
        before = len(chat.tokens)
        chat.ask()
        chat.tokens = chat.tokens[: before + chat.new]
    assert parked(engine) == 0
    assert read(once(engine, LANGUAGE.tokenize("Give a title: words" * 40))) > 0
    assert parked(engine) > 0


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(("version", "stays"), [("1.3.0", True), ("1.2.3", False)])
def test_what_is_parked_ahead_stays_in_the_cache_and_is_not_written_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, version: str, stays: bool
) -> None:
    """A runtime whose cache would be empty afterwards writes when it is displaced."""
    engine = bench.load(bench.model(), version)
    written = []
    write = rkllm_parking.write_file
    monkeypatch.setattr(rkllm_parking, "write_file", lambda *rest: written.append(1) or write(*rest))  # type: ignore[func-returns-value]
    chat = Chat(engine, "One.")
    chat.ask()
    engine.pause_parking(3600)
    assert (engine.park() > 3000) is stays and not written
    engine.pause_parking(0)
    for _ in range(2):
        assert engine.park() == 0
        assert len(written) == (1 if stays else 0)
    stats = chat.ask()
    assert stats.parked_tokens == 0 and read(stats) <= chat.new + 2
    engine.park()
    once(engine, LANGUAGE.tokenize("Something else" * 40))
    assert len(written) == (2 if stays else 1)
    stats = chat.ask()
    assert stats.parked_tokens > 300 and read(stats) <= chat.new + 2


@pytest.mark.usefixtures("measured")
def test_nobody_is_given_what_another_has_had_read(bench: Bench) -> None:
    """Though they ask the same, word for word; nor is one adapter given what another has read."""
    adapter = LoraAdapter("tone", write_adapter(bench.folder / "tone_lora.rkllm"))
    engine = bench.load(bench.model(adapters=(adapter,)))
    mine, theirs, tone = (
        Chat(engine, "One.", "a"),
        Chat(engine, "One.", "b"),
        Chat(engine, "One.", "a", adapter="tone"),
    )
    mine.ask()
    once(engine, LANGUAGE.tokenize("Something else" * 40))
    for chat in (theirs, tone):
        stats = chat.ask()
        assert stats.parked_tokens == 0 and read(stats) > 300
    stats = mine.ask()
    assert stats.parked_tokens > 300 and read(stats) <= mine.new + 2
    stats = tone.ask()
    assert stats.parked_tokens > 300


@pytest.mark.usefixtures("measured")
def test_the_longest_unused_makes_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within what the manifest allows, and what is free on the machine; where nothing is, prompts are read as ever."""
    engine = bench.load(bench.model(replace(TOLD, cache_kb=1), engine_options={"parking_mb": 1}))
    one, two, three = (Chat(engine, about) for about in ("One.", "Two.", "Three."))
    for chat in (one, two, three):
        chat.ask()
    once(engine, LANGUAGE.tokenize("Something else" * 40))
    assert 0 < parked(engine) <= 1 << 20
    assert two.ask().parked_tokens > 300
    assert one.ask().parked_tokens == 0
    monkeypatch.setattr(parking, "read_memory", lambda: Memory(4 * GIB, GIB))
    before = parked(engine)
    three.ask()
    assert parked(engine) <= before
    assert engine.loaded.cache.parking is not None
    engine.loaded.cache.parking.empty()
    assert parked(engine) == 0
    once(engine, LANGUAGE.tokenize("Something else" * 40))
    assert parked(engine) == 0 and read(three.ask()) > 300


@pytest.mark.usefixtures("measured")
def test_it_is_for_this_process_alone_and_gone_with_the_model(bench: Bench) -> None:
    """No folder has it, and nobody else may open it."""
    engine = bench.load(bench.model())
    Chat(engine, "One.").ask()
    once(engine, LANGUAGE.tokenize("Something else" * 40))
    (name,) = memory_files()
    assert stat.S_IMODE(os.fstat(int(name)).st_mode) == 0o600
    assert os.get_inheritable(int(name)) is False
    engine.close()
    assert memory_files() == []


def _cut(handle: Handle, path: Path) -> bool:
    raise AssertionError("a file of another length must not be loaded")


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("failure", ["not written", "broken", "not loaded", "cut", "not used"])
def test_a_failure_costs_a_prefill_and_is_told_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    """Nobody's answer suffers."""
    engine = bench.load(bench.model())
    chats = [Chat(engine, about) for about in ("One.", "Two.")]
    caplog.set_level(logging.WARNING)
    if failure == "not written":
        monkeypatch.setattr(rkllm_parking, "write_file", lambda *_: None)
    if failure == "broken":

        def breaks(*_: object) -> None:
            raise EngineFailed("It broke.")

        monkeypatch.setattr(rkllm_parking, "write_file", breaks)
    chats[0].ask(), chats[1].ask()
    if failure == "not loaded":
        monkeypatch.setattr(Handle, "load_prompt_cache", lambda handle, path: False)
    if failure == "not used":
        monkeypatch.setattr(Handle, "load_prompt_cache", lambda handle, path: True)
    if failure == "cut":
        os.truncate(f"/proc/self/fd/{memory_files()[0]}", 100)
        monkeypatch.setattr(Handle, "load_prompt_cache", _cut)
    for chat in (*chats, *chats):
        assert read(chat.ask()) > 300
    assert [record for record in caplog.messages if "not parked any more" in record] and len(caplog.messages) == 1
    assert parked(engine) == 0
    engine.close()
    assert memory_files() == []


@pytest.mark.parametrize(
    ("simulated", "changes", "words"),
    [
        (replace(TOLD, cache_save_fail=True), {}, "wrote nothing"),
        (replace(TOLD, cache_load_fail=True), {}, "did not load"),
        (replace(TOLD, cache_spoiled=True), {}, "other ones"),
        (replace(QUICK, cache_kb=100, cache_mb_s=100), {}, "to write and load 64 tokens takes"),
        (TOLD, {}, "are read in"),
        (replace(TOLD, full_attention=False), {}, ""),
        (TOLD, {"engine_options": {"n_batch": 2}}, "n_batch"),
        (TOLD, {"engine_options": {"parking_mb": 0}}, ""),
        (TOLD, {"engine_options": {"host_sampling": 0}, "sampling_defaults": {}}, "the same twice"),
    ],
    ids=["unwritten", "unloaded", "spoiled", "slow", "quick", "no reuse", "n_batch", "off", "not greedy"],
)
def test_it_is_parked_only_where_that_was_seen_to_help(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, simulated: SimulatedModel, changes: dict[str, Any], words: str
) -> None:
    """The card says why not."""
    monkeypatch.setattr(parking_trial, "MEASURABLE_MS", 0.0 if simulated.cache_kb else 100.0)
    model = bench.model(simulated, **changes)
    engine = bench.load(model, "1.2.3")
    test = bench.test(model)
    assert engine.loaded.cache.parking is None and not test.parks
    assert words in test.not_parked and bool(words) == bool(test.not_parked)
    assert not words or f"conversations are not parked: {test.not_parked}" in " ".join(
        engine.describe(model, bench.setup).notes
    )


@pytest.mark.parametrize(
    "defaults", [pytest.param(GREEDY, id="by itself"), pytest.param({}, id="by logits", marks=pytest.mark.full)]
)
def test_what_was_measured_is_told_and_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, defaults: dict[str, Any]
) -> None:
    """Once for each model: the next load takes it from the file."""
    model = bench.model(replace(SLOW, cache_kb=100, cache_mb_s=1000), sampling_defaults=defaults)

    def tried(*given: Any, **more: Any) -> Trial:
        trial = try_file(*given, **more)
        assert trial.load is not None
        return replace(trial, write=min(trial.write, trial.read / 8), load=min(trial.load, trial.read / 8))

    monkeypatch.setattr(parking_trial, "try_file", tried)  # it helps, however busy this machine is
    bench.load(model, "1.2.3").close()
    test = bench.test(model)
    assert test.parks and test.parked_bytes is not None and test.park_ms is not None and test.unpark_ms is not None
    assert test.parked_bytes >= 100_000  # its times are those of a busy machine, and may be lost in others
    assert "can be parked in memory" in " ".join(RkllmEngine.describe(model, bench.setup).notes)
    engine = bench.load(model, "1.2.3")
    assert bench.test(model) == test and engine.loaded.cache.parking is not None


def test_what_ended_the_process_is_not_tried_again(bench: Bench) -> None:
    """The model is loaded all the same, and parks nothing."""
    model = bench.model()
    folder = bench.setup.runtime_dir / model.id
    folder.mkdir()
    (folder / BEGUN).touch()
    engine = bench.load(model)
    assert engine.loaded.cache.parking is None and not (folder / BEGUN).exists()
    assert "ended when it was tried" in bench.test(model).not_parked
