"""One fault at a fixed moment of an answer, on real processes: its client gets the answer whole, and the records agree.

`ops/soak` does the same at random, many times over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import cast

import psutil
import pytest

from tasks import keys
from tests.faults.clients import MODEL, Answer, returning, streaming, whole, words
from tests.faults.service import LEASE, PARTS, SPEED, Service
from tests.stack import eventually

SIZES = (30, 8, 8, 8)
"""Words of each answer; the first is about 400 tokens, which take a second."""
MOMENT = 60
"""Characters the client has read when the fault comes."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service() as service:
        yield service


def disturbed(service: Service, name: str, fault: Callable[[Answer], None]) -> None:
    """Four clients ask; one of them reads `MOMENT` characters when the fault comes, one waits for its turn, one came back
    before, and one has left. All is well with each, and with what is left of them."""
    texts = [words(f"{name}{number}", size) for number, size in enumerate(SIZES)]
    with ThreadPoolExecutor() as pool:
        others = []

        def then(answer: Answer) -> None:
            others.append(pool.submit(returning, service.url, texts[1], leaves_at=20))
            others.append(pool.submit(streaming, service.url, texts[2], leaves_at=20))
            fault(answer)
            others.append(pool.submit(returning, service.url, texts[3]))

        answers = [returning(service.url, texts[0], at=MOMENT, then=then)]
        answers += [other.result() for other in others]
    assert [fault for answer in answers for fault in answer.wrong()] == []
    assert answers[0].end == "stop" and answers[3].end == "stop", answers
    # Who was refused, or lost its connection without a wish to come back, has no answer.
    assert answers[1].end == "stop" or not answers[1].job, answers[1]
    assert service.wrong({answer.job: answer.asked for answer in answers if answer.job}) == []


@pytest.mark.parametrize("part", PARTS)
def test_kill_9(service: Service, part: str) -> None:
    """Of whatever part, while one answer is read and others wait: every answer is whole."""
    disturbed(service, f"kill-{part}", lambda _: service.kill_part(part))


@pytest.mark.parametrize(
    "part",
    [pytest.param(part, marks=[pytest.mark.full] if part in ("worker", "board", "valkey") else []) for part in PARTS],
)
def test_frozen_past_its_lease(service: Service, part: str) -> None:
    """It wakes into a world that went on without it, and changes nothing there."""

    process = service.part(part)  # looked for now, for that takes a part of a second, and so does the answer

    def freeze(answer: Answer) -> None:
        process.suspend()
        if part == "child":
            # Its job is given to its successor, or waits for it, before it wakes in the middle of its words.
            eventually(
                lambda: service.redis.hget(f"rl:{{{answer.job}}}", "failures") is not None, what="a lapsed lease"
            )
        else:
            time.sleep(LEASE + 1)
        process.resume()

    disturbed(service, f"freeze-{part}", freeze)


def test_a_cut_between_worker_and_redis(service: Service) -> None:
    """The worker goes on for itself, and its words come once the connection does."""

    def cut(_: Answer) -> None:
        service.cable.cut()
        time.sleep(1)
        service.cable.mend()

    disturbed(service, "cut", cut)


def test_lost_replies_of_redis(service: Service) -> None:
    """What was done and not heard of is not done twice."""

    def lose(_: Answer) -> None:
        service.cable.swallow_replies()
        time.sleep(1)
        service.cable.mend()

    disturbed(service, "lost", lose)


def test_calls_nobody_made(service: Service) -> None:
    """Duplicates of a call, before and behind the others, serve nothing twice and keep nobody waiting."""
    disturbed(service, "calls", lambda _: service.call_again(20))


def test_a_slow_line_and_whole_answers(service: Service) -> None:
    """With a twentieth of a second each way to Redis answers in one piece are whole as well."""
    service.cable.delay(0.05)
    text = words("slow", SIZES[0])
    try:
        answer = whole(service.url, text)
    finally:
        service.cable.mend()
    assert (answer.got, answer.end) == (text, "stop")
    assert service.wrong({answer.job: text}) == []


def test_a_zombie_beside_its_successor(service: Service, tmp_path: Path) -> None:
    """A worker that wakes while another goes on with its job writes nothing more, though it could be faster."""
    text = words("zombie", 80)
    second = service.start("worker", MODEL, board_name="second", data_dir=str(tmp_path))

    def freeze(answer: Answer) -> None:
        record = f"rl:{{{answer.job}}}"
        [first] = service.redis.hmget(record, "claim")
        holder = psutil.Process(int(service.redis.hget(record, "child")))  # type: ignore[arg-type]
        holder.suspend()
        try:
            # Its board may give it up, but only the other worker can take it.
            eventually(
                lambda: (
                    service.redis.hget(record, "claim") not in (None, first)
                    and service.redis.hget(record, "phase") == b"decode"
                ),
                what="a successor in mid-answer",
            )
        finally:
            holder.resume()

    try:
        eventually(lambda: f"{MODEL}@second".encode() in service.redis.hkeys(keys.PRESENCE), what="a second worker")
        answer = returning(service.url, text, at=MOMENT, then=freeze)
        assert (answer.got, answer.end) == (text, "stop")
        eventually(service.settled, what="an end of all jobs")
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", service.redis.xrange(f"rl:{{{answer.job}}}:events"))
        writers = [attempt for attempt, _ in groupby(entry.partition(b"-")[2] for entry, _ in entries)]
        # Nobody comes twice: who accepted it is the first, then each claim for itself.
        assert len(writers) == len(set(writers)) >= 3, writers
    finally:
        service.kill(f"worker {MODEL}")
        second.wait()


def test_calls_that_were_lost(service: Service) -> None:
    """A job that waits without any call is served all the same, since the sweep makes one."""
    worker = service.part("worker")
    asking = (worker, *worker.children())
    text = words("uncalled", 8)
    with ThreadPoolExecutor() as pool:
        for process in asking:
            process.suspend()
        try:
            # A call that comes while one of them waits for it is handed to that one, and lies in no queue.
            eventually(lambda: not service.redis.info("clients")["blocked_clients"], what="a worker that asks no more")
            answer = pool.submit(whole, service.url, text)
            eventually(lambda: service.redis.delete(keys.calls(MODEL)), what="a call")
            assert service.redis.zcard(keys.waiting(MODEL)) == 1
        finally:
            for process in asking:
                process.resume()
        assert (answer.result().got, answer.result().end) == (text, "stop")


def test_a_cancelled_answer_frees_the_engine(service: Service) -> None:
    """The job behind a long one that is cancelled begins before that could have ended by itself."""
    text = words("long", 320)
    assert 9 * SPEED < len(text.encode()) < 4000  # with its prompt it fits into the context
    with ThreadPoolExecutor() as pool:
        others: list[Future[Answer]] = []
        answer = streaming(
            service.url,
            text,
            leaves_at=MOMENT,
            at=MOMENT // 2,
            then=lambda _: others.append(pool.submit(whole, service.url, words("behind", 8))),
        )
        assert (answer.end, others[0].result().end) == ("left", "stop")
    begun, behind = (
        int(service.redis.hget(keys.job(job), "started"))  # type: ignore[arg-type]
        for job in (answer.job, others[0].result().job)
    )
    assert behind - begun < 1000 * len(text.encode()) / SPEED
