"""The writer of a job's events: what shares an append, and what an outage of Redis costs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import redis

from tasks import keys, stream
from tasks.connection import UNREACHABLE
from tasks.events import (
    ChoiceEnded,
    Event,
    Failed,
    FailureCode,
    Finished,
    FinishReason,
    Numbered,
    TextDelta,
    Timings,
    Usage,
    decode_events,
    encode_events,
    fold,
    number,
)
from tasks.jobs import JobState, new_job_id
from tasks.stream import ClaimLost, EventWriter, RecordedPiece
from tests.record import read_pieces
from tests.stack import LIMIT, Stack, eventually

DONE = Finished(FinishReason.STOP, Usage(3, 2), Timings())

CLAIM = "1-7"


class Job:
    """One claimed job in a Redis, and what its record says."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.id = new_job_id()
        client.hset(keys.job(self.id), mapping={"state": "running", "claim": CLAIM, "ttl": 60_000, "model": "echo"})
        client.xadd(keys.events(self.id), {"e": encode_events([])}, id="2-0")

    def writer(self, *, patience: float = 60, on_cancel: Callable[[], None] = lambda: None) -> EventWriter:
        return EventWriter(self.client, self.id, "echo", CLAIM, 2, on_cancel, patience=patience)

    def appends(self) -> list[list[Event]]:
        """The events of each append but the one that stood for acceptance and claim."""
        return [list(decode_events(fields[b"e"])) for _, fields in self.client.xrange(keys.events(self.id))[1:]]

    def numbered(self) -> list[Numbered]:
        return [
            item
            for entry, fields in self.client.xrange(keys.events(self.id))[1:]
            for item in number(int(entry.split(b"-")[0]), decode_events(fields[b"e"]))
        ]

    def text(self, choice: int = 0) -> str:
        return fold(item.event for item in self.numbered()).choices[choice].text


@pytest.fixture
def job(client: redis.Redis) -> Job:
    return Job(client)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever follows an append shares the next one, however slow this machine is, and nothing is sent by itself."""
    monkeypatch.setattr(stream, "COALESCE", 1000.0)
    monkeypatch.setattr(stream, "LATE", 1000.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing shares an append by its own haste, but what was held back is soon sent by itself."""
    monkeypatch.setattr(stream, "COALESCE", 1000.0)
    monkeypatch.setattr(stream, "LATE", 0.02)


def say(writer: EventWriter, text: str, choice: int = 0) -> None:
    writer.write((TextDelta(text, choice),), RecordedPiece(choice, ord(text[0]), text.encode()))


def never_appended(writer: EventWriter) -> None:
    """The last append was long ago, on any clock."""
    writer._last_append = float("-inf")


def test_the_first_goes_at_once(job: Job, patient: None) -> None:
    """Nobody waits for a first token longer than they must."""
    with job.writer() as writer:
        never_appended(writer)
        say(writer, "a")
        assert job.appends() == [[TextDelta("a")]]


def test_what_follows_soon_shares_an_append(job: Job, patient: None) -> None:
    """With its pieces; neighbouring deltas of one choice become one, others keep their order."""
    with job.writer() as writer:
        never_appended(writer)
        for text in "abc":
            say(writer, text)
        writer.write((ChoiceEnded(0, FinishReason.STOP),))
        say(writer, "d", 1)
        say(writer, "e", 1)
        assert len(job.appends()) == 1
        never_appended(writer)
        say(writer, "f", 1)
        assert job.appends()[1:] == [[TextDelta("bc"), ChoiceEnded(0, FinishReason.STOP), TextDelta("def", 1)]]
        assert [piece.data for piece in read_pieces(job.client, job.id)] == [b"a", b"b", b"c", b"d", b"e", b"f"]
        assert writer.seq == job.numbered()[-1].seq == 6


def test_what_comes_later_has_an_append_of_its_own(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a board's pace every token travels alone."""
    monkeypatch.setattr(stream, "COALESCE", 0.0)
    with job.writer() as writer:
        for text in "abc":
            say(writer, text)
        assert job.appends() == [[TextDelta("a")], [TextDelta("b")], [TextDelta("c")]]


def test_a_lone_late_piece_is_sent_by_itself(job: Job, hasty: None) -> None:
    """Though no other ever carries it along; and again after that."""
    with job.writer() as writer:
        never_appended(writer)
        say(writer, "a")
        for expected in ("ab", "abc"):
            say(writer, expected[-1])
            eventually(lambda expected=expected: job.text() == expected, what="a late append")


def test_the_end_takes_everything_along(job: Job, patient: None) -> None:
    """What was held back and the last event are one step: no reader can see one without the other."""
    with job.writer() as writer:
        never_appended(writer)
        say(writer, "a")
        say(writer, "b")
        writer.note(extra="x")
        writer.end(DONE)
    assert job.appends()[1:] == [[TextDelta("b"), DONE]]
    assert job.client.hget(keys.job(job.id), "state") == JobState.FINISHED.value.encode()
    assert job.client.pttl(keys.events(job.id)) > 0


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (DONE, JobState.FINISHED),
        (Finished(FinishReason.LENGTH, Usage(1, 1), Timings()), JobState.FINISHED),
        (Finished(FinishReason.CANCELLED, Usage(1, 1), Timings()), JobState.CANCELLED),
        (Failed(FailureCode.ENGINE_FAILED, "x"), JobState.FAILED),
    ],
    ids=["stop", "length", "cancelled", "failed"],
)
def test_the_last_event_is_the_state(job: Job, event: Finished | Failed, state: JobState) -> None:
    """Derived where it is written."""
    with job.writer() as writer:
        writer.end(event)
    assert job.client.hget(keys.job(job.id), "state") == state.value.encode()


def test_nothing_can_be_written_after_the_end(job: Job) -> None:
    """By no method; closing stays possible, twice."""
    with job.writer() as writer:
        writer.end(DONE)
        for attempt in (lambda: say(writer, "x"), lambda: writer.end(DONE), lambda: writer.note(a="1")):
            with pytest.raises(ClaimLost):
                attempt()
    writer.close()
    assert job.appends() == [[DONE]]


def test_a_piece_that_shows_nothing_travels_with_the_next_that_does(job: Job) -> None:
    """Alone it is nothing to tell anybody."""
    with job.writer() as writer:
        writer.write((), RecordedPiece(0, 1, b""))
        assert job.appends() == []
        writer.write((TextDelta("a"),), RecordedPiece(0, 2, b"a"))
        eventually(lambda: job.text() == "a", what="the append")
    assert [piece.token for piece in read_pieces(job.client, job.id)] == [1, 2]


def test_the_first_text_is_noted_in_the_record(job: Job, patient: None) -> None:
    """From then on the job cannot silently start again; fields noted before travel along, with their colons."""
    with job.writer() as writer:
        never_appended(writer)
        writer.note(**{"prompt:0": b"\1\0\0\0"})
        assert job.client.hmget(keys.job(job.id), "sent", "prompt:0") == [None, None]
        say(writer, "a")
        record = job.client.hmget(keys.job(job.id), "sent", "phase", "prompt:0")
        assert record == [b"1", b"decode", b"\1\0\0\0"]


def test_a_cancellation_is_learned_from_a_late_append_too(job: Job, hasty: None) -> None:
    """By the thread that sends what was held back."""
    told = threading.Event()
    with job.writer(on_cancel=told.set) as writer:
        never_appended(writer)
        say(writer, "a")
        job.client.hset(keys.job(job.id), "cancel", "client left")
        say(writer, "b")
        assert told.wait(LIMIT)


def test_a_claim_lost_meanwhile_is_learned_with_the_next_call(job: Job, hasty: None) -> None:
    """Though it was the late append that found out."""
    with job.writer() as writer:
        never_appended(writer)
        say(writer, "a")
        job.client.hset(keys.job(job.id), "claim", "2-8")
        say(writer, "b")
        eventually(lambda: writer.failure is not None, what="the refusal")
        with pytest.raises(ClaimLost):
            say(writer, "c")
        with pytest.raises(ClaimLost):
            writer.end(DONE)
    assert job.text() == "a"


def test_several_threads(job: Job) -> None:
    """Each thread's words arrive whole and in its own order, every piece once, numbers without a gap."""
    count, size = 4, 150
    with job.writer() as writer:

        def work(choice: int) -> None:
            for index in range(size):
                writer.write((TextDelta(f"{index},", choice),), RecordedPiece(choice, index, b"x"))

        threads = [threading.Thread(target=work, args=(choice,)) for choice in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        writer.end(DONE)
    for choice in range(count):
        assert job.text(choice) == "".join(f"{index}," for index in range(size))
        tokens = [piece.token for piece in read_pieces(job.client, job.id) if piece.choice == choice]
        assert tokens == list(range(size))
    assert [item.seq for item in job.numbered()] == list(range(3, writer.seq + 1))


def test_closing_while_others_write(job: Job) -> None:
    """Whoever writes on is told; no thread is left behind."""
    writer = job.writer()
    begun, told = threading.Event(), threading.Event()

    def work() -> None:
        try:
            while True:
                say(writer, "x")
                begun.set()
        except ClaimLost:
            told.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(LIMIT)
    writer.close()
    assert told.wait(LIMIT)
    thread.join(LIMIT)
    if writer._flusher is not None:
        eventually(lambda: not writer._flusher.is_alive(), what="the end of the late sender")  # type: ignore[union-attr]


@pytest.mark.parametrize("held_back", [False, True], ids=["at once", "late"])
def test_an_outage_shorter_than_its_patience_loses_nothing(
    shaky: Stack, monkeypatch: pytest.MonkeyPatch, held_back: bool
) -> None:
    """The writer waits, begins anew with a Redis that has forgotten the script, and goes on; nothing comes twice."""
    monkeypatch.setattr(stream, "COALESCE", 1000.0 if held_back else 0.0)
    job = Job(shaky.redis)
    with job.writer() as writer:
        never_appended(writer)
        say(writer, "a")
        shaky.stop_valkey()

        def work() -> None:
            for text in "bcdef":
                say(writer, text)
            writer.end(DONE)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        shaky.start_valkey()
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert job.text() == "abcdef"
    assert [piece.data for piece in read_pieces(job.client, job.id)] == [bytes((byte,)) for byte in b"abcdef"]
    numbers = [item.seq for item in job.numbered()]
    assert numbers == list(range(3, 3 + len(numbers)))
    assert job.client.hget(keys.job(job.id), "state") == b"finished"


def test_a_longer_outage_is_an_error_that_stays(shaky: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """This call raises and all later ones do, also once Redis is back: what was missed must not become a gap."""
    monkeypatch.setattr(stream, "COALESCE", 0.0)
    job = Job(shaky.redis)
    with job.writer(patience=0.3) as writer:
        say(writer, "a")
        shaky.stop_valkey()
        with pytest.raises(UNREACHABLE):
            say(writer, "b")
        shaky.start_valkey()
        for attempt in (lambda: say(writer, "c"), lambda: writer.end(DONE), lambda: writer.note(a="1")):
            with pytest.raises(UNREACHABLE):
                attempt()
    assert job.text() == "a"
    assert job.client.hget(keys.job(job.id), "state") == b"running"


@pytest.mark.parametrize("way", ["hurry", "close"])
def test_a_writer_in_a_hurry_waits_no_longer(shaky: Stack, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Though Redis is away and its patience long, whoever ends the run gets the thread that writes back at once."""
    monkeypatch.setattr(stream, "COALESCE", 0.0)
    job = Job(shaky.redis)
    writer = job.writer(patience=10**6)
    say(writer, "a")
    assert not writer.waits
    shaky.stop_valkey()
    failed = threading.Event()

    def work() -> None:
        with pytest.raises(UNREACHABLE):
            say(writer, "b")
        failed.set()

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: writer.waits, what="a writer that waits for Redis")
    getattr(writer, way)()
    assert failed.wait(LIMIT)
    assert not writer.waits
    thread.join(LIMIT)
    writer.close()


def test_an_outage_that_only_the_late_sender_meets(shaky: Stack, hasty: None) -> None:
    """Its error is the writer's next call's."""
    job = Job(shaky.redis)
    with job.writer(patience=0.2) as writer:
        never_appended(writer)
        say(writer, "a")
        shaky.stop_valkey()
        say(writer, "b")
        eventually(lambda: writer.failure is not None, what="the failure")
        with pytest.raises(UNREACHABLE):
            say(writer, "c")


def test_a_writer_that_is_closed_leaves_no_thread(job: Job, hasty: None) -> None:
    """Even when its flusher wakes in the very moment of the end: it waits for the lock, and finds the writer closed."""
    writer = job.writer()
    never_appended(writer)
    writer.write([TextDelta("a")])
    writer.write([TextDelta("b")])  # within the time to share an append, so the flusher is to bring it
    flusher = writer._flusher
    assert flusher is not None
    with writer._lock:
        # Past its pause, it waits for the lock; what `close` does comes first.
        eventually(lambda: not writer._leaving.is_set() and flusher.is_alive(), what="the flusher")
        threading.Event().wait(3 * stream.LATE)
        writer._closed = True
        writer._leaving.set()
        writer._due.set()
    flusher.join(LIMIT)
    assert not flusher.is_alive()
    writer._pool.release(writer._connection)
