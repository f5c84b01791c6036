"""Choosing tokens: each filter against a plain one written here from its definition, and the numbers that are drawn."""

from __future__ import annotations

import ctypes
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from npu.engine import Sampling
from npu.errors import EngineFailed, PromptRefused, SamplingRefused
from npu.sampler import Sampler

Logits = npt.NDArray[np.float32]


def logits_of(count: int, seed: int = 1, spread: float = 3.0) -> Logits:
    source = random.Random(seed)
    return np.array([source.gauss(0, spread) for _ in range(count)], np.float32)


def chances_of(*chances: float) -> Logits:
    """Logits of which these are the chances."""
    return np.log(np.array(chances, np.float32))


def distribution(sampling: Sampling, logits: Logits, prompt: Sequence[int] = (), **more: Any) -> dict[int, float]:
    ids, chances = Sampler(sampling, len(logits), prompt).distribution(logits, **more)
    return dict(zip(ids.tolist(), chances.tolist(), strict=True))


def softmax(logits: list[float]) -> list[float]:
    best = max(logits)
    shifted = [math.exp(logit - best) for logit in logits]
    total = math.fsum(shifted)
    return [value / total for value in shifted]


def plain(sampling: Sampling, logits: Logits, said: Sequence[int] = (), mu: float | None = None) -> dict[int, float]:
    """The distribution as the definitions have it, on sorted lists."""
    values = [float(logit) for logit in logits]
    for token, bias in sampling.logit_bias.items():
        values[token] += bias
    window = said if sampling.repeat_last_n == -1 else said[len(said) - min(len(said), sampling.repeat_last_n) :]
    for token, count in Counter(window).items():
        if values[token] > 0:
            values[token] /= sampling.repeat_penalty
        else:
            values[token] *= sampling.repeat_penalty
        values[token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    kept = sorted(((logit, token) for token, logit in enumerate(values)), key=lambda pair: (-pair[0], pair[1]))
    if sampling.temperature == 0:
        return {kept[0][1]: 1.0}
    if sampling.mirostat:
        kept = [((logit - kept[0][0]) / sampling.temperature, token) for logit, token in kept]
        kept = plain_mirostat(sampling.mirostat, 2 * sampling.mirostat_tau if mu is None else mu, kept)
        return dict(zip((token for _, token in kept), softmax([logit for logit, _ in kept]), strict=True))
    kept = kept[: sampling.top_k or None]
    if sampling.typical_p < 1:
        chances = softmax([logit for logit, _ in kept])
        entropy = -math.fsum(chance * math.log(chance) for chance in chances)
        distances = [abs(-math.log(chance) - entropy) for chance in chances]
        order = sorted(range(len(kept)), key=distances.__getitem__)
        sums = itertools.accumulate(chances[place] for place in order)
        count = sum(1 for total in sums if total <= sampling.typical_p) + 1
        kept = sorted((kept[place] for place in order[:count]), key=lambda pair: (-pair[0], pair[1]))
    if sampling.top_p < 1:
        sums = itertools.accumulate(softmax([logit for logit, _ in kept]))
        kept = kept[: sum(1 for total in sums if total < sampling.top_p) + 1]
    if sampling.min_p > 0:
        kept = [pair for pair in kept if math.exp(pair[0] - kept[0][0]) >= sampling.min_p]
    scaled = [(logit - kept[0][0]) / sampling.temperature for logit, _ in kept]
    return dict(zip((token for _, token in kept), softmax(scaled), strict=True))


def plain_mirostat(version: int, mu: float, kept: list[tuple[float, int]]) -> list[tuple[float, int]]:
    chances = softmax([logit for logit, _ in kept])
    if version == 2:
        return [pair for pair, chance in zip(kept, chances, strict=True) if -math.log2(chance) <= mu] or kept[:1]
    tops, bottoms = 0.0, 0.0
    for place in range(min(99, len(kept) - 1)):
        t = math.log((place + 2) / (place + 1))
        tops += t * math.log(chances[place] / chances[place + 1])
        bottoms += t * t
    s = tops / bottoms
    k = ((s - 1) * 2**mu / (1 - len(kept) ** (1 - s))) ** (1 / s)
    return kept[: max(1, int(k))]


def philox(key: int, counter: int) -> int:
    """The first word of Philox 4x64 with 10 rounds, as Salmon and others define it (SC 2011)."""
    mask = 2**64 - 1
    words = [counter >> (64 * place) & mask for place in range(4)]
    keys = [key & mask, key >> 64]
    for _ in range(10):
        first, second = words[0] * 0xD2E7470EE14C6C93, words[2] * 0xCA5A826395121157
        words = [second >> 64 ^ words[1] ^ keys[0], second & mask, first >> 64 ^ words[3] ^ keys[1], first & mask]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & mask, (keys[1] + 0xBB67AE8584CAA73B) & mask]
    return words[0]


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.3),
    Sampling(top_k=1),
    Sampling(top_k=20),
    Sampling(top_k=10**6),
    Sampling(top_p=0.9),
    Sampling(top_p=0.9999),
    Sampling(top_p=0.0),
    Sampling(min_p=0.05),
    Sampling(min_p=1.0),
    Sampling(typical_p=0.9),
    Sampling(typical_p=0.2),
    Sampling(typical_p=0.0),
    Sampling(temperature=0.8, top_k=20, top_p=0.9, repeat_penalty=1.1),
    Sampling(temperature=1.7, top_k=300, typical_p=0.8, top_p=0.7, min_p=0.02),
    Sampling(repeat_penalty=1.5, repeat_last_n=-1, presence_penalty=0.5, frequency_penalty=-0.2, top_p=0.8),
    Sampling(logit_bias={3: 9.0, 4: -100.0}, top_k=5),
    Sampling(temperature=0.0, repeat_penalty=1.5, logit_bias={3: 2.0}),
    Sampling(mirostat=1, mirostat_tau=3.0, temperature=0.9),
    Sampling(mirostat=1, mirostat_tau=0.0),
    Sampling(mirostat=2, mirostat_tau=3.0, temperature=0.9),
    Sampling(mirostat=2, mirostat_tau=0.0, repeat_penalty=1.2),
]


class TestAgainstTheDefinitions:
    @pytest.mark.parametrize("sampling", SETTINGS, ids=str)
    @pytest.mark.parametrize(("count", "seed", "spread"), [(50, 1, 3.0), (700, 2, 0.5), (20_011, 3, 3.0)])
    def test_what_is_kept_and_how_likely_it_is(self, sampling: Sampling, count: int, seed: int, spread: float) -> None:
        logits = logits_of(count, seed, spread)
        prompt = random.Random(seed).choices(range(count), k=200)
        given = logits.copy()
        mine, theirs = distribution(sampling, given, prompt), plain(sampling, logits, prompt)
        assert mine.keys() == theirs.keys()
        assert np.allclose([mine[token] for token in theirs], list(theirs.values()), rtol=1e-9, atol=1e-15)
        assert math.fsum(mine.values()) == pytest.approx(1)
        assert np.array_equal(given, logits)

    @pytest.mark.parametrize("sampling", SETTINGS, ids=str)
    def test_equal_logits_are_taken_by_their_ids(self, sampling: Sampling) -> None:
        """Few levels, so that every cut falls between equals."""
        logits = np.round(logits_of(3000, 5))
        assert distribution(sampling, logits).keys() == plain(sampling, logits).keys()

    def test_a_token_is_drawn_where_the_number_falls(self) -> None:
        logits, sampling = logits_of(500), Sampling(seed=11, top_p=0.95)
        sampler = Sampler(sampling, 500, [1, 2, 3])
        for position in range(3, 60):
            # numpy counts up before it makes numbers, hence the one more.
            left = (philox(11, position + 1) >> 11) / 2**53
            chances = distribution(sampling, logits)
            for token, chance in chances.items():  # noqa: B007 - used after the loop
                left -= chance
                if left < 0:
                    break
            assert sampler.next(logits) == token

    def test_the_generator_here_is_the_published_one(self) -> None:
        """The known answer of its authors' own test."""
        assert philox(0, 0) == 0x16554D9ECA36314C


class TestDraws:
    CHANCES = (0.4, 0.25, 0.2, 0.1, 0.05)

    def draws(self, count: int, **settings: Any) -> list[int]:
        sampler, logits = Sampler(Sampling(**settings), 5, []), chances_of(*self.CHANCES)
        return [sampler.next(logits) for _ in range(count)]

    def test_tokens_come_as_often_as_they_are_likely(self) -> None:
        for seed, settings in itertools.product((1, -5, 2**64 - 1), ({}, {"top_k": 5}, {"typical_p": 0.9999999})):
            drawn = Counter(self.draws(2000, seed=seed, **settings))
            squares = sum((drawn[t] - 2000 * c) ** 2 / (2000 * c) for t, c in enumerate(self.CHANCES))
            assert squares < 18.5  # Chi-square of 4 degrees of freedom: one in a thousand is beyond.

    def test_a_token_says_nothing_about_the_next(self) -> None:
        drawn = self.draws(8001, seed=3)
        pairs = Counter(itertools.pairwise(drawn))
        expected = {(a, b): 8000 * self.CHANCES[a] * self.CHANCES[b] for a in range(5) for b in range(5)}
        squares = sum((pairs[pair] - often) ** 2 / often for pair, often in expected.items())
        assert squares < 51.2  # 24 degrees of freedom, one in a thousand.

    def test_what_has_no_chance_never_comes(self) -> None:
        sampler = Sampler(Sampling(seed=1), 4, [])
        logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
        assert {sampler.next(logits) for _ in range(200)} == {1, 3}

    @pytest.mark.parametrize("sampling", [s for s in SETTINGS if not s.mirostat], ids=str)
    def test_a_continued_run_draws_what_the_unbroken_one_draws(self, sampling: Sampling) -> None:
        sampling = Sampling(**{name: getattr(sampling, name) for name in sampling.__slots__} | {"seed": 5})
        steps = [logits_of(200, seed) for seed in range(24)]
        prompt = [7, 8, 9, 7]
        unbroken = Sampler(sampling, 200, prompt)
        whole = [unbroken.next(logits) for logits in steps]
        for cut in (1, 11, 23):
            by_prompt = Sampler(sampling, 200, [*prompt, *whole[:cut]])
            by_token = Sampler(sampling, 200, prompt)
            for token in whole[:cut]:
                by_token.accept(token)
            for again in (by_prompt, by_token):
                assert [again.next(logits) for logits in steps[cut:]] == whole[cut:]

    def test_any_whole_number_is_a_seed(self) -> None:
        assert self.draws(50, seed=-5) == self.draws(50, seed=2**64 - 5) == self.draws(50, seed=2**65 - 5)
        runs = [self.draws(50, seed=seed) for seed in (-5, -1, 0, 1, 2**63, 2**64 - 2)]
        assert all(a != b for a, b in itertools.combinations(runs, 2))

    def test_a_seed_is_chosen_where_none_is_given_and_can_be_read(self) -> None:
        samplers = [Sampler(Sampling(), 5, []) for _ in range(3)]
        assert len({sampler.seed for sampler in samplers}) == 3
        for sampler in samplers:
            assert 0 <= sampler.seed < 2**64
            drawn = [sampler.next(chances_of(*self.CHANCES)) for _ in range(50)]
            assert drawn == self.draws(50, seed=sampler.seed)


class TestGreedy:
    def test_the_best_is_taken_and_of_equals_the_first(self) -> None:
        sampler = Sampler(Sampling(temperature=0), 5, [])
        assert sampler.next(np.array([1, 3, 3, 2, 3], np.float32)) == 1

    def test_bias_and_penalties_come_before(self) -> None:
        logits = np.array([2, 3, 1], np.float32)
        assert Sampler(Sampling(temperature=0, logit_bias={2: 2.5}), 3, []).next(logits) == 2
        assert Sampler(Sampling(temperature=0, repeat_penalty=2), 3, [1]).next(logits) == 0

    @pytest.mark.filterwarnings("error")
    def test_a_temperature_near_zero_is_greedy_too(self) -> None:
        for temperature in (1e-3, 1e-30, 5e-324):
            assert distribution(Sampling(temperature=temperature), logits_of(2000))[
                int(logits_of(2000).argmax())
            ] == pytest.approx(1)


class TestPenalties:
    LOGITS = np.array([2, -2, 2, -2, 2, -2], np.float32)

    def shifts(self, sampler: Sampler) -> list[float]:
        """What was done to each logit, up to one number for all: tokens 4 and 5 are never said."""
        _, chances = sampler.distribution(self.LOGITS)
        logs = np.log(chances) - np.log(chances[4]) + 2
        return [round(float(shift), 9) for shift in logs]

    def test_repetition_divides_what_is_positive_and_multiplies_the_rest(self) -> None:
        assert self.shifts(Sampler(Sampling(repeat_penalty=2), 6, [0, 0, 1])) == [1, -4, 2, -2, 2, -2]

    def test_presence_counts_once_and_frequency_each_time(self) -> None:
        assert self.shifts(Sampler(Sampling(presence_penalty=0.5), 6, [0, 0, 0, 3])) == [1.5, -2, 2, -2.5, 2, -2]
        assert self.shifts(Sampler(Sampling(frequency_penalty=0.5), 6, [0, 0, 0, 3])) == [0.5, -2, 2, -2.5, 2, -2]

    @pytest.mark.parametrize(
        ("last_n", "counts"), [(0, "000000"), (1, "000100"), (3, "001200"), (-1, "311200"), (99, "311200")]
    )
    def test_the_window_is_the_end_of_prompt_and_answer(self, last_n: int, counts: str) -> None:
        sampling = Sampling(frequency_penalty=1.0, repeat_last_n=last_n)
        expected = [float(logit) - int(count) for logit, count in zip(self.LOGITS, counts, strict=True)]
        assert self.shifts(Sampler(sampling, 6, [0, 0, 0, 1, 3, 2, 3])) == expected
        later = Sampler(sampling, 6, [0, 0])
        for token in (0, 1, 3, 2, 3):
            later.accept(token)
        assert self.shifts(later) == expected

    def test_what_leaves_the_window_is_free_again(self) -> None:
        sampler = Sampler(Sampling(presence_penalty=1, repeat_last_n=2), 6, [0])
        sampler.accept(1)
        assert self.shifts(sampler) == [1, -3, 2, -2, 2, -2]
        sampler.accept(2)
        assert self.shifts(sampler) == [2, -3, 1, -2, 2, -2]
        sampler.accept(2)
        assert self.shifts(sampler) == [2, -2, 1, -2, 2, -2]

    def test_a_drawn_token_is_counted(self) -> None:
        sampler = Sampler(Sampling(temperature=0, frequency_penalty=1), 3, [])
        assert [sampler.next(np.array([2.5, 2, 1], np.float32)) for _ in range(5)] == [0, 1, 0, 1, 2]


class TestFilters:
    def kept(self, logits: Logits, **settings: Any) -> set[int]:
        return set(distribution(Sampling(**settings), logits))

    def test_top_p_keeps_the_token_that_reaches_the_share(self) -> None:
        logits = np.array([2, 1, 1, 0], np.float32) * np.log(np.float32(2))  # 4, 2, 2 and 1 of 9.
        assert self.kept(logits, top_p=0.44) == {0}
        assert self.kept(logits, top_p=0.45) == {0, 1}
        assert self.kept(np.zeros(4, np.float32), top_p=0.5) == {0, 1}

    def test_typical_p_goes_beyond_the_share(self) -> None:
        assert self.kept(np.zeros(4, np.float32), typical_p=0.5) == {0, 1, 2}

    def test_typical_p_may_leave_the_likeliest_out(self) -> None:
        logits = chances_of(0.4, *[0.01] * 60)
        assert 0 not in self.kept(logits, typical_p=0.4)

    def test_min_p_is_measured_at_the_best(self) -> None:
        logits = chances_of(0.5, 0.26, 0.24)
        assert self.kept(logits, min_p=0.5) == {0, 1}
        assert self.kept(np.array([1, 1, 0.999], np.float32), min_p=1.0) == {0, 1}

    def test_each_filter_sees_what_the_one_before_has_left(self) -> None:
        logits = chances_of(0.4, 0.3, 0.2, 0.1)
        assert self.kept(logits, top_p=0.6) == {0, 1}
        assert self.kept(logits, top_p=0.55, top_k=2) == {0}  # 4 of 7.
        assert self.kept(logits, top_p=0.6, temperature=5.0) == {0, 1}  # Heat comes last.


class TestMirostat:
    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("tau", [2.0, 5.0])
    def test_surprise_settles_at_tau(self, version: int, tau: float) -> None:
        logits = -np.log(np.arange(1, 2001, dtype=np.float32))
        sampler = Sampler(Sampling(mirostat=version, mirostat_tau=tau, seed=4), 2000, [])
        surprises = []
        for _ in range(1500):
            ids, chances = sampler.distribution(logits)
            place = ids.tolist().index(sampler.next(logits))
            surprises.append(-math.log2(chances[place]))
        assert sum(surprises[500:]) / 1000 == pytest.approx(tau, abs=0.15)

    @pytest.mark.parametrize("version", [1, 2])
    def test_it_learns_from_each_token(self, version: int) -> None:
        sampling = Sampling(mirostat=version, mirostat_tau=4.0, mirostat_eta=0.7, seed=4)
        sampler, mu = Sampler(sampling, 400, []), 8.0
        for seed in range(30):
            logits = logits_of(400, seed)
            expected = plain(sampling, logits, mu=mu)
            ids, _ = sampler.distribution(logits)
            assert set(ids.tolist()) == expected.keys()
            mu -= 0.7 * (-math.log2(expected[sampler.next(logits)]) - 4.0)

    def test_an_exponent_of_one_is_no_gap_in_the_formula(self) -> None:
        logits, half = np.zeros(2, np.float32), {0: math.log(2)}
        for tau, count in ((0.1, 1), (0.6, 2)):
            sampling = Sampling(mirostat=1, mirostat_tau=tau, logit_bias=half)
            assert len(distribution(sampling, logits)) == count

    @pytest.mark.parametrize("version", [1, 2])
    def test_it_survives_every_shape(self, version: int) -> None:
        sampling = Sampling(mirostat=version, mirostat_tau=100.0, mirostat_eta=100.0, seed=1)
        shapes = [
            np.zeros(100, np.float32),
            -np.log(np.arange(1, 101, dtype=np.float32)),
            np.array([0] + [-np.inf] * 99, np.float32),
            np.array([0, 0] + [-np.inf] * 98, np.float32),
            logits_of(100, spread=1000),
        ]
        sampler = Sampler(sampling, 100, [])
        for logits in shapes * 10:
            assert logits[sampler.next(logits)] > -np.inf


class TestAllowed:
    LOGITS = np.array([4, 3, 2, 1], np.float32)

    def test_a_truth_for_each_token_and_ids_mean_the_same(self) -> None:
        for sampling in (Sampling(), Sampling(top_k=1), Sampling(temperature=0), Sampling(mirostat=2)):
            by_truth = distribution(sampling, self.LOGITS, allowed=np.array([False, True, False, True]))
            assert by_truth == distribution(sampling, self.LOGITS, allowed=np.array([3, 1]))
            assert by_truth.keys() <= {1, 3}
        assert distribution(Sampling(), self.LOGITS, allowed=np.array([1, 3])) == pytest.approx(plain_pair(3, 1))

    @pytest.mark.parametrize("allowed", [np.zeros(4, np.bool_), np.zeros(0, np.int64)], ids=["truths", "ids"])
    def test_nothing_allowed_is_refused(self, allowed: npt.NDArray[Any]) -> None:
        with pytest.raises(PromptRefused, match="No token can come next"):
            Sampler(Sampling(), 4, []).next(self.LOGITS, allowed)

    def test_end_tokens_never_come_where_the_end_is_ignored(self) -> None:
        ends = frozenset({0, 2})
        ignoring = Sampler(Sampling(ignore_eos=True, logit_bias={0: 50.0}), 4, [], ends)
        assert set(ignoring.distribution(self.LOGITS)[0].tolist()) == {1, 3}
        assert Sampler(Sampling(temperature=0), 4, [], ends).next(self.LOGITS) == 0


def plain_pair(first: float, second: float) -> dict[int, float]:
    return dict(zip((1, 3), softmax([first, second]), strict=True))


class TestBrokenLogits:
    def test_what_is_no_number_is_never_drawn(self) -> None:
        assert distribution(Sampling(), np.array([np.nan, 1, -np.inf, 1], np.float32)) == {1: 0.5, 3: 0.5}
        assert Sampler(Sampling(temperature=0), 3, []).next(np.array([np.nan, 1, 2], np.float32)) == 2

    def test_infinity_wins(self) -> None:
        logits = np.array([1, np.inf, 2, np.inf, np.nan], np.float32)
        for sampling in (
            Sampling(),
            Sampling(top_p=0.9),
            Sampling(typical_p=0.9, repeat_penalty=0.01),
            Sampling(mirostat=2),
        ):
            chances = distribution(sampling, logits, [1, 3])
            assert {token for token, chance in chances.items() if chance} == {1, 3}

    @pytest.mark.parametrize("value", [np.nan, -np.inf])
    def test_logits_without_a_number_are_the_engines_failure(self, value: float) -> None:
        sampler = Sampler(Sampling(), 3, [])
        with pytest.raises(EngineFailed, match="no usable logits"):
            sampler.next(np.full(3, value, np.float32))

    def test_another_number_of_logits_than_tokens_is_the_engines_failure(self) -> None:
        for count in (0, 2, 4):
            with pytest.raises(EngineFailed, match="bytes of logits"):
                Sampler(Sampling(), 3, []).next(np.ones(count, np.float32))

    def test_any_buffer_will_do(self) -> None:
        logits = logits_of(100)
        floats = (ctypes.c_float * 100)(*logits.tolist())
        expected = distribution(Sampling(top_k=9), logits)
        for buffer in (logits.tobytes(), bytearray(logits.tobytes()), memoryview(logits), floats):
            ids, chances = Sampler(Sampling(top_k=9), 100, []).distribution(buffer)
            assert dict(zip(ids.tolist(), chances.tolist(), strict=True)) == expected


class TestLogprobs:
    def test_they_are_the_models_own(self) -> None:
        """Neither bias nor penalty, filter or heat shows."""
        logits = logits_of(300)
        sampling = Sampling(temperature=0.5, top_k=3, logit_bias={7: 50.0}, repeat_penalty=1.5)
        sampler = Sampler(sampling, 300, list(range(300)))
        assert sampler.next(logits) == 7
        chosen, best = sampler.logprobs(logits, 5)
        expected = sorted(((math.log(c), -t) for t, c in enumerate(softmax(logits.tolist()))), reverse=True)
        assert chosen == pytest.approx(math.log(softmax(logits.tolist())[7]))
        assert [token for token, _ in best] == [-token for _, token in expected[:5]]
        assert [value for _, value in best] == pytest.approx([value for value, _ in expected[:5]])

    def test_none_may_be_asked_for_and_more_than_there_are(self) -> None:
        sampler = Sampler(Sampling(), 3, [])
        logits = np.array([1, -np.inf, 1], np.float32)
        sampler.accept(2)
        assert sampler.logprobs(logits, 0) == (pytest.approx(-math.log(2)), [])
        assert [token for token, _ in sampler.logprobs(logits, 20)[1]] == [0, 2]

    def test_great_logits_do_not_overflow(self) -> None:
        sampler = Sampler(Sampling(), 3, [])
        sampler.accept(1)
        chosen, best = sampler.logprobs(np.array([5000, 4999, -5000], np.float32), 1)
        assert chosen == pytest.approx(-1 - math.log(1 + math.exp(-1)))
        assert best == [(0, pytest.approx(-math.log(1 + math.exp(-1))))]

    def test_there_are_none_before_the_first_token(self) -> None:
        with pytest.raises(RuntimeError):
            Sampler(Sampling(), 3, [0, 1]).logprobs(np.ones(3, np.float32), 1)


class TestRefusals:
    def test_values_that_make_no_sense(self) -> None:
        with pytest.raises(SamplingRefused):
            Sampler(Sampling(top_p=2.0), 3, [])

    @pytest.mark.parametrize("token", [-1, 3, 10**9])
    def test_tokens_outside_the_vocabulary(self, token: int) -> None:
        with pytest.raises(PromptRefused, match="outside the vocabulary"):
            Sampler(Sampling(), 3, [0, token])
        with pytest.raises(PromptRefused, match="outside the vocabulary"):
            Sampler(Sampling(), 3, []).accept(token)
