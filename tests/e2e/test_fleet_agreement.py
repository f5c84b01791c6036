"""`bench fleet` against the real service on the simulator of the NPU: the same traffic, with the lengths it really had."""

from __future__ import annotations

import asyncio
import random
import statistics

import httpx
import pytest

from npu.simulator import SimulatedModel
from npu.simulator.profile import profile_of
from ops.bench.fleet import reckon
from ops.bench.load import Load
from ops.bench.served import replay, summary
from ops.bench.trace import Ask
from tasks.settings import TaskSettings
from tests.stack import LIMIT, Stack, eventually

pytestmark = pytest.mark.full

NEAR = 0.05
_SENTENCE = "the quick river turns and the old stone holds the water "
ANSWERS = {
    "water question": _SENTENCE * 20,
    "river tree": _SENTENCE * 10,
    "stone": _SENTENCE * 3,
    "the": _SENTENCE * 14,
}
"""Of some length, as answers are: by what stands in the question."""


def traffic(boards: int) -> list[Ask]:
    """Two thirds of what the boards can bear, of people who do not know of each other, and no two at once: which of them
    were first would be chance. No conversations: where those are at home is tested elsewhere."""
    chance, at, asks = random.Random(7), 0.0, []
    while at < 90:
        at += 0.1 + chance.expovariate(boards / 5)
        asks.append(Ask(at=at, user=f"user-{len(asks) % 9}", prompt_tokens=chance.randint(40, 900), answer_tokens=400))
    return asks


@pytest.mark.timeout(900)
@pytest.mark.parametrize("boards", [1, 2, 4])
def test_a_fleet_is_reckoned_as_it_is(boards: int) -> None:
    """Tokens a second and the median first token differ by less than a twentieth. On a quiet machine."""
    profile = profile_of("RK3588", "Qwen3", "0.6B", "w8a8")
    stack = Stack({}, board=False, rkllm_library="simulator", default_model="rack", queue_limit=512)
    stack.add_simulated("rack", SimulatedModel(profile=profile, max_context_limit=16384, answers=ANSWERS))
    with stack:
        for number in range(boards):
            data = str(stack.folder / f"data{number}")
            stack.spawn(f"board{number}", "worker", "rack", board_name=f"board{number}", data_dir=data)
        eventually(lambda: _there(stack) == boards, what="the boards are there")
        warm = [Ask(at=0, user=f"u{number}", prompt_tokens=50, answer_tokens=400) for number in range(8 * boards)]
        asyncio.run(Load(stack.url, None, "rack", warm).run())  # every board has its model, and was tried out
        served = asyncio.run(Load(stack.url, None, "rack", traffic(boards)).run())
    real = summary(served)
    reckoned = reckon(replay(served), [profile] * boards, TaskSettings(queue_limit=512))
    print(f"{boards} boards: {_figures(real)}, reckoned {_figures(reckoned)}")
    assert real["answered"] == reckoned["answered"] == len(served)
    for one, other in zip(_figures(real), _figures(reckoned), strict=True):
        assert abs(one / other - 1) < NEAR
    assert statistics.fmean(board["utilisation"] for board in reckoned["boards"]) > 0.5


def _there(stack: Stack) -> int:
    """How many boards the API knows."""
    queues = httpx.get(f"{stack.url}/v1/queue", timeout=LIMIT).json()["data"]
    return sum(len(queue["boards"]) for queue in queues)


def _figures(found: dict[str, object]) -> tuple[float, float]:
    lanes = found["lanes"]
    assert isinstance(lanes, dict) and isinstance(found["tokens_per_second"], float)
    return found["tokens_per_second"], lanes["interactive"]["first_token_ms"]["p50"]
