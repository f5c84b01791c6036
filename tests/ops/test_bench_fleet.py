"""`bench fleet`: boards that are reckoned, on the service's own queue in virtual time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from npu.errors import ModelRefused
from npu.simulator import Profile
from ops.bench.fleet import FIRST_TOKEN, Fleet, profile_named, reckon
from ops.bench.served import Served, replay, summary
from ops.bench.trace import Ask, TraceError, before_each, named, read, write
from ops.bench.virtual import VirtualQueue, virtual_queue
from tasks.jobs import Lane
from tasks.settings import TaskSettings

PACE = Profile(prefill_tps=1000, decode_tps=20)
"""A token of a prompt takes 1 ms, one of an answer 50."""
NEAR = 1.0
"""Milliseconds by which a figure may differ: the service's clock has whole ones."""


def ask(at: float, prompt: int, answer: int, **more: Any) -> Ask:
    return Ask(at=at, prompt_tokens=prompt, answer_tokens=answer, **more)


class Reckoning(Protocol):
    """What such boards make of it."""

    def __call__(self, asks: list[Ask], boards: int = 1, **settings: Any) -> dict[str, Any]: ...


@pytest.fixture(scope="module")
def queue() -> Iterator[VirtualQueue]:
    """One for all, since each test leaves nothing in it."""
    with virtual_queue() as queue:
        yield queue


@pytest.fixture
def fleet(queue: VirtualQueue) -> Reckoning:
    """Boards of that pace."""

    def run(asks: list[Ask], boards: int = 1, **settings: Any) -> dict[str, Any]:
        queue.client.flushall()
        return Fleet(queue, asks, [PACE] * boards, TaskSettings(**settings)).run()

    return run


def test_one_request_takes_what_its_tokens_take(fleet: Reckoning) -> None:
    """And what the service adds."""
    found = fleet([ask(3, 100, 11)])
    chat = found["lanes"]["interactive"]
    assert chat["first_token_ms"]["p50"] == pytest.approx(100 + 50 + FIRST_TOKEN, abs=NEAR)
    assert chat["total_ms"]["p50"] == pytest.approx(100 + 11 * 50 + FIRST_TOKEN, abs=NEAR)
    assert (found["answered"], found["tokens"], found["boards"][0]["answered"]) == (1, 11, 1)


def test_a_second_board_takes_what_waits(fleet: Reckoning) -> None:
    """Two at once: one of them waits for the other, or each has its board."""
    asks = [ask(0, 100, 20, user="a"), ask(0, 100, 20, user="b")]
    alone, both = fleet(asks), fleet(asks, boards=2)
    assert alone["lanes"]["interactive"]["first_token_ms"]["max"] > 1100
    assert both["lanes"]["interactive"]["first_token_ms"]["max"] == pytest.approx(150 + FIRST_TOKEN, abs=NEAR)
    assert [board["answered"] for board in both["boards"]] == [1, 1]


def test_a_conversation_goes_on_from_the_cache_of_its_board(fleet: Reckoning) -> None:
    """Only what is new is read, on either board; a turn is sent when the one before it has been answered."""
    turns = [ask(at, 500, 10, user=who, conversation=who) for at in (0.0, 0.1, 0.2) for who in ("a", "b")]
    found = fleet(turns, boards=2)
    assert found["prompt_tokens"] == 2 * (500 + 1010 + 1520)
    assert found["cached_share"] == pytest.approx(2 * (510 + 1020) / found["prompt_tokens"], abs=0.001)
    assert found["lanes"]["interactive"]["first_token_ms"]["max"] == pytest.approx(550 + FIRST_TOKEN, abs=NEAR)


def test_a_shared_system_message_is_read_once(fleet: Reckoning) -> None:
    """By a board that has just read it."""
    found = fleet([ask(at, 20, 5, conversation=f"c{at}", prefix="house", prefix_tokens=900) for at in (0, 5, 10)])
    assert found["cached_share"] == pytest.approx(1800 / (3 * 920), abs=0.001)


def test_a_chat_pauses_what_runs_in_the_background(fleet: Reckoning) -> None:
    """The service's own rule: the other one goes on later, where it was."""
    found = fleet([ask(0, 100, 200, lane=Lane.BACKGROUND), ask(2, 100, 10)])
    chat, background = found["lanes"]["interactive"], found["lanes"]["background"]
    assert chat["first_token_ms"]["p50"] < 150 + 50 + 20
    assert (background["answered"], background["stalls"], found["tokens"]) == (1, 0, 210)
    # What it had said by then is read again, and what has to be read is not waited for twice.
    assert background["longest_gap_ms"] == pytest.approx(100 + 500 + 100 + 40 + 50, abs=150)


def test_a_full_queue_and_a_deadline_are_told(fleet: Reckoning) -> None:
    """As the service refuses them."""
    asks = [ask(0, 1000, 100, user=f"u{number}") for number in range(6)]
    found = fleet(asks, queue_limit=3, deadline=13)
    assert found["refused"] == {"QueueFull": 3, "deadline": 1}
    assert found["answered"] == 2


def test_what_runs_past_its_deadline_is_given_up(fleet: Reckoning) -> None:
    """Where it is by then; what comes next in its conversation is asked nevertheless, and what was given up is not in it."""
    asks = [ask(0, 100, 400, conversation="c"), ask(1, 30, 5, conversation="c")]
    found = fleet(asks, deadline=5)
    assert (found["answered"], found["refused"], found["prompt_tokens"]) == (1, {"deadline": 1}, 30)
    assert found["tokens"] == pytest.approx((5000 - 100) / 50 + 5, abs=2)


def test_faster_boards_take_more() -> None:
    """In proportion to their speed, as long as there is something to do."""
    asks = [ask(0, 50, 30, user=f"u{number % 7}") for number in range(80)]
    profiles = [PACE, Profile(prefill_tps=3000, decode_tps=60)]
    found = reckon(asks, profiles, TaskSettings(queue_limit=100))
    slow, fast = (board["tokens"] for board in found["boards"])
    assert fast / slow == pytest.approx(3, abs=0.4)


def test_users_with_keys_of_their_own_take_turns(queue: VirtualQueue) -> None:
    """Otherwise whoever came with twenty questions keeps the next one waiting for all of them."""
    asks = [*(ask(0, 50, 20, user="many") for _ in range(20)), ask(0.5, 50, 20, user="one")]
    waits = []
    for own_keys in (False, True):
        queue.client.flushall()
        fleet = Fleet(queue, asks, [PACE], TaskSettings(), own_keys=own_keys)
        fleet.run()
        last = fleet.served[-1]
        assert last.first is not None
        waits.append(last.first - last.sent)
    assert waits[0] > 20 and waits[1] < 3


def test_profiles_are_named_by_chip_and_model() -> None:
    """As the vendor measured them."""
    assert profile_named("rk3588:qwen3-0.6b").decode_tps == 32.91
    with pytest.raises(ModelRefused, match="Measured there"):
        profile_named("rk3588:qwen3-99b")
    with pytest.raises(ModelRefused, match="no profile"):
        profile_named("rk3588")


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    """By the time at which its requests are sent."""
    asks = [ask(5, 1, 1, after="c"), ask(2, 3, 4, user="x", conversation="c", prefix="p", prefix_tokens=7)]
    write(tmp_path / "t.jsonl", asks)
    assert read(tmp_path / "t.jsonl") == asks[::-1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"at": 1}', "prompt_tokens"),
        ('{"at": -1, "prompt_tokens": 1, "answer_tokens": 1}', "at"),
        ('{"at": 1, "prompt_tokens": 1, "answer_tokens": 1, "size": 3}', "size"),
        ("\xff", "Line 1"),
        ("", "no requests"),
    ],
)
def test_a_trace_that_cannot_be_read_says_where(tmp_path: Path, line: str, why: str) -> None:
    """With the line's number."""
    (tmp_path / "t.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(TraceError, match=why):
        read(tmp_path / "t.jsonl")


@pytest.mark.parametrize("name", ["open-webui", "home-assistant"])
def test_the_traffic_of_programs_is_the_same_each_time(name: str) -> None:
    """For a seed; its users come when it lasts, and not later."""
    asks = named(name, 3, 600, 1)
    assert asks == named(name, 3, 600, 1) != named(name, 3, 600, 2)
    assert {each.user for each in asks} == {"user-1", "user-2", "user-3"}
    assert max(each.at for each in asks) < 600


def test_a_turn_waits_for_the_one_before_it() -> None:
    """In its own conversation, or in the one it comes after."""
    asks = [ask(0, 1, 1, conversation="a"), ask(1, 1, 1), ask(1, 1, 1, after="a"), ask(2, 1, 1, conversation="a")]
    assert before_each(asks) == [None, None, 0, 0]


def test_the_figures_are_those_of_what_was_served() -> None:
    """Reckoned by hand."""
    a, b = ask(0, 10, 10, user="a"), ask(0, 10, 10, user="b")
    served = [
        Served(a, sent=0, first=1, ended=2, tokens=10, prompt_tokens=10, cached_tokens=5, longest_gap=1.5),
        Served(b, sent=0, first=3, ended=5, tokens=10, prompt_tokens=10),
        Served(b, sent=1, refused="broke off"),
    ]
    found = summary(served)
    assert (found["requests"], found["answered"], found["refused"]) == (3, 2, {"broke off": 1})
    assert (found["seconds"], found["tokens_per_second"], found["cached_share"]) == (5, 4, 0.25)
    chat = found["lanes"]["interactive"]
    assert chat["first_token_ms"] == {"mean": 2000, "p50": 1000, "p95": 3000, "max": 3000}
    assert (chat["stalls"], chat["longest_gap_ms"]) == (1, 1500)
    # 5 and 2 tokens a second: (5 + 2)^2 / (2 * (25 + 4)).
    assert found["fairness"] == {"users": 2, "jain": 0.845, "worst": round(2 / 3.5, 3)}


def test_who_is_refused_everything_is_not_served_alike() -> None:
    """They count among those who chat."""
    asks = [ask(0, 10, 10, user=user) for user in "abc"]
    served = [Served(asks[0], sent=0, first=1, ended=2, tokens=10)]
    served += [Served(each, sent=0, ended=1, refused="HTTP 429") for each in asks[1:]]
    assert summary(served)["fairness"] == {"users": 3, "jain": 0.333, "worst": 0}


def test_what_was_served_is_traffic_again() -> None:
    """With the lengths that it had: those of prompts without what was said before."""
    one, two = ask(0, 10, 10, conversation="c", prefix="p", prefix_tokens=100), ask(1, 10, 10, conversation="c")
    served = [
        Served(one, sent=0, first=1, ended=2, tokens=7, prompt_tokens=113),
        Served(two, sent=2, first=3, ended=4, tokens=5, prompt_tokens=132),
    ]
    assert [(each.prompt_tokens, each.answer_tokens) for each in replay(served)] == [(13, 7), (12, 5)]


def test_a_random_day_ends(fleet: Reckoning) -> None:
    """Whatever comes: each request is answered or refused, none is left, and no board is busier than always."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    asks = sorted(
        (
            ask(
                chance.random() * 60,
                chance.randrange(1, 4000),
                chance.randrange(1, 60),
                user=f"u{chance.randrange(4)}",
                conversation=chance.choice([None, *"abcd"]),
                lane=chance.choice(list(Lane)),
            )
            for _ in range(120)
        ),
        key=lambda each: each.at,
    )
    found = fleet(asks, boards=3, queue_limit=20, deadline=60)
    assert found["answered"] + sum(found["refused"].values()) == 120
    assert found["answered"] > 20
    assert all(0 < board["utilisation"] <= 1 for board in found["boards"])
