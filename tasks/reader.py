"""The reading of one job: its events, each once and in order, whatever its messages and Redis itself do meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import redis.asyncio

from tasks import keys
from tasks.events import TERMINAL, Mark, Numbered, Queued, Started
from tasks.feed import Subscription
from tasks.stream import numbered

CONFIRM = 30.0
"""Seconds Redis may take to confirm a subscription, a reconnection in between included."""
CATCH_UP = 5.0
"""Seconds without an event after which a reader looks into the record: the bell may have been lost."""

LATE = 1.0
"""Seconds that messages of a record that is gone may still be on their way, to a process that was held up."""

BELL = b"0:"
"""What the channel says when the job changed without an event."""


_NOTHING = Mark(0, 0)


class Forgotten(Exception):
    """Raised when Redis came back with a record that is not what was read, and nobody is left who could put it right."""


class Reader:
    """Reads one job, for as long as it likes: it knows how far it is, so `follow` may be begun again after an outage."""

    def __init__(
        self, client: redis.asyncio.Redis, subscription: Subscription, job: str, read: Mark | None = None
    ) -> None:
        """`read` is how far its client had come in an earlier reading, if that is known."""
        self._client = client
        self._subscription = subscription
        self._job = job
        self._seen = 0
        """Number of the last event that was handed on."""
        self._mark = read or _NOTHING
        """The furthest that was read. It names the claim as well, which wrote every entry before it or found it there: so
        whoever finds it in the record knows all of it."""
        self._said = read is not None
        """More was handed on than that the job waits or was begun."""
        self._missed = True
        """There may be more in the record than was handed on and will be heard."""

    def knows(self, item: Numbered) -> None:
        """That is all there was in the record when the subscription was there: the record need not be read to begin with."""
        self._seen, self._mark, self._missed = item.seq, Mark(item.seq, item.attempt), False

    async def follow(self, patience: float = CATCH_UP) -> AsyncIterator[Numbered | None]:
        """The events from where it is, each once and in order, up to the last; None after `patience` seconds of silence, and
        when the job changed without an event.

        Pub/sub may lose a message; a gap is filled from the record, which is also read in each silence, after each loss of the
        connection and, unless all of it is known, at the start. Then it is compared with what was read, for a Redis that died
        may have forgotten its last moment. If it forgot nothing but that the job waited or was begun, that is told anew; if
        the claim that was read is still held, its worker writes again what is missing; else it raises `Forgotten`.
        Raises what the client raises when the record cannot be read, and `Unreadable`.
        """
        async with asyncio.timeout(CONFIRM):
            await asyncio.shield(self._subscription.confirmed)
        ask_record, self._missed, in_doubt = self._missed, True, False
        while True:
            if ask_record:
                ask_record = False
                unread = await self._read()
                in_doubt = unread is None
                for entry_id, payload in unread or ():
                    for item in self._fresh(numbered(entry_id, payload)):
                        yield item
                        if isinstance(item.event, TERMINAL):
                            return
            if not await self._subscription.wait(patience):
                ask_record = True
                yield None
                continue
            for message in self._subscription.take():
                if message is None:
                    ask_record = True
                    break
                if message == BELL:
                    yield None
                    continue
                entry_id, _, payload = message.partition(b":")
                if in_doubt:
                    ask_record = True  # somebody writes: perhaps what is missing
                    break
                items = numbered(entry_id, payload)
                if items[0].seq > self._seen + 1:
                    ask_record = True  # what follows is in the record too
                    break
                for item in self._fresh(items):
                    yield item
                    if isinstance(item.event, TERMINAL):
                        return

    async def _read(self) -> list[tuple[bytes, bytes]] | None:
        """The entries past what was read; None while the record does not hold that, but may again. Raises `Forgotten`."""
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.xrange(keys.events(self._job), min=f"{self._mark.seq}-0", count=1)
            pipe.hmget(keys.job(self._job), "state", "claim")
            pipe.xrange(keys.events(self._job), min=f"{self._seen + 1}-0")
            holding, (state, claim), unread = await pipe.execute()
        if state is None:
            # It may have expired, as all that has ended does when the clock of Redis jumps forwards; what was said is said.
            if await self._subscription.wait(LATE):
                return []
            raise Forgotten("Redis does not know the job any more")
        # Numbers have no holes, so the first entry that does not end before the mark is the one that holds it.
        if self._mark.seq == 0 or (holding and Mark.of(holding[0][0]).attempt == self._mark.attempt):
            return [(entry_id, fields[b"e"]) for entry_id, fields in unread]
        if not self._said:
            self._seen, self._mark = 0, _NOTHING
            return await self._read()
        if state == b"running" and int(claim.rpartition(b"-")[2]) == self._mark.attempt:
            return None
        raise Forgotten("Redis came back without events that were read already")

    def _fresh(self, items: list[Numbered]) -> Iterator[Numbered]:
        """Those events of an entry that were not handed on before."""
        for item in items:
            if item.seq > self._seen:
                self._seen, self._mark = item.seq, Mark(item.seq, item.attempt)
                self._said = self._said or not isinstance(item.event, Queued | Started)
                yield item
