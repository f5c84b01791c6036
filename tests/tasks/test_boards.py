"""What is shown of boards, and what administrators tell them."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.boards import BoardBook, overview
from tasks.card import Card, SelfTest
from tasks.errors import BoardLives, BoardUnknown
from tasks.presence import Machine, Presence, Runtime, breathe, leave
from tasks.residence import state_on, why_unserved
from tasks.roster import announce, read_roster
from tasks.waits_for import WaitsFor, waits_for

pytestmark = pytest.mark.usefixtures("standing")

RK3588 = Machine(
    soc="rk3588",
    driver="0.9.8",
    npu_load=(87, 0, 5),
    npu_hertz=600_000_000,
    npu_highest=1_000_000_000,
    temperature=61.2,
    limit=85.0,
    hot=False,
    memory=8 << 30,
    memory_available=3 << 30,
    throttled=("thermal-devfreq-0",),
    swapped=4096,
)


def shown(client: redis.Redis) -> list[dict[str, Any]]:
    return overview(read_roster(client))


def test_boards_show_what_they_are_and_have(client: redis.Redis) -> None:
    """A speed that was lately measured counts for more than the self-test's; a board that has left is not shown."""
    tested = SelfTest(prefill_tps=100.0, decode_tps=20.0)
    for board in ("one", "two", "gone"):
        announce(client, Card(id="small", board=board, engine="rkllm", engine_version="1.2.3", self_test=tested))
    breathe(client, Presence(name="board:one", board="one", version="1.0", machine=RK3588))
    breathe(
        client,
        Presence(
            name="board:two",
            board="two",
            refused={"torn": "it is cut off"},
            runtime=Runtime(version="1.2.3", installed=("1.2.3",)),
        ),
    )
    breathe(client, Presence(name="board:gone", board="gone"))
    leave(client, "board:gone")
    breathe(client, Presence(name="small@two", board="two", model="small", state="busy", decode_tps=31.4, parked=7))
    one, two = shown(client)
    assert (one["id"], one["soc"], one["driver"], one["npu_load"]) == ("one", "rk3588", "0.9.8", (87, 0, 5))
    assert one["npu_clock"] == {"hertz": 600_000_000, "highest": 1_000_000_000}
    assert one["memory"] == {"total": 8 << 30, "available": 3 << 30, "swapped": 4096} and one["temperature"] == 61.2
    assert one["throttled"] == ("thermal-devfreq-0",)
    assert (one["temperature_limit"], one["hot"], two["hot"]) == (85.0, False, None)
    assert [(model["state"], model["decode_tps"]) for model in one["models"]] == [("unloaded", 20.0)]
    assert (two["id"], two["soc"], two["memory"], two["version"]) == ("two", None, None, None)
    assert (one["runtime"], two["runtime"]) == (None, {"version": "1.2.3", "installed": ("1.2.3",), "unusable": {}})
    assert two["refused"] == {"torn": "it is cut off"}
    [model] = two["models"]
    assert (model["state"], model["prefill_tps"], model["decode_tps"]) == ("busy", 100.0, 31.4)
    assert (model["engine_version"], model["parked_bytes"]) == ("1.2.3", 7)


@pytest.mark.parametrize(
    "states", [("idle", "busy", "loading"), ("busy", "loaded", "idle"), ("loading", "idle", "busy")]
)
def test_of_several_workers_the_one_at_work_is_shown(states: tuple[str, ...], client: redis.Redis) -> None:
    """Whichever of them breathed last, and with what all of them have parked."""
    announce(client, Card(id="small", board="one", engine="echo"))
    breathe(client, Presence(name="board:one", board="one"))
    for number, state in enumerate(states):
        breathe(client, Presence(name=f"small#{number}@one", board="one", model="small", state=state, parked=2))
    [model] = shown(client)[0]["models"]
    assert (model["state"], model["parked_bytes"]) == ("busy", 6)
    assert state_on(read_roster(client), "small", "one") == "busy"


def test_one_model_in_two_quantizations_is_one_model(client: redis.Redis) -> None:
    """A chip runs the kind it can; clients see one name, and jobs one queue."""
    for board, kind in (("one", "w8a8"), ("two", "w4a16")):
        announce(client, Card(id="small", board=board, engine="rkllm", quantization=kind))
        breathe(client, Presence(name=f"board:{board}", board=board))
    [model] = read_roster(client).models
    assert model.boards == ("one", "two")
    assert [board["models"][0]["quantization"] for board in shown(client)] == ["w8a8", "w4a16"]


def test_a_board_that_is_to_be_drained_serves_nothing_at_once(client: redis.Redis) -> None:
    """Its agent looks only every second or so; what was asked meanwhile would wait for it."""
    announce(client, Card(id="small", board="one", engine="echo"))
    breathe(client, Presence(name="board:one", board="one"))
    breathe(client, Presence(name="small@one", board="one", model="small", state="loaded"))
    [model] = read_roster(client).models
    assert (model.served, model.loaded, model.boards) == (True, True, ("one",))
    client.hset(keys.DRAINED, "one", "1")
    snapshot = read_roster(client)
    [model] = snapshot.models
    assert (model.served, model.loaded, model.boards) == (False, False, ())
    assert "is drained" in why_unserved(model, snapshot) and waits_for(model) is WaitsFor.BOARD
    assert shown(client)[0]["drained"]


@pytest.mark.anyio
async def test_a_board_that_has_gone_is_forgotten(aclient: redis.asyncio.Redis, client: redis.Redis) -> None:
    """With its models and its drain; others keep theirs, and one that breathes is not forgotten."""
    book = BoardBook(aclient)
    for card in ("tiny/one", "tiny/two", "large/two"):
        client.hset(keys.CARDS, card, b"")
    client.hset(keys.DRAINED, "two", "1")
    breathe(client, Presence(name="board:two", board="two"))
    with pytest.raises(BoardLives):
        await book.forget("two")
    client.delete(keys.PRESENCE)
    await book.forget("two")
    assert client.hkeys(keys.CARDS) == [b"tiny/one"] and not client.exists(keys.DRAINED)
    with pytest.raises(BoardUnknown, match="There are: one"):
        await book.forget("two")


async def test_a_board_is_drained_and_resumed_by_its_name(aclient: redis.asyncio.Redis, client: redis.Redis) -> None:
    """Twice is no mistake. One that left while it was drained can be resumed, and one that never was there not be drained."""
    book = BoardBook(aclient)
    breathe(client, Presence(name="board:one", board="one"))
    breathe(client, Presence(name="board:two", board="two", drained=True))
    for _ in range(2):
        await book.drain("one")
        assert client.hkeys(keys.DRAINED) == [b"one"]
    leave(client, "board:one")
    await book.resume("one")
    await book.resume("two")
    assert not client.exists(keys.DRAINED)
    for step in (book.drain, book.resume):
        with pytest.raises(BoardUnknown, match=r"no board 'one'. There are: two\."):
            await step("one")
    await aclient.aclose()
