"""What every engine promises, whatever it runs on."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from npu.constraint import Call, Calls, Constraint, Form, Gbnf, JsonSchema, Lark, Regex
from npu.engine import End, Piece, Prompt, Sampling, Stats
from npu.engines import chat_template, describe, open_tokenizer
from npu.errors import AdapterMissing, ContextTooLong, EngineFailed, PromptRefused, SamplingRefused
from tests.npu.demo import MODELS_DIR, Opened
from tests.npu.engines.conftest import with_marks

GREEDY = Sampling(temperature=0.0)
ASK_LONG = "Tell me a very long story about a dragon, a bridge, a cat and the sea, with many words. " * 2
WAIT = 60.0
"""Seconds granted to what takes milliseconds, so that a busy machine fails nothing."""


def prompt(opened: Opened, text: str, max_tokens: int = 400) -> Prompt:
    template = chat_template(opened.model)
    assert template is not None
    return Prompt(opened.engine.tokenizer.encode(template.render([{"role": "user", "content": text}])), max_tokens)


def run(opened: Opened, asked: Prompt, sampling: Sampling = GREEDY) -> tuple[list[Piece], End, Stats]:
    generation = opened.engine.generate(asked, sampling)
    pieces = list(generation)
    return pieces, generation.end, generation.stats


def text(pieces: list[Piece]) -> bytes:
    return b"".join(piece.data for piece in pieces)


class TestAnswer:
    def test_pieces_are_exactly_what_their_ids_decode_to(self, opened: Opened) -> None:
        pieces, _, stats = run(opened, prompt(opened, "Say hello 😀 世界", 30))
        assert text(pieces) == opened.engine.tokenizer.decode([piece.token for piece in pieces])
        assert stats.generated_tokens == len(pieces) > 0

    def test_a_character_split_over_tokens_comes_as_its_bytes(self, opened: Opened) -> None:
        """One piece for each token, also where a server below holds text back until a character is whole."""
        asked = prompt(opened, "Write the emoji 😀 😃 🎉 then 世界你好", 24)
        endless = Sampling(temperature=0.0, ignore_eos=True)
        pieces, _, stats = run(opened, asked, endless)
        assert stats.generated_tokens == len(pieces) == 24
        assert any(not _whole(piece.data) for piece in pieces)
        assert text(pieces) == opened.engine.tokenizer.decode([piece.token for piece in pieces])
        for shorter in (1, 2, 4, 5):
            assert run(opened, Prompt(asked.tokens, shorter), endless)[0] == pieces[:shorter]

    def test_max_tokens_is_exact(self, opened: Opened) -> None:
        for count in (1, 2, 7):
            pieces, end, stats = run(opened, prompt(opened, ASK_LONG, count))
            assert (len(pieces), end, stats.generated_tokens) == (count, End.LENGTH, count)

    def test_the_end_of_the_answer_is_no_piece(self, opened: Opened) -> None:
        pieces, end, _ = run(opened, prompt(opened, "Hi", 60))
        assert end is End.EOS
        assert pieces
        assert all(piece.data for piece in pieces)

    def test_ignore_eos_goes_on_to_the_limit(self, opened: Opened) -> None:
        pieces, end, _ = run(opened, prompt(opened, "Hi", 60), Sampling(temperature=0.0, ignore_eos=True))
        assert (len(pieces), end) == (60, End.LENGTH)

    def test_greedy_twice_is_the_same(self, opened: Opened) -> None:
        asked = prompt(opened, "Count to five.", 20)
        assert run(opened, asked)[0] == run(opened, asked)[0]

    def test_greedy_continues_where_it_was_cut(self, opened: Opened) -> None:
        asked = prompt(opened, "Name three colours.", 12)
        whole, _, _ = run(opened, asked)
        begun = [piece.token for piece in whole[:5]]
        rest, _, _ = run(opened, Prompt([*asked.tokens, *begun], 7))
        assert rest == whole[5:]

    def test_same_seed_same_answer(self, opened: Opened) -> None:
        asked, sampling = prompt(opened, "Tell me something.", 20), Sampling(temperature=1.2, seed=7)
        assert run(opened, asked, sampling)[0] == run(opened, asked, sampling)[0]

    def test_the_whole_context_can_be_filled(self, opened: Opened) -> None:
        length = opened.engine.context_length
        filler = opened.engine.tokenizer.encode(" word" * length)[: length - 4]
        pieces, end, stats = run(opened, Prompt(filler, 4), Sampling(temperature=0.0, ignore_eos=True))
        assert (len(pieces), end, stats.prompt_tokens) == (4, End.LENGTH, length - 4)


class TestStats:
    def test_times_and_counts_are_there(self, opened: Opened) -> None:
        asked = prompt(opened, "How long does this take?", 5)
        _, _, stats = run(opened, asked)
        assert stats.prompt_tokens == len(asked.tokens)
        assert stats.prefill_ms > 0
        assert stats.decode_ms > 0

    def test_a_second_turn_reads_only_what_is_new(self, opened: Opened) -> None:
        first = prompt(opened, "The first question of two.", 8)
        pieces, _, _ = run(opened, first)
        said = [piece.token for piece in pieces]
        new = opened.engine.tokenizer.encode(" And the second?")
        _, _, stats = run(opened, Prompt([*first.tokens, *said, *new], 2))
        assert stats.cached_tokens >= len(first.tokens) + len(said) - 1
        assert stats.cached_tokens < stats.prompt_tokens

    def test_the_same_prompt_again_reads_its_last_token(self, opened: Opened) -> None:
        asked = prompt(opened, "Once more.", 2)
        run(opened, asked)
        assert run(opened, asked)[2].cached_tokens == len(asked.tokens) - 1

    def test_end_and_stats_are_unknown_before_the_end(self, opened: Opened) -> None:
        generation = opened.engine.generate(prompt(opened, "Hi", 2), GREEDY)
        for name in ("end", "stats"):
            with pytest.raises(RuntimeError):
                getattr(generation, name)

    def test_prefill_is_reported_up_to_the_whole_prompt(self, opened: Opened) -> None:
        asked, seen = prompt(opened, "A prompt nobody sent before: " + ASK_LONG, 1), list[int]()
        list(opened.engine.generate(asked, GREEDY, seen.append))
        assert seen == sorted(seen)
        assert seen[-1] == len(asked.tokens)


class TestAbort:
    def unharmed(self, opened: Opened) -> None:
        pieces, end, _ = run(opened, prompt(opened, "Hi", 60))
        assert end is End.EOS
        assert pieces

    def test_before_the_run_begins(self, opened: Opened) -> None:
        generation = opened.engine.generate(prompt(opened, "Hi", 5), GREEDY)
        generation.abort()
        assert list(generation) == []
        assert generation.end is End.ABORTED
        assert generation.stats.generated_tokens == 0
        self.unharmed(opened)

    def test_during_prefill(self, opened: Opened) -> None:
        filler = opened.engine.tokenizer.encode(" something else" * 2000)[:1000]
        reached, aborted = threading.Event(), threading.Event()

        def read(_: int) -> None:
            reached.set()
            assert aborted.wait(WAIT)  # an engine that is fast is held up here

        generation = opened.engine.generate(Prompt(filler, 5), GREEDY, read)
        pieces: list[Piece] = []
        runner = threading.Thread(target=lambda: pieces.extend(generation))
        runner.start()
        assert reached.wait(WAIT)
        generation.abort()
        aborted.set()
        runner.join(WAIT)
        assert not runner.is_alive()
        assert (pieces, generation.end) == ([], End.ABORTED)
        self.unharmed(opened)

    def test_in_mid_answer_from_another_thread(self, opened: Opened) -> None:
        asked = prompt(opened, ASK_LONG, 600)
        generation = opened.engine.generate(asked, Sampling(temperature=0.0, ignore_eos=True))
        third, pieces = threading.Event(), list[Piece]()

        def aborting() -> None:
            third.wait(WAIT)
            generation.abort()

        aborter = threading.Thread(target=aborting)
        aborter.start()
        for piece in generation:
            pieces.append(piece)
            if len(pieces) == 3:
                third.set()
                aborter.join(WAIT)
        assert generation.end is End.ABORTED
        assert 3 <= len(pieces) <= 5
        assert generation.stats.generated_tokens == len(pieces)
        assert generation.stats.decode_ms > 0
        self.unharmed(opened)

    def test_after_the_end_and_twice_does_nothing(self, opened: Opened) -> None:
        generation = opened.engine.generate(prompt(opened, "Hi", 2), GREEDY)
        list(generation)
        generation.abort()
        generation.abort()
        assert generation.end is End.LENGTH
        self.unharmed(opened)

    def test_a_run_nobody_reads_to_its_end_is_over(self, opened: Opened) -> None:
        pieces = iter(opened.engine.generate(prompt(opened, ASK_LONG, 600), Sampling(ignore_eos=True)))
        next(pieces)
        del pieces
        self.unharmed(opened)


class TestRefusals:
    def test_a_prompt_that_does_not_fit(self, opened: Opened) -> None:
        with pytest.raises(ContextTooLong) as refused:
            opened.engine.generate(Prompt([40] * 1000, 25), GREEDY)
        assert (refused.value.prompt_tokens, refused.value.max_tokens, refused.value.context_length) == (1000, 25, 1024)

    def test_tokens_that_do_not_exist(self, opened: Opened) -> None:
        for tokens in ([], [10**9], [-1]):
            with pytest.raises(PromptRefused):
                opened.engine.generate(Prompt(tokens, 1), GREEDY)

    def test_an_adapter_that_is_not_there(self, opened: Opened) -> None:
        with pytest.raises(AdapterMissing, match="no adapter 'poet'"):
            opened.engine.generate(Prompt([40], 1, adapter="poet"), GREEDY)

    @pytest.mark.parametrize(
        "field",
        [
            {"temperature": -1.0},
            {"temperature": float("nan")},
            {"top_p": 1.5},
            {"min_p": -0.1},
            {"mirostat": 3},
            {"repeat_last_n": -2},
            {"logit_bias": {10**9: 1.0}},
            {"logit_bias": {5: float("inf")}},
        ],
        ids=str,
    )
    def test_values_that_make_no_sense(self, opened: Opened, field: dict[str, object]) -> None:
        with pytest.raises(SamplingRefused) as refused:
            opened.engine.generate(Prompt([40], 1), Sampling(**field))  # type: ignore[arg-type]
        assert refused.value.field in field


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05, typical_p=0.9, seed=1),
        Sampling(repeat_penalty=1.3, repeat_last_n=-1, presence_penalty=0.5, frequency_penalty=-0.5),
        Sampling(repeat_penalty=1.3, repeat_last_n=0),
        Sampling(mirostat=1, mirostat_tau=4.0, mirostat_eta=0.2),
        Sampling(mirostat=2, seed=2**64 - 1),
        Sampling(seed=-5, logit_bias={40: 5.0, 41: -100.0}),
        Sampling(temperature=0.0, seed=0),
    ],
    ids=str,
)
def test_every_sampling_parameter_is_accepted(opened: Opened, sampling: Sampling) -> None:
    assert run(opened, prompt(opened, "Hello there", 3), sampling)[0]


@pytest.mark.parametrize("opened", [with_marks("llamacpp"), "rkllm"], indirect=True, scope="module")
class TestSamplingShows:
    """Each field changes an answer in the way it is for. The echo has no choice and is left out."""

    HOT = Sampling(temperature=2.0, seed=5)

    def said(self, opened: Opened, sampling: Sampling, count: int = 12) -> list[int]:
        asked = prompt(opened, "Tell me of the sea.", count)
        return [piece.token for piece in run(opened, asked, replace(sampling, ignore_eos=True))[0]]

    @pytest.mark.parametrize("field", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 0.0}], ids=str)
    def test_a_filter_that_leaves_one_token_is_greedy(self, opened: Opened, field: dict[str, float]) -> None:
        greedy = self.said(opened, GREEDY)
        assert self.said(opened, self.HOT) != greedy
        assert self.said(opened, replace(self.HOT, **field)) == greedy  # type: ignore[arg-type]

    def test_typical_p(self, opened: Opened) -> None:
        assert self.said(opened, replace(self.HOT, typical_p=0.01)) != self.said(opened, self.HOT)

    def test_a_seed(self, opened: Opened) -> None:
        assert self.said(opened, self.HOT) == self.said(opened, self.HOT)
        assert self.said(opened, replace(self.HOT, seed=6)) != self.said(opened, self.HOT)

    @pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty", "repeat_penalty"])
    def test_a_penalty_keeps_from_repeating(self, opened: Opened, field: str) -> None:
        """With one token made far likelier than the rest, which then comes once and not again."""
        liked = replace(GREEDY, repeat_penalty=1.0, repeat_last_n=-1, logit_bias={70: 60.0})
        assert self.said(opened, liked, 4) == [70] * 4
        assert self.said(opened, replace(liked, **{field: 100.0}), 4).count(70) == 1

    def test_a_bias_against_a_token(self, opened: Opened) -> None:
        first = self.said(opened, GREEDY, 1)[0]
        assert first not in self.said(opened, replace(GREEDY, logit_bias={first: -100.0}))

    @pytest.mark.parametrize("mirostat", [1, 2])
    def test_mirostat(self, opened: Opened, mirostat: int) -> None:
        calm = replace(self.HOT, mirostat=mirostat, mirostat_tau=0.01, mirostat_eta=0.5)
        assert self.said(opened, calm) != self.said(opened, self.HOT)


class TestForm:
    """What an answer is held to, which every engine that is tested here can do."""

    SCHEMA = JsonSchema(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        }
    )

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_an_answer_fits_its_schema(self, opened: Opened, temperature: float) -> None:
        sampling = Sampling(temperature=temperature, seed=2, constraint=Constraint(self.SCHEMA))
        pieces, end, stats = run(opened, prompt(opened, "Describe Ann, 31 years old.", 200), sampling)
        answer = json.loads(text(pieces))
        assert (sorted(answer), end, stats.generated_tokens) == (["age", "name", "tags"], End.EOS, len(pieces))
        assert 0 <= answer["age"] <= 150
        assert len(answer["tags"]) <= 3

    def test_it_goes_on_in_the_middle(self, opened: Opened) -> None:
        """As a claim does whose predecessor died. What was said may be cut inside a word, or inside a character."""
        asked = prompt(opened, "Describe Ann, 31 years old.", 200)
        sampling = Sampling(temperature=0.0, constraint=Constraint(self.SCHEMA))
        whole = [piece.token for piece in run(opened, asked, sampling)[0]]
        for cut in (len(whole) // 2, len(whole) - 1):
            said = whole[:cut]
            rest, end, _ = run(opened, Prompt([*asked.tokens, *said], 200, said=cut), sampling)
            answer = json.loads(opened.engine.tokenizer.decode(said) + text(rest))
            assert (sorted(answer), end) == (["age", "name", "tags"], End.EOS)

    @pytest.mark.parametrize(
        ("form", "pattern"),
        [
            (Regex("[0-9]{3}-[xyz]{2}"), r"[0-9]{3}-[xyz]{2}"),
            (Regex("[а-я]{4}[.]"), "[а-я]{4}[.]"),
            (Gbnf('root ::= "yes" | "no"'), "yes|no"),
            (Lark('start: ("ab" | "cd")~2'), "(ab|cd){2}"),
            (
                Calls((Call("<t>", "<t>", JsonSchema({"enum": [1, "a"]}), "</t>"),), required=True, several=False),
                r"\s*<t>(1|\"a\")</t>\s*",
            ),
        ],
        ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
    )
    def test_an_answer_fits_other_forms(self, opened: Opened, form: Form, pattern: str) -> None:
        sampling = Sampling(temperature=1.0, seed=4, constraint=Constraint(form))
        pieces, end, _ = run(opened, prompt(opened, "Say something.", 200), sampling)
        assert (bool(re.fullmatch(pattern, text(pieces).decode())), end) == (True, End.EOS)

    def test_an_end_by_length_may_break_it(self, opened: Opened) -> None:
        sampling = Sampling(temperature=0.0, constraint=Constraint(self.SCHEMA))
        pieces, end, _ = run(opened, prompt(opened, "Describe Ann.", 3), sampling)
        assert (len(pieces), end) == (3, End.LENGTH)

    def test_a_form_that_cannot_be_followed_is_refused(self, opened: Opened) -> None:
        """Before the run, and by name."""
        with pytest.raises(SamplingRefused, match="uniqueItems") as refused:
            opened.engine.generate(Prompt([40], 1), Sampling(constraint=Constraint(JsonSchema({"uniqueItems": True}))))
        assert refused.value.field == "constraint"

    def test_the_next_answer_is_free_again(self, opened: Opened) -> None:
        asked = prompt(opened, "Tell me of the sea.", 8)
        free = run(opened, asked)[0]
        run(opened, asked, Sampling(temperature=0.0, constraint=Constraint(Regex("[0-9]{5}"))))
        assert run(opened, asked)[0] == free


class TestLogprobs:
    def test_each_piece_has_its_own(self, opened: Opened) -> None:
        """And those of the likeliest at its place, which greedily taken is the first of them."""
        pieces, _, _ = run(opened, prompt(opened, "Say hello 😀 世界", 12), Sampling(temperature=0.0, logprobs=3))
        assert pieces
        for piece in pieces:
            assert piece.logprob is not None
            assert piece.logprob <= 1e-6
            assert piece.top[0] == pytest.approx((piece.token, piece.logprob), abs=1e-4)
            assert [logprob for _, logprob in piece.top] == sorted((logprob for _, logprob in piece.top), reverse=True)
            assert sum(math.exp(logprob) for _, logprob in piece.top) <= 1.0001

    def test_they_are_the_models_own(self, opened: Opened) -> None:
        """Whatever the sampling does to them: what was chosen against the odds has a small one."""
        asked = prompt(opened, "Say hello", 3)
        greedy = run(opened, asked, Sampling(temperature=0.0, logprobs=1))[0]
        hot = run(opened, asked, Sampling(temperature=1.5, top_k=1, repeat_penalty=1.0, logprobs=1, seed=1))[0]
        assert [piece.logprob for piece in hot] == pytest.approx([piece.logprob for piece in greedy], abs=1e-3)

    def test_none_but_the_chosen(self, opened: Opened) -> None:
        pieces = run(opened, prompt(opened, "Hi", 2), Sampling(temperature=0.0, logprobs=0))[0]
        assert all(piece.logprob is not None and piece.top == () for piece in pieces)

    def test_they_come_with_a_form(self, opened: Opened) -> None:
        sampling = Sampling(temperature=0.0, logprobs=2, constraint=Constraint(Regex("[0-9]{4}[.]")))
        pieces = run(opened, prompt(opened, "Hi", 9), sampling)[0]
        assert re.fullmatch(rb"[0-9]{4}[.]", text(pieces))
        assert all(piece.logprob is not None for piece in pieces)

    def test_more_than_anybody_may_ask_for(self, opened: Opened) -> None:
        with pytest.raises(SamplingRefused) as refused:
            opened.engine.generate(Prompt([40], 1), Sampling(logprobs=21))
        assert refused.value.field == "logprobs"


class TestTokenizer:
    TEXTS = (
        "",
        "plain",
        "  two  blanks\n\n",
        "😀 👩‍👩‍👧 🇩🇪",
        "世界你好",
        "naïve Ωμέγα עברית",
        "a\x00b",
        "{}[]\"'\\ <tag>",
    )

    def test_round_trip(self, opened: Opened) -> None:
        tokenizer = opened.engine.tokenizer
        for sample in self.TEXTS:
            assert tokenizer.decode(tokenizer.encode(sample)) == sample.encode()

    def test_markers_are_read_only_when_asked_to(self, opened: Opened) -> None:
        template = chat_template(opened.model)
        assert template is not None
        rendered = template.render([{"role": "user", "content": "x"}])
        tokenizer = opened.engine.tokenizer
        assert len(tokenizer.encode(rendered, parse_special=False)) > len(tokenizer.encode(rendered))

    def test_half_a_surrogate_pair_is_refused(self, opened: Opened) -> None:
        with pytest.raises(PromptRefused, match="surrogate"):
            opened.engine.tokenizer.encode("\ud800")

    def test_an_unknown_id_is_refused(self, opened: Opened) -> None:
        for token in (10**9, -1):
            with pytest.raises(PromptRefused, match="vocabulary"):
                opened.engine.tokenizer.decode([token])

    def test_it_works_while_the_engine_generates(self, opened: Opened) -> None:
        generation = opened.engine.generate(prompt(opened, ASK_LONG, 600), Sampling(ignore_eos=True))
        pieces = iter(generation)
        next(pieces)
        assert opened.engine.tokenizer.decode(opened.engine.tokenizer.encode("meanwhile")) == b"meanwhile"
        next(pieces)
        generation.abort()
        list(pieces)

    def test_it_works_in_another_process(self, opened: Opened) -> None:
        """As the agent of a board uses it, which never loads the weights."""
        script = (
            "import sys, json; from pathlib import Path; from npu.catalog import find_models;"
            "from npu.engines import Setup, open_tokenizer;"
            "model = find_models(Path(sys.argv[1])).find(sys.argv[2]);"
            "print(json.dumps(open_tokenizer(model, Setup(Path(sys.argv[3]))).encode('Grüße 😀')));"
            "assert 'xllamacpp' not in sys.modules"
        )
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                script,
                str(opened.model.folder.parent),
                opened.model.id,
                str(opened.setup.runtime_dir),
            ],
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
            cwd=MODELS_DIR.parent,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == opened.engine.tokenizer.encode("Grüße 😀")
        assert open_tokenizer(opened.model, opened.setup).decode(json.loads(done.stdout)) == "Grüße 😀".encode()


class TestCard:
    def test_facts_agree_with_the_loaded_engine(self, opened: Opened) -> None:
        facts = describe(opened.model, opened.setup)
        assert facts.context_length == opened.engine.context_length
        assert facts.version == opened.engine.version
        assert facts.chat
        assert facts.memory_bytes > 0


def test_a_generation_is_iterated_once(opened: Opened) -> None:
    generation = opened.engine.generate(prompt(opened, "Hi", 1), GREEDY)
    list(generation)
    with pytest.raises(RuntimeError):
        iter(generation)


def test_closing_twice_is_safe_and_final(opened: Opened) -> None:
    """Last in this file: it closes the engine the other tests share."""
    opened.engine.close()
    opened.engine.close()
    with pytest.raises(EngineFailed):
        opened.engine.generate(Prompt([40], 1), GREEDY)


def _whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
