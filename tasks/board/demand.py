"""Loads what jobs wait for: because nobody serves it, its model unloaded or its board gone, or because many do."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from typing import cast

import redis

from npu.catalog import Catalog
from npu.errors import ModelRefused, OutOfMemory
from npu.model import Model
from tasks import keys
from tasks.board.room import MakingRoom, NoRoomYet
from tasks.events import encode_events
from tasks.prompting.failures import failure
from tasks.roster import read_roster
from tasks.scripts import FAIL_QUEUED
from tasks.standing import Gate

log = logging.getLogger("rockchipllama.board")

MANY = 4
"""Jobs that wait for each worker of a model, for two looks, before one more board loads it."""


class Demand:
    """Looks for such jobs. `meet` is called every few seconds, by one thread.

    Boards that have the model take turns, one more with each look, so that not all of them load it at once. When the last
    in line cannot load what nobody serves either, the jobs fail with its reason: that is what a new request would be told.
    """

    def __init__(
        self,
        client: redis.Redis,
        board: str,
        catalog: Callable[[], Catalog],
        has_worker: Callable[[str], bool],
        leaving: Callable[[], Collection[str]],
        load: Callable[[Model], None],
        load_in_place: Callable[[Model, float | None], None],
        room_wait: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`leaving` tells the models that are being unloaded on this board. `load_in_place` may unload others for it, which
        `load` never does; it is told for how many seconds jobs have waited for room, or None where another board may have some.
        They wait `room_wait` seconds for others that have something to do."""
        self._client = client
        self._board = board
        self._catalog = catalog
        self._has_worker = has_worker
        self._leaving = leaving
        self._load = load
        self._load_in_place = load_in_place
        self._room_wait = room_wait
        self._clock = clock
        self._waits: dict[str, float] = {}
        """Since when jobs of a model wait for room, by the clock."""
        self.no_room: dict[str, str] = {}
        """What there is to say of that, by the models."""
        self._looks: dict[str, int] = {}
        """How many looks in a row have found jobs of a model that nobody serves, or too few."""
        self._no_room: set[str] = set()
        """Models that could not be loaded when the last look wanted to help with them."""

    def meet(self) -> None:
        """Load what is wanted. Raises what the client raises."""
        snapshot = read_roster(self._client)
        wanted = {
            status.card.id: status
            for status in snapshot.models
            if self._board in status.boards
            and status.gate is not Gate.PAUSED
            and status.waiting > MANY * sum(worker.model == status.card.id for worker in snapshot.workers)
        }
        self._looks = {model: self._looks.get(model, 0) + 1 for model in wanted}
        self._no_room &= wanted.keys()
        self._waits = {model: since for model, since in self._waits.items() if model in wanted}
        self.no_room = {model: why for model, why in self.no_room.items() if model in wanted}
        # Who waits for room since longest is first, or another would take it.
        for model_id, status in sorted(wanted.items(), key=lambda item: self._waits.get(item[0], math.inf)):
            place = status.boards.index(self._board) + status.served
            if self._looks[model_id] <= place or self._has_worker(model_id):
                continue
            model = self._catalog().find(model_id)
            if model is not None and status.served:
                self._help(model)
            elif model is not None:
                self._serve(model, status.boards)

    def _help(self, model: Model) -> None:
        """Load it beside others that serve it; where that cannot be, they go on alone."""
        try:
            self._load(model)
            log.info("many jobs wait for %s: it is loaded here as well", model.id)
        except (ModelRefused, OSError) as error:
            if model.id not in self._no_room:
                log.info("many jobs wait for %s, but this board cannot load it beside what it has: %s", model.id, error)
            self._no_room.add(model.id)

    def _serve(self, model: Model, boards: tuple[str, ...]) -> None:
        last = boards[-1] == self._board
        leaving = self._leaving()  # before the try: what goes during it has left room for the next
        try:
            since = self._waits.get(model.id, self._clock())
            self._load_in_place(model, self._clock() - since if last else None)
            self._waits.pop(model.id, None)
            self.no_room.pop(model.id, None)
            log.info("jobs wait for %s and nobody serves it: it is loaded", model.id)
        except MakingRoom as soon:
            self.no_room.setdefault(model.id, str(soon))  # the next look comes when there is some
        except NoRoomYet as wait:
            since = self._waits.setdefault(model.id, self._clock())
            self.no_room[model.id] = str(wait)
            if last and self._clock() - since > self._room_wait:
                waited = f"{wait} They had something to do for {self._room_wait:.0f} s, or were just loaded."
                self._refuse(model.id, boards, OutOfMemory(waited))
        except OSError as error:
            self.no_room.pop(model.id, None)  # it keeps nobody else from the room
            log.error("jobs wait for %s, whose files cannot be read: %s", model.id, error)
        except ModelRefused as error:
            log.error("jobs wait for %s, and it cannot be loaded: %s", model.id, error)
            if last and not leaving:  # there may be room once they are gone
                self._refuse(model.id, boards, error)

    def _refuse(self, model: str, boards: tuple[str, ...], error: ModelRefused) -> None:
        now = next((each for each in read_roster(self._client).models if each.card.id == model), None)
        if now is None or now.served or now.boards != boards:
            return  # the try took its time: who has come meanwhile has its chance until the next look
        failed = encode_events([failure(error)])
        for raw in cast("list[bytes]", self._client.zrange(keys.waiting(model), 0, -1)):
            job = raw.decode()
            FAIL_QUEUED.run(self._client, [keys.job(job), keys.events(job), keys.waiting(model)], job, failed, 0)
