"""What a simulated model says: the C source, the Python oracle and the tokenizer's own library agree."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from npu.chat_template import ChatTemplate
from npu.errors import ModelRefused
from npu.manifest_keys import KEYS
from npu.rkllm.abi import Mode, NativeSampling, State, Text
from npu.simulator import SWITCHES, Adapter, Language, SimulatedModel, write_adapter, write_model
from tests.npu.simulator.conftest import Open
from tests.npu.simulator.runtime import of

AWKWARD = [
    "",
    " ",
    "   three spaces and a tab\t end ",
    " the board boards boarding thx th",
    "the the",
    " café naïve fiancée grün Öl",
    "ÀÉ 🚀😀 语 → €",
    "\n\n the\r\n\x7f\x01",
    "<|im_start|>user\n the<|im_end|><|im_end|>\n<think> the</think>",
    "<|im_st the <think <| im_start|>",
    "<tool_call>{}</tool_call><|endoftext|>",
    " " * 40 + "the" + " the" * 200,
]


def test_all_three_cut_text_alike(start: Open) -> None:
    runtime = start()
    tokenizer = Tokenizer.from_file(str(runtime.folder / "tokenizer.json"))
    chance = random.Random(5)
    words = [token.data.decode(errors="replace") for token in runtime.language.tokens[256:]]
    mixed = ["".join(chance.choice([*words, " ", "x", "é", "\n"]) for _ in range(30)) for _ in range(100)]
    for text in [*AWKWARD, *mixed]:
        ids = runtime.language.tokenize(text)
        assert runtime.tokenize(text) == ids, text
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert runtime.language.text(ids, control=True).decode() == text
    assert tokenizer.get_vocab_size() == len(runtime.language.tokens)
    assert [tokenizer.token_to_id(name) for name in ("<|im_end|>", "<think>")] == [
        *(runtime.language.end, runtime.language.tokenize("<think>")[0])
    ]


def test_answers_are_those_of_the_oracle(start: Open, version: str) -> None:
    """Hundreds of random prompts, of which each is a new conversation."""
    runtime = start(version=version, max_tokens=40)
    chance = random.Random(7)
    lengths = []
    for _ in range(60):
        prompt = [chance.randrange(len(runtime.language.tokens)) for _ in range(chance.randrange(1, 60))]
        assert runtime.run(prompt) == 0
        expected = runtime.expect(prompt, 40)
        assert runtime.tokens() == expected
        lengths.append(len(expected))
    assert 15 < sum(lengths) / len(lengths) < 30  # Long enough to be worth streaming, and most of them end.


def test_a_chat_says_at_least_four_tokens() -> None:
    language = Language(answers={})
    lengths = [len(language.expected_answer(language.tokenize(of(f"Question {n}")), 500)) for n in range(200)]
    assert min(lengths) >= 4 and 18 < sum(lengths) / len(lengths) < 32


def test_everything_in_the_cache_counts() -> None:
    """A token lost, doubled, moved, or read by another adapter changes what follows."""
    language = Language()
    prompt = language.tokenize(" the board waits one two three")
    said = language.expected_answer(prompt, 20, ignore_eos=True)
    others = [prompt[1:], [*prompt, prompt[-1]], [prompt[1], prompt[0], *prompt[2:]]]
    assert all(language.expected_answer(other, 20, ignore_eos=True) != said for other in others)
    for adapter in (Adapter("a"), Adapter("b"), Adapter("a", 0.5)):
        assert language.expected_answer(prompt, 20, adapter, ignore_eos=True) != said
    assert Language(seed=2).expected_answer(prompt, 20, ignore_eos=True) != said


def test_known_questions_have_their_answers(start: Open, version: str) -> None:
    runtime = start(version=version)
    runtime.run("What is the capital of France?")
    assert runtime.text() == b"The capital of France is Paris."
    runtime.run("What is the capital of Mars?")
    assert runtime.text() != b"The capital of France is Paris." and runtime.tokens() == runtime.expect(
        of("What is the capital of Mars?")
    )
    runtime.run("And 2 + 2, schön?")
    assert runtime.text() == b"2 + 2 is 4."


def test_the_last_question_is_the_one_that_counts(start: Open) -> None:
    runtime = start()
    turns = f"{of('What is the capital of France?')} Paris<|im_end|>\n{of('What is 2 + 2?')}"
    runtime.run(runtime.language.tokenize(turns))
    assert runtime.text() == b"2 + 2 is 4."


@pytest.mark.parametrize("version", ["1.2.3", "1.3.0"])
def test_a_thinking_model_thinks_unless_it_is_told_not_to(start: Open, version: str) -> None:
    runtime = start(SimulatedModel(thinking=True), version, max_tokens=200)
    runtime.run("What is 2 + 2?")
    thought, _, rest = runtime.text().partition(b"</think>")
    assert thought.startswith(b"<think> ") and rest == b"\n\n2 + 2 is 4."
    assert runtime.tokens() == runtime.expect(of("What is 2 + 2?"), 200)
    runtime.run(Text("What is 2 + 2?", thinking=False))
    assert runtime.text() == b"2 + 2 is 4."


def test_a_known_answer_may_be_a_tool_call(start: Open) -> None:
    call = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    runtime = start(SimulatedModel(answers={"What time": call}))
    runtime.run("What time is it?")
    assert runtime.text().decode() == call


def test_letters_of_several_bytes_are_said_whole(start: Open, version: str) -> None:
    """The runtime waits until a character is complete, so its texts can be decoded one by one."""
    runtime = start(SimulatedModel(answers={"all": "é→🚀ü"}), version)
    runtime.run("Say all")
    states = [one.state for one in runtime.heard[:-1] if one.token != runtime.language.end]
    assert [one.results[0].text.decode() for one in runtime.heard if one.state is State.NORMAL][:4] == [*"é→🚀ü"]
    assert states == [state for size in (2, 3, 4, 2) for state in [State.WAITING] * (size - 1) + [State.NORMAL]]


def test_logits_and_hidden_rows_are_those_of_the_oracle(start: Open, version: str) -> None:
    runtime = start(SimulatedModel(vocab_size=700), version)
    prompt = runtime.language.tokenize(" the board waits<|im_end|>")
    assert runtime.hidden(prompt) == runtime.language.hidden(prompt, 64)
    longer = runtime.hidden([*prompt, 5], keep_history=False)
    assert longer[-1] == runtime.language.hidden([*prompt, 5], 64)[-1]
    if runtime.abi.CAPABILITIES.logits:
        runtime.abi.clear_cache(runtime.loaded)
        runtime.run(prompt, mode=Mode.LOGITS)
        rows = runtime.heard[0].logits
        assert rows == [runtime.language.logits(prompt[: at + 1], 700) for at in range(len(prompt))]
        assert rows[-1].index(max(rows[-1])) == runtime.language.next(prompt).token


@pytest.mark.parametrize("version", ["1.2.0", "1.3.0"])
def test_a_full_vocabulary_has_realistic_rows(start: Open, version: str) -> None:
    """One row of 151,936 logits; what has no text stays improbable."""
    runtime = start(SimulatedModel(vocab_size=151_936), version, max_tokens=1)
    runtime.run([5], mode=Mode.LOGITS)
    row = runtime.heard[0].logits[0]
    assert len(row) == 151_936 and max(row[len(runtime.language.tokens) :]) < -17
    assert row.index(max(row)) == runtime.language.next([5]).token


def test_sampling_chooses_other_words_and_never_breaks_a_character(start: Open, version: str) -> None:
    """The generator is the handle's own: the next run draws on, and every value reaches it."""
    runtime = start(version=version, sampling=NativeSampling(top_k=40, top_p=1.0, temperature=2.0))
    greedy = runtime.expect(of("A story"), 30)
    runtime.run("A story")
    first = runtime.tokens()
    runtime.run("A story")
    assert first != greedy and runtime.tokens() != first
    runtime.text().decode()
    narrow = start(version=version, sampling=NativeSampling(top_p=0.05, temperature=2.0))
    narrow.run("A story")
    assert narrow.tokens() == runtime.expect(of("A story"))


def test_greedy_is_what_its_values_make_greedy(start: Open) -> None:
    """No temperature, or a mirostat that allows no surprise; one that allows some does not."""
    for sampling, greedy in (
        (NativeSampling(temperature=0.0), True),
        (NativeSampling(mirostat=2, mirostat_tau=0.0), True),
        (NativeSampling(mirostat=2, mirostat_tau=8.0, temperature=3.0), False),
    ):
        runtime = start(sampling=sampling)
        runtime.run("A story")
        assert (runtime.tokens() == runtime.expect(of("A story"))) is greedy


def test_the_end_of_an_answer_can_be_ignored(start: Open) -> None:
    runtime = start(version="1.3.0", ignore_eos=True)
    runtime.run("2 + 2")
    assert runtime.text().startswith(b"2 + 2 is 4. ") and len(runtime.tokens()) == 64
    assert runtime.tokens() == runtime.expect(of("2 + 2"), ignore_eos=True)


def test_repetition_can_be_punished(start: Open) -> None:
    """The same prompts, said with and without a presence penalty: fewer words come twice."""

    def repeated(**sampling: Any) -> int:
        runtime = start(sampling=NativeSampling(top_k=0, top_p=1.0, temperature=1.0, repeat_penalty=1.0, **sampling))
        words = set(runtime.language.tokenize(" board")) | set(range(256, len(runtime.language.tokens)))
        count = 0
        for number in range(40):
            runtime.run(f"Story {number}")
            said = [token for token in runtime.tokens() if token in words]
            count += len(said) - len(set(said))
        return count

    assert repeated(presence_penalty=2.0, frequency_penalty=2.0) < repeated() / 2


def test_sampling_of_one_run_is_honoured_where_the_family_has_it(start: Open) -> None:
    runtime = start(version="1.3.0", max_tokens=30)
    runtime.run("A story", sampling=NativeSampling(top_p=1.0, temperature=3.0))
    assert runtime.tokens() != runtime.expect(of("A story"), 30)
    runtime.run("A story", max_tokens=3)
    assert runtime.tokens() == runtime.expect(of("A story"), 3)


def test_our_template_renders_what_the_runtime_renders(start: Open) -> None:
    """A chat as text and the same as tokens get the same answer, with and without thinking."""
    runtime = start(SimulatedModel(thinking=True), max_tokens=5)
    settings = json.loads((runtime.folder / "tokenizer_config.json").read_text())
    template = ChatTemplate(settings["chat_template"], eos_token=settings["eos_token"])
    for thinking in (True, False):
        runtime.run(Text("Hello board", thinking=thinking))
        said = runtime.cache()
        prompt = template.render([{"role": "user", "content": "Hello board"}], enable_thinking=thinking)
        runtime.abi.clear_cache(runtime.loaded)
        runtime.run(runtime.language.tokenize(prompt))
        assert runtime.cache() == said
    tool = {"type": "function", "function": {"name": "time", "parameters": {}}}
    rendered = template.render(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Time?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "time", "arguments": {}}}]},
            {"role": "tool", "content": "12:00"},
        ],
        tools=[tool],
    )
    assert rendered.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n[{") and rendered.endswith(
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n12:00\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_model_folder_is_complete(tmp_path: Path) -> None:
    weights = write_model(tmp_path, SimulatedModel(name="tiny", max_context_limit=512))
    manifest = tomllib.loads((tmp_path / "manifest.toml").read_text())
    kinds = {key: KEYS[key][0] for key in manifest}
    assert all(isinstance(value, kinds[key]) for key, value in manifest.items())
    assert (manifest["id"], manifest["engine"], manifest["context_length"]) == ("tiny", "rkllm", 512)
    assert weights.name == manifest["file"] == "tiny_w8a8_rk3588.rkllm"
    assert weights.read_text().startswith("RKLLM-SIMULATED 1\n")
    assert write_adapter(tmp_path / "a_lora.rkllm").is_file()


def test_what_a_model_file_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"no switch callback_thread perhaps. There is caller or own"):
        write_model(tmp_path, SimulatedModel(switches={"callback_thread": "perhaps"}))
    with pytest.raises(ModelRefused, match=r"no switch colour blue. There is one of callback_thread"):
        write_model(tmp_path, SimulatedModel(switches={"colour": "blue"}))
    with pytest.raises(ModelRefused, match="driver"):
        write_model(tmp_path, SimulatedModel(driver="0.9.8\ninit_fail 1"))


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_is_known_to_the_library(start: Open, switch: str) -> None:
    for way in SWITCHES[switch]:
        assert start(SimulatedModel(switches={switch: way})).status == 0
