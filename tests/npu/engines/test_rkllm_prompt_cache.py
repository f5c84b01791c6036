"""A system prompt that the manifest names is read from a file, where that is faster and right, against a simulator."""

from __future__ import annotations

import shutil
import stat
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from npu.engine import Ability, Sampling
from npu.engines import Setup
from npu.engines.rkllm import kept_prefix
from npu.engines.rkllm.cache_file import Trial, try_file
from npu.engines.rkllm.engine import RkllmEngine
from npu.errors import ModelRefused
from npu.manifest import read_manifest
from npu.model import Model
from npu.rkllm.handle import Handle
from npu.simulator import Language, Profile, SimulatedModel, write_model
from tests.npu.engines.test_rkllm import GREEDY, LANGUAGE, expected, run
from tests.simulators import share_simulators

SYSTEM = "You run a house with many lights and doors and you answer briefly and never lie. " * 3
ABLE = ("1.2.0", "1.2.3", "1.3.0")
SLOW = SimulatedModel(profile=Profile(prefill_tps=400))
"""The prompt takes a quarter of a second to read."""


class Bench:
    """Loads one model again and again."""

    def __init__(self, folder: Path) -> None:
        self.setup = Setup(folder / "run")
        self.folder = folder / "model"
        (folder / "run").mkdir()
        share_simulators(folder / "run")
        self.engines: list[RkllmEngine] = []

    def model(self, simulated: SimulatedModel = SLOW, **changes: Any) -> Model:
        write_model(self.folder, simulated)
        model = read_manifest(self.folder / "manifest.toml")
        return replace(model, **{"sampling_defaults": GREEDY, "cached_system_prompt": SYSTEM, **changes})

    def load(self, model: Model, version: str = "1.3.0") -> RkllmEngine:
        self.setup = replace(self.setup, rkllm_library=f"simulator-{version}")
        engine = RkllmEngine.open(model, self.setup)
        self.engines.append(engine)
        return engine

    def files(self) -> list[Path]:
        return sorted((self.setup.runtime_dir / "simulated").glob("*.prompt-cache"))

    def note(self, model: Model) -> str:
        return " ".join(
            note for note in RkllmEngine.describe(model, self.setup).notes if "cached_system_prompt" in note
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for engine in bench.engines:
        engine.close()


@pytest.fixture(autouse=True)
def measured() -> Iterator[None]:
    """What is loaded is there sooner than what is read, however busy this machine is."""

    def tried(*given: Any) -> Trial:
        trial = try_file(*given)
        return trial if trial.load is None else replace(trial, load=min(trial.load, trial.read / 4))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kept_prefix, "try_file", tried)
        yield


def chat(question: str, system: str = SYSTEM) -> list[int]:
    return LANGUAGE.tokenize(
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


PREFIX = len(chat("")) - len(LANGUAGE.tokenize("<|im_end|>\n<|im_start|>assistant\n"))


@pytest.mark.parametrize("version", ABLE)
def test_a_prompt_that_begins_so_is_not_read_again(bench: Bench, version: str) -> None:
    """After another conversation and after a restart, sampled by whom it may be; the answer is the one of a model that has
    read it."""
    model = bench.model()
    for _ in range(2):
        engine = bench.load(model, version)
        assert "instead of" in bench.note(model)
        for question in ("Hello", "What is the capital of France?"):
            other = chat(question, "Somebody else's.")
            assert run(engine, other)[0] == expected(other)
            tokens = chat(question)
            answer, _, stats = run(engine, tokens)
            assert answer == expected(tokens)
            if engine.loaded.family.CAPABILITIES.perf:
                assert stats.cached_tokens >= PREFIX - 2
            assert run(engine, other, 5, Sampling(temperature=0.0, seed=1))[0] == expected(other, 5)
            assert run(engine, tokens, 5, Sampling(temperature=0.0, seed=1))[0] == expected(tokens, 5)
        engine.close()


def test_the_file_holds_the_prefix_and_nothing_of_anybody(bench: Bench) -> None:
    """For its owner's eyes; written once, and again when anything it is tied to has changed."""
    model = bench.model()
    engine = bench.load(model)
    (path,) = bench.files()
    written = path.read_bytes()
    begin = len("RKLLM-SIMULATED-CACHE 1\n")
    _, length = struct.unpack("QQ", written[begin : begin + 16])
    ids = struct.unpack(f"{length}i", written[begin + 16 : begin + 16 + 4 * length])
    assert list(ids) == chat("Hello")[:length] and length >= PREFIX - 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    run(engine, chat("My secret"))
    engine.close()
    bench.load(model).close()
    assert bench.files() == [path] and path.read_bytes() == written
    for changed in (
        replace(model, cached_system_prompt=SYSTEM + "Be kind."),
        replace(model, context_length=2048),
    ):
        bench.load(changed).close()
        (other,) = bench.files()
        assert other != path
        path = other
    bench.load(replace(model, cached_system_prompt=None)).close()
    assert bench.files() == []


def test_a_file_cut_short_is_written_anew_and_a_damaged_one_left(bench: Bench) -> None:
    """Nobody's answer suffers."""
    model = bench.model()
    bench.load(model).close()
    (path,) = bench.files()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    engine = bench.load(model)
    assert path.read_bytes() == whole
    path.write_bytes(b"?" * len(whole))
    for question in ("Hello", "And now?"):
        for tokens in (chat(question, "Other."), chat(question)):
            assert run(engine, tokens)[0] == expected(tokens)


def test_a_file_with_one_bit_turned_is_written_anew(bench: Bench) -> None:
    """The runtime would answer from it as from any other."""
    model = bench.model()
    bench.load(model).close()
    (path,) = bench.files()
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    engine = bench.load(model)
    assert path.read_bytes() == whole
    assert run(engine, chat("Hello"))[0] == expected(chat("Hello"))


@pytest.mark.parametrize(
    ("simulated", "version", "words"),
    [
        (SimulatedModel(), "1.3.0", "it is read in"),
        (replace(SLOW, full_attention=False), "1.3.0", "does not find its way back"),
        (replace(SLOW, switches={"state_after_abort": "error"}), "1.2.0", "wrote none"),
    ],
    ids=["quick", "no reuse", "unwritten"],
)
def test_what_does_not_help_is_not_kept(bench: Bench, simulated: SimulatedModel, version: str, words: str) -> None:
    """The card says why, and prompts are read as ever."""
    model = bench.model(simulated)
    engine = bench.load(model, version)
    assert words in bench.note(model)
    assert bench.files() == []
    tokens = chat("Hello")
    assert run(engine, tokens)[0] == Language(answers=simulated.answers).expected_answer(tokens, 40)


def test_it_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too large a file is removed, and none is written where there is too little room; that is tried again."""
    model = bench.model()
    monkeypatch.setattr(kept_prefix, "MEGABYTE", 1)
    bench.load(model).close()
    assert bench.files() == [] and "more than prompt_cache_mb" in bench.note(model)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    bench.load(model).close()
    assert bench.files() == [] and "is free" in bench.note(model)
    monkeypatch.undo()
    bench.load(model).close()
    assert len(bench.files()) == 1


def test_what_is_loaded_must_be_right_and_faster(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured with the file itself: one that says other things afterwards is not used, nor one that saves nothing."""
    load = Handle.load_prompt_cache

    def spoiled(handle: Handle, path: Path) -> bool:
        data = path.read_bytes()
        count = struct.unpack("Q", data[32:40])[0]
        path.write_bytes(data[: -8 * count] + b"\1" * 8 * count)  # as another adapter has read it
        return load(handle, path)

    def as_slow(*given: Any) -> Trial:
        trial = try_file(*given)
        assert trial.load is not None
        return replace(trial, read=trial.load)  # nothing was there, so it was read once more

    for loading, words in ((spoiled, "other ones"), (lambda handle, path: True, "to load it takes")):
        model = bench.model(cached_system_prompt=SYSTEM + words)
        monkeypatch.setattr(Handle, "load_prompt_cache", loading)
        if loading is not spoiled:
            monkeypatch.setattr(kept_prefix, "try_file", as_slow)
        engine = bench.load(model)
        assert words in bench.note(model) and bench.files() == []
        monkeypatch.undo()
        tokens = chat("Hello", SYSTEM + words)
        assert run(engine, tokens)[0] == expected(tokens)
        engine.close()


def test_vectors_are_of_the_whole_text(bench: Bench) -> None:
    """No row may be missing because the file had it."""
    both = frozenset({Ability.TEXT, Ability.EMBEDDING})
    engine = bench.load(bench.model(abilities=both))
    tokens = chat("Hello")
    run(engine, tokens)
    vector = engine.embed(tokens).result()
    assert vector == pytest.approx(LANGUAGE.hidden(tokens, SimulatedModel().hidden_size)[-1], abs=1e-6)
    assert run(engine, tokens)[0] == expected(tokens)


@pytest.mark.parametrize(
    ("version", "changes", "words"),
    [
        ("1.1.4", {}, r"1\.1\.4 reads every prompt from its start"),
        ("1.3.0", {"engine_options": {"n_batch": 2}}, "n_batch"),
        ("1.3.0", {"engine_options": {"self_test": 0}}, "self_test = 0"),
        ("1.3.0", {"abilities": frozenset({Ability.EMBEDDING})}, "abilities"),
        ("1.3.0", {"template": "{{ raise_exception('no system') }}"}, "does not take the cached_system_prompt"),
        ("1.3.0", {"cached_system_prompt": "word " * 5000}, "5000|context"),
    ],
    ids=["1.1", "n_batch", "self_test", "abilities", "template", "too long"],
)
def test_what_cannot_be_is_refused(bench: Bench, version: str, changes: dict[str, Any], words: str) -> None:
    """By name, before anybody waits for it."""
    with pytest.raises(ModelRefused, match=words):
        bench.load(bench.model(SimulatedModel(), **changes), version)


def test_a_manifest_names_a_file_of_its_folder(bench: Bench) -> None:
    """And an engine that can."""
    bench.model()
    (bench.folder / "house.txt").write_text(SYSTEM)
    manifest = bench.folder / "manifest.toml"
    manifest.write_text(f'{manifest.read_text()}cached_system_prompt = "house.txt"\n')
    assert read_manifest(manifest).cached_system_prompt == SYSTEM
    manifest.write_text('engine = "echo"\ncached_system_prompt = "house.txt"\n')
    with pytest.raises(ModelRefused, match="echo can keep"):
        read_manifest(manifest)
