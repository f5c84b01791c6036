"""Conversations go back to the board that has them in its cache, if that costs nobody anything; on a real Valkey."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

from tasks import keys
from tasks.claims import Claim, Later, claim_next, hand_back
from tasks.events import Finished, FinishReason, Timings, Usage
from tasks.jobs import Lane, new_job_id
from tasks.policy import AT_HOME, PARKED
from tasks.presence import Presence, breathe
from tasks.queue_book import QueueBook
from tasks.requests import ChatRequest, Message, talk_of
from tasks.store import JobStore
from tasks.stream import EventWriter

pytestmark = pytest.mark.anyio

NOW = 1_000_000
"""Milliseconds at which the service's clock stands: no time passes here, however slow the machine is."""
DONE = Finished(FinishReason.STOP, Usage(3, 2), Timings())
FIRST = (Message("system", "It is 9:00."), Message("user", "What is a board?"))
SECOND = (Message("system", "It is 9:01."), *FIRST[1:], Message("assistant", "A computer."), Message("user", "Thanks."))


class Boards:
    """Two boards with a model, and its jobs."""

    def __init__(self, client: redis.Redis, aclient: redis.asyncio.Redis) -> None:
        self.client = client
        client.set(keys.CLOCK, f"0:{NOW}")  # Redis' own is far from it
        self.store = JobStore(aclient, queue_limit=1000, job_ttl=60, deadline=600)
        for board in ("one", "two"):
            breathe(client, Presence(name=f"echo@{board}", board=board, model="echo"))

    async def accept(self, *messages: Message, lane: Lane = Lane.INTERACTIVE) -> str:
        job = new_job_id()
        await self.store.accept(job, "echo", ChatRequest(messages), lane=lane, owner="")
        return job

    def look(self, board: str, parks: bool = False) -> Claim | Later | None:
        return claim_next(
            self.client, "echo", worker=f"echo@{board}", board=board, child=1, call_id="c", lease=60, parks=parks
        )

    def begin(self, board: str, parks: bool = False) -> Claim:
        claim = self.look(board, parks)
        assert isinstance(claim, Claim)
        return claim

    def end(self, claim: Claim, end: Finished = DONE) -> None:
        with EventWriter(self.client, claim.job, "echo", claim.token, claim.seq, lambda: None, patience=5) as writer:
            writer.end(end)

    async def first_turn(self) -> None:
        """A conversation has begun on board one."""
        await self.accept(*FIRST)
        self.end(self.begin("one"))
        self.client.delete(keys.calls("echo"))


@pytest.fixture
async def boards(client: redis.Redis, aclient: redis.asyncio.Redis) -> Boards:
    made = Boards(client, aclient)
    await made.first_turn()
    return made


async def test_the_next_turn_is_left_to_the_board_that_had_the_last(boards: Boards, client: redis.Redis) -> None:
    """Whoever leaves it sends its call on, once, and comes again when it may have it."""
    job = await boards.accept(*SECOND)
    assert client.llen(keys.calls("echo")) == 1
    found = boards.look("two")
    assert isinstance(found, Later) and found.seconds == AT_HOME / 1000
    assert client.llen(keys.calls("echo")) == 2
    assert isinstance(boards.look("two"), Later)
    assert client.llen(keys.calls("echo")) == 2
    assert boards.begin("one").job == job
    assert boards.look("two") is None


async def test_its_own_board_takes_it_at_once(boards: Boards) -> None:
    """There is nothing to leave to anybody."""
    job = await boards.accept(*SECOND)
    assert boards.begin("one").job == job


@pytest.mark.parametrize("why", ["it is busy", "it is gone", "it has forgotten", "it waited", "it was handed back"])
async def test_it_is_anybodys_where_waiting_would_cost_something(boards: Boards, client: redis.Redis, why: str) -> None:
    """A board that is at work, dead, or has served somebody else since is not waited for; nor is any for long."""
    if why in ("it is busy", "it has forgotten"):
        await boards.accept(Message("user", "Something else."))
        other = boards.begin("one")
        if why == "it has forgotten":
            boards.end(other)
    job = await boards.accept(*SECOND)
    match why:
        case "it is gone":
            client.hdel(keys.PRESENCE, "echo@one")
        case "it waited":
            client.hincrby(keys.job(job), "since", -AT_HOME - 1)
        case "it was handed back":
            held = boards.begin("one")
            assert boards.look("two") is None
            hand_back(client, "echo", job, held.token, "it stopped", crashed=False)
    assert boards.begin("two").job == job


async def test_a_job_that_was_read_ahead_is_left_to_the_board_that_did(boards: Boards, client: redis.Redis) -> None:
    """For as long, and once: whoever then has it in hand begins anew."""
    job = await boards.accept(*SECOND)
    held = boards.begin("one")
    hand_back(client, "echo", job, held.token, "it was moved", crashed=False, goes_to="one")
    assert isinstance(boards.look("two"), Later)
    held = boards.begin("one")
    hand_back(client, "echo", job, held.token, "it stopped", crashed=False)
    assert boards.begin("two").job == job


async def test_a_board_that_parks_has_its_last_chats(boards: Boards) -> None:
    """Whatever it served beside them; of more than it is taken to have, the oldest is anybody's."""
    await boards.accept(Message("user", "Give a title."), lane=Lane.BACKGROUND)
    boards.end(boards.begin("one", parks=True))
    for number in range(PARKED - 1):
        await boards.accept(Message("user", f"Something else, {number}."))
        boards.end(boards.begin("one", parks=True))
    job = await boards.accept(*SECOND)
    assert isinstance(boards.look("two"), Later)
    claim = boards.begin("one", parks=True)
    assert claim.job == job
    boards.end(claim)
    third = (*SECOND, Message("assistant", "You are welcome."), Message("user", "And now?"))
    for number in range(PARKED):
        await boards.accept(Message("user", f"Yet something else, {number}."))
        boards.end(boards.begin("one", parks=True))
    job = await boards.accept(*third)
    assert boards.begin("two").job == job


async def test_a_board_that_does_not_breathe_any_more_is_gone(boards: Boards, client: redis.Redis) -> None:
    """Its last breath stays for a while."""
    client.hset(keys.PRESENCE, "echo@one", f"{NOW - 10_500}:{{}}")
    job = await boards.accept(*SECOND)
    assert boards.begin("two").job == job


async def test_what_waits_behind_it_is_served_meanwhile(boards: Boards) -> None:
    """Nobody is idle for somebody else's sake."""
    await boards.accept(*SECOND)
    other = await boards.accept(Message("user", "And what is a rack?"))
    assert boards.begin("two").job == other


async def test_items_of_batches_have_no_home(boards: Boards) -> None:
    """They wait long enough as it is."""
    job = await boards.accept(*SECOND, lane=Lane.BATCH)
    assert boards.begin("two").job == job


async def test_an_interrupted_job_counts_its_time_and_no_reason(
    boards: Boards, client: redis.Redis, aclient: redis.asyncio.Redis
) -> None:
    """The next claim knows what the engines of those before it took. Where its prompt was, nobody knows for which of them."""
    job = await boards.accept(*SECOND)
    for decoded in (120.4, 12.7):
        hand_back(client, "echo", job, boards.begin("one").token, "it stopped", crashed=False, decoded=decoded)
    last = boards.begin("one")
    assert last.decoded == 133
    before = (await QueueBook(aclient, boards.store).counts()).read()
    boards.end(last, Finished(FinishReason.STOP, Usage(10, 2, 3), Timings()))
    assert (await QueueBook(aclient, boards.store).counts()).read() == before


@pytest.mark.parametrize(
    ("why", "cached", "board"),
    [
        ("continued", 8, "one"),
        ("changed", 2, "one"),
        ("moved", 0, "two"),
        ("evicted", 0, "one"),
        ("parked", 8, "one"),
    ],
)
async def test_why_a_prompt_was_read_is_counted(
    boards: Boards, client: redis.Redis, aclient: redis.asyncio.Redis, why: str, cached: int, board: str
) -> None:
    """By where its conversation was when it was claimed; what was parked was there."""
    others = why in ("evicted", "parked")
    if others:
        await boards.accept(Message("user", "Something else."))
        boards.end(boards.begin("one", parks=why == "parked"))
    job = await boards.accept(*SECOND)
    if board == "two":
        client.hincrby(keys.job(job), "since", -AT_HOME - 1)
    boards.end(
        boards.begin(board),
        Finished(FinishReason.STOP, Usage(10, 2, cached, parked_tokens=5 if why == "parked" else 0), Timings()),
    )
    counts = await QueueBook(aclient, boards.store).counts()
    reason = "continued" if why == "parked" else why
    assert counts.read() == {("echo", Lane.INTERACTIVE): {"new": 6 if others else 3, reason: 10 - cached}}


def test_what_a_conversation_goes_on_with() -> None:
    """Up to the last answer, results of tools included; the clock in the system message makes no difference."""
    first, second = talk_of(ChatRequest(FIRST)), talk_of(ChatRequest(SECOND))
    assert first is not None and second is not None
    assert first[1] is None and second[1] == first[0] != second[0]
    called = (*SECOND, Message("assistant", ""), Message("tool", "12"))
    third = talk_of(ChatRequest(called))
    assert third is not None and third[1] == second[0]
    assert talk_of(ChatRequest(SECOND, adapter="a")) != second
