"""What is found out when a model is loaded, on every family of the runtime, and what follows from it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npu.engine import End, Prompt, Sampling
from npu.engines import Facts, Setup
from npu.engines.rkllm import engine as rkllm_engine
from npu.engines.rkllm import self_test
from npu.engines.rkllm.engine import RkllmEngine
from npu.engines.rkllm.facts import FACTS_FILE, read_loaded
from npu.errors import EngineFailed, ModelRefused, SamplingRefused
from npu.manifest import read_manifest
from npu.model import Model
from npu.rkllm.abi import FAMILIES
from npu.self_test import SelfTest, Verdict
from npu.simulator import Language, Profile, SimulatedModel, write_model
from npu.tokenizer_file import open_tokenizer_file
from tests.simulators import share_simulators

VERSIONS = tuple(abi.RUNTIMES[-1] for abi in FAMILIES)
WITH_LOGITS = VERSIONS[1:]
GREEDY: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repeat_penalty": 1.0}
MEASURABLE = Profile(prefill_tps=1000, decode_tps=2000)
"""64 tokens take 64 ms, which is enough to be judged by."""


class Bench:
    """Loads simulated models, and says what came of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.setup = Setup(folder / "run")
        share_simulators(self.setup.runtime_dir)
        self.engines: list[RkllmEngine] = []

    def model(self, simulated: SimulatedModel | None = None, **changes: Any) -> Model:
        folder = self._folder / f"model{len(list(self._folder.iterdir()))}"
        write_model(folder, simulated or SimulatedModel())
        return replace(read_manifest(folder / "manifest.toml"), **{"sampling_defaults": GREEDY, **changes})

    def load(self, model: Model, version: str = "1.3.0") -> RkllmEngine:
        self.setup = replace(self.setup, rkllm_library=f"simulator-{version}")
        engine = RkllmEngine(model, self.setup)
        self.engines.append(engine)
        return engine

    def test(self, model: Model) -> SelfTest:
        """What the last load of a model showed."""
        loaded = read_loaded(model, self.setup)
        assert loaded is not None and loaded.self_test is not None
        return loaded.self_test

    def tried(self, simulated: SimulatedModel | None = None, version: str = "1.3.0", **changes: Any) -> SelfTest:
        model = self.model(simulated, **changes)
        self.load(model, version).close()
        return self.test(model)

    def card(self, model: Model) -> Facts:
        return RkllmEngine.describe(model, self.setup)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for engine in bench.engines:
        engine.close()


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def says(engine: RkllmEngine, text: str, count: int = 12) -> list[int]:
    tokens = engine.tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
    generation = engine.generate(Prompt(tokens, count), Sampling(**GREEDY))
    answer = [piece.token for piece in generation]
    language = Language(answers=SimulatedModel().answers)
    assert answer == language.expected_answer(tokens, count)
    return answer


def test_a_sound_model(bench: Bench, version: str) -> None:
    """Every part of the test passes that the family has, and the card tells."""
    model = bench.model(SimulatedModel(profile=MEASURABLE))
    engine = bench.load(model, version)
    test = bench.test(model)
    can = engine.loaded.family.CAPABILITIES
    assert test.text is Verdict.SANE and test.said == ""
    assert test.reuse is can.prefix_reuse and not test.counts_cached
    assert test.logits is (Verdict.SANE if can.logits else Verdict.UNKNOWN)
    assert test.abort_ms is not None
    assert test.in_time
    assert test.decode_tps is not None and test.prefill_tps is not None
    notes = " ".join(bench.card(model).notes)
    assert "Self-test: text sane" in notes and "suspect" not in notes
    assert says(engine, "Hello")


def test_speeds_are_the_runtimes_own(bench: Bench) -> None:
    """Tokens over their own time: what stands around them is no part of it."""
    profile = Profile(prefill_tps=1000, decode_tps=100)
    test = bench.tried(SimulatedModel(profile=profile, time_scale=0.01))
    assert test.prefill_tps == pytest.approx(1000, rel=0.01)
    assert test.decode_tps == pytest.approx(100, rel=0.01)


def test_garbage_is_suspect(bench: Bench, version: str) -> None:
    """With what it said and the likeliest causes; it is served all the same unless the manifest is strict."""
    model = bench.model(SimulatedModel(garbage=True, driver="0.9.6", toolkit="1.2.2"))
    bench.load(model, version)
    test = bench.test(model)
    assert test.text is Verdict.SUSPECT and test.said
    (doubt,) = [note for note in bench.card(model).notes if "suspect: asked" in note]
    assert repr(test.said) in doubt
    assert "0.9.6" in doubt and "0.9.8" in doubt
    assert "tokenizer.json" in doubt and "converted badly" in doubt
    assert ("does not stop" in doubt) is (version == "1.3.0")


def test_a_base_model_by_its_name_and_a_template_of_the_manifest(bench: Bench) -> None:
    """Are causes that facts point to."""
    model = bench.model(SimulatedModel(name="thing-base", garbage=True))
    template = (model.folder / "tokenizer_config.json").read_text()
    model = replace(model, template=json.loads(template)["chat_template"])
    bench.load(model)
    (doubt,) = [note for note in bench.card(model).notes if "suspect: asked" in note]
    assert "base model" in doubt and "chat_template" in doubt


def test_a_number_in_nonsense_is_no_answer(bench: Bench) -> None:
    """Of many bad models each is found out, also where a 4 happens to be in what they say."""
    for seed in range(12):
        assert bench.tried(SimulatedModel(garbage=True, seed=seed)).text is Verdict.SUSPECT


def test_one_right_answer_is_enough(bench: Bench) -> None:
    """Small models are wrong, too."""
    for question, answer in SimulatedModel().answers.items():
        assert bench.tried(SimulatedModel(answers={question: answer})).text is Verdict.SANE


def test_a_right_answer_ends_the_questions(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the time is for what a slow model needs."""
    asked, question = list[str](), self_test.SelfTester._question
    monkeypatch.setattr(
        self_test.SelfTester, "_question", lambda self, text: asked.append(text) or question(self, text)
    )
    second = "What is 2 + 2?"
    bench.tried()
    assert second not in asked
    bench.tried(SimulatedModel(answers={"2 + 2": "2 + 2 is 4."}))
    assert second in asked


def test_without_a_template_the_text_is_unknown(bench: Bench, version: str) -> None:
    """A base model is not asked; what it goes on with tells of its logits all the same."""
    model = bench.model(SimulatedModel())
    config = model.folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": None}))
    bench.load(model, version)
    test = bench.test(model)
    assert test.text is Verdict.UNKNOWN
    assert test.logits is (Verdict.SANE if version in WITH_LOGITS else Verdict.UNKNOWN)


def test_a_model_that_thinks_without_end_is_unknown(bench: Bench) -> None:
    """Its answer never came. One whose template can switch thinking off is asked without."""
    assert bench.tried(SimulatedModel(thinking=True)).text is Verdict.SANE

    def template_of(model: Model) -> str:
        config = json.loads((model.folder / "tokenizer_config.json").read_text())
        return str(config["chat_template"]).replace("not enable_thinking", "false")

    def thinks_long(seed: int) -> bool:
        tokens = tokenizer.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
        said = Language(seed, {}, thinking=True).expected_answer(tokens, self_test.ANSWER_TOKENS)
        return b"</think>" not in tokenizer.decode(said)

    tokenizer = open_tokenizer_file(bench.model().folder)
    assert tokenizer is not None
    seed = next(filter(thinks_long, range(1, 1000)))
    model = bench.model(SimulatedModel(thinking=True, answers={}, seed=seed))
    model = replace(model, template=template_of(model))
    bench.load(model)
    assert bench.test(model).text is Verdict.UNKNOWN


@pytest.mark.parametrize("version", WITH_LOGITS[1:])
def test_a_model_without_reuse(bench: Bench, version: str) -> None:
    """Is known for one."""
    model = bench.model(SimulatedModel(full_attention=False, profile=MEASURABLE))
    bench.load(model, version)
    assert bench.test(model).reuse is False


def test_reuse_without_counts_is_judged_by_time(bench: Bench) -> None:
    """Where the runtime tells no counts (1.2.0); what takes no time cannot be judged."""
    model = bench.model(SimulatedModel(profile=MEASURABLE))
    engine = bench.load(model, "1.2.0")
    assert bench.test(model).reuse is True
    assert list(engine.loaded.slices(600, 0)) == [256, 512]
    assert says(engine, "word " * 600)
    assert bench.tried(SimulatedModel(full_attention=False, profile=MEASURABLE), "1.2.0").reuse is False


@pytest.mark.parametrize("slow", [1, 3], ids=["the first time", "the second time"])
def test_a_busy_machine_hides_no_reuse(bench: Bench, monkeypatch: pytest.MonkeyPatch, slow: int) -> None:
    """One reading that something else made slow tells nothing."""
    real, calls = self_test.SelfTester._ask, itertools.count()

    def ask(tester: self_test.SelfTester, tokens: list[int], count: int, **more: bool) -> Any:
        answer = real(tester, tokens, count, **more)
        if answer is None or next(calls) != slow:
            return answer
        return replace(answer, stats=replace(answer.stats, prefill_ms=1e4))

    monkeypatch.setattr(self_test.SelfTester, "_ask", ask)
    assert bench.tried(SimulatedModel(profile=MEASURABLE), "1.2.0").reuse is True


@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_a_runtime_that_counts_what_it_reused(bench: Bench, version: str) -> None:
    """Is found out by its times; usage and the length of slices then come from what we know ourselves."""
    switches = {"prefill_counts_cached": "yes"}
    model = bench.model(SimulatedModel(switches=switches, profile=MEASURABLE), engine_options={"prefill_slice": 128})
    engine = bench.load(model, version)
    test = bench.test(model)
    assert (test.reuse, test.counts_cached) == (True, True)
    tokens = engine.tokenizer.encode("word " * 100)
    for cached in (0, len(tokens) - 1):
        generation = engine.generate(Prompt(tokens, 2), Sampling(**GREEDY))
        list(generation)
        assert generation.stats.cached_tokens == cached
    assert "counts reused tokens as prefilled" in " ".join(bench.card(model).notes)


@pytest.mark.parametrize("version", WITH_LOGITS)
def test_wrong_logits_switch_host_sampling_off(bench: Bench, version: str) -> None:
    """Such fields are refused by name, on the card and by the engine; a plain request goes on as before."""
    model = bench.model(SimulatedModel(wrong_logits=True))
    engine = bench.load(model, version)
    assert bench.test(model).logits is Verdict.SUSPECT
    with pytest.raises(SamplingRefused, match="self-test") as refused:
        engine.generate(Prompt([70], 4), Sampling(seed=1))
    assert refused.value.field == "seed"
    assert set(bench.card(model).refuses) >= {"seed", "min_p", "logit_bias"}
    assert says(engine, "Hello")


def test_logits_beside_a_sampling_that_init_fixed(bench: Bench) -> None:
    """Up to 1.2.3 the runtime cannot be greedy unless the model is: then the answer by the logits must be right."""
    warm = {"temperature": 0.8, "top_k": 20}
    assert bench.tried(SimulatedModel(), "1.2.3", sampling_defaults=warm).logits is Verdict.SANE
    assert bench.tried(SimulatedModel(wrong_logits=True), "1.2.3", sampling_defaults=warm).logits is Verdict.SUSPECT
    assert bench.tried(SimulatedModel(answers={}), "1.2.3", sampling_defaults=warm).logits is Verdict.UNKNOWN
    # Nor is it greedy when it may draw from all there is.
    unlimited = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repeat_penalty": 1.0}
    assert bench.tried(SimulatedModel(answers={}), "1.2.3", sampling_defaults=unlimited).logits is Verdict.UNKNOWN


def test_logits_that_nobody_samples_are_not_tried(bench: Bench) -> None:
    """With host sampling switched off by the manifest."""
    assert bench.tried(SimulatedModel(), engine_options={"host_sampling": 0}).logits is Verdict.UNKNOWN


def test_an_abort_is_timed(bench: Bench, version: str) -> None:
    """As long as the runtime takes to hear it, and never less."""
    test = bench.tried(SimulatedModel(abort_latency=60, profile=Profile(decode_tps=200)), version)
    assert test.abort_ms is not None and test.abort_ms >= 60


def test_time_is_bounded(bench: Bench, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow model the first answer is cut short or not begun, and the rest is left out and unknown."""
    monkeypatch.setattr(rkllm_engine, "SECONDS", 1.0)
    model = bench.model(SimulatedModel(profile=Profile(prefill_tps=100, decode_tps=5)))
    engine = bench.load(model, version)
    test = bench.test(model)
    assert (test.text, test.logits) == (Verdict.UNKNOWN, Verdict.UNKNOWN)
    assert test.abort_ms is None and test.logits_ms is None and not test.in_time
    assert test.reuse is (None if engine.loaded.family.CAPABILITIES.prefix_reuse else False)
    assert "ran out of time" in " ".join(bench.card(model).notes)
    generation = engine.generate(Prompt([70, 71], 1), Sampling(**GREEDY))
    assert len(list(generation)) == 1 and generation.end is End.LENGTH


@pytest.mark.parametrize("version", ["1.2.0", "1.3.0"])
def test_what_a_slow_model_needs_most_is_tried_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """That a long prompt can be left; and what there was no time for is tried by the load that follows."""
    monkeypatch.setattr(rkllm_engine, "SECONDS", 1.2)
    talks = {"France": "It is Paris, which lies on the Seine, and has done so for longer than anybody can say."}
    model = bench.model(SimulatedModel(answers=talks, profile=Profile(prefill_tps=500, decode_tps=25)))
    engine = bench.load(model, version)
    test = bench.test(model)
    assert (test.reuse, test.logits, test.in_time) == (True, Verdict.UNKNOWN, False)
    assert next(engine.loaded.slices(2000)) < 2000
    assert "ran out of time" in " ".join(bench.card(model).notes)
    monkeypatch.setattr(rkllm_engine, "SECONDS", 60.0)
    bench.load(model, version)
    whole = bench.test(model)
    assert (whole.text, whole.logits, whole.in_time) == (Verdict.SANE, Verdict.SANE, True)
    assert whole.abort_ms is not None and whole.decode_tps is not None
    assert (whole.reuse, whole.prefill_tps) == (True, test.prefill_tps)  # the very same: it was not tried again


@pytest.mark.parametrize(("version", "reuse"), [("1.2.0", False), ("1.3.0", True)])
def test_few_tokens_tell_of_reuse_where_there_is_no_time_for_many(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, version: str, reuse: bool
) -> None:
    """By the runtime's counts, or by what each takes: reading fewer is quicker anyway."""
    monkeypatch.setattr(rkllm_engine, "SECONDS", 2.6)
    model = SimulatedModel(full_attention=reuse, profile=Profile(prefill_tps=48, decode_tps=50))
    assert bench.tried(model, version).reuse is reuse


class Counted:
    """Counts the tests that are run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        run = self_test.SelfTester.run

        def counting(tester: self_test.SelfTester) -> SelfTest:
            self.runs += 1
            return run(tester)

        monkeypatch.setattr(self_test.SelfTester, "run", counting)


def _touched_weights(model: Model) -> Model:
    assert model.path is not None
    os.utime(model.path, ns=(1, 1))
    return model


def _another_template(model: Model) -> Model:
    config = json.loads((model.folder / "tokenizer_config.json").read_text())
    return replace(model, template=config["chat_template"] + " ")


@pytest.mark.parametrize("change", [_touched_weights, _another_template], ids=["weights", "template"])
def test_what_is_known_is_not_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Callable[[Model], Model]
) -> None:
    """A second load takes what the first showed, and acts by it; another file, template or runtime is tried anew."""
    counted = Counted(monkeypatch)
    model = bench.model(SimulatedModel(wrong_logits=True))
    first = bench.load(model)
    second = bench.load(model)
    assert counted.runs == 1
    assert second.loaded.cache.reuse is first.loaded.cache.reuse is True
    assert second.loaded.samples_on_host is False
    changed = change(model)
    bench.load(changed)
    assert counted.runs == 2
    bench.load(changed, "1.2.3")
    assert counted.runs == 3


@pytest.mark.parametrize("option", [{"host_sampling": 0}, {"n_batch": 2}], ids=str)
def test_what_options_left_out_is_tried_without_them(bench: Bench, option: dict[str, float]) -> None:
    """Logits that nobody was to sample are not trusted when somebody is."""
    model = bench.model(SimulatedModel(wrong_logits=True))
    bench.load(replace(model, engine_options=option)).close()
    assert bench.test(replace(model, engine_options=option)).logits is Verdict.UNKNOWN
    assert not bench.load(model).loaded.samples_on_host
    assert bench.test(model).logits is Verdict.SUSPECT


def test_another_driver_is_tried_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade of the kernel may have mended what was suspect."""
    counted = Counted(monkeypatch)
    model = bench.model()
    bench.load(model)
    path = bench.setup.runtime_dir / model.id / FACTS_FILE
    stored = json.loads(path.read_text())
    stored["facts"]["driver"] = "0.9.7"
    path.write_text(json.dumps(stored))
    bench.load(model)
    assert counted.runs == 2


def test_a_card_never_tells_of_another_runtime(bench: Bench) -> None:
    """What one runtime showed says nothing of the next."""
    model = bench.model(SimulatedModel(wrong_logits=True))
    bench.load(model, "1.3.0")
    assert "seed" in bench.card(model).refuses
    bench.setup = replace(bench.setup, rkllm_library="simulator-1.2.3")
    assert bench.card(model).refuses == {}


def test_a_file_of_facts_that_is_damaged_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is tried anew; what was no JSON, as after a power cut, is kept beside."""
    counted = Counted(monkeypatch)
    model = bench.model()
    bench.load(model)
    for damage in ("", "[]", '{"file": 1}', '{"file": "x", "facts": {}}'):
        (bench.setup.runtime_dir / model.id / FACTS_FILE).write_text(damage)
        bench.load(model)
    assert counted.runs == 5
    assert len(list((bench.setup.runtime_dir / model.id).glob(f"{FACTS_FILE}.damaged-*"))) == 1


def test_it_can_be_switched_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is known, no text is suspect, and no prompt is sliced."""
    counted = Counted(monkeypatch)
    model = bench.model(SimulatedModel(garbage=True), engine_options={"self_test": 0})
    engine = bench.load(model)
    assert counted.runs == 0
    assert engine.loaded.cache.reuse is None
    seen = list[int]()
    list(engine.generate(Prompt([70] * 2000, 1), Sampling(**GREEDY), seen.append))
    assert seen == [2000]
    assert not any("elf-test" in note or "suspect" in note for note in bench.card(model).notes)


def test_a_strict_model_is_refused_when_it_is_suspect(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every load, of which only the first tries it; a sane one is served."""
    counted = Counted(monkeypatch)
    model = bench.model(SimulatedModel(garbage=True), engine_options={"refuse_suspect": 1})
    for _ in range(2):
        with pytest.raises(ModelRefused, match=r"refuse_suspect = 1\. Its text is suspect"):
            bench.load(model)
    assert counted.runs == 1
    says(bench.load(bench.model(engine_options={"refuse_suspect": 1})), "Hello")


def test_strict_without_a_test_is_a_contradiction(bench: Bench) -> None:
    """Which nobody should find out from what is served."""
    model = bench.model(engine_options={"refuse_suspect": 1, "self_test": 0})
    with pytest.raises(ModelRefused, match="self_test = 0"):
        bench.load(model)
    with pytest.raises(ModelRefused, match="self_test = 0"):
        bench.card(model)


def test_an_engine_that_breaks_over_it_is_not_served(bench: Bench, version: str) -> None:
    """It would break over the first question of anybody."""
    with pytest.raises(EngineFailed):
        bench.load(bench.model(SimulatedModel(error_after=1)), version)
