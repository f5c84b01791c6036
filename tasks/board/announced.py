"""The models folder of a board as it was last read, and what of it was announced."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import redis

from npu.catalog import Catalog, find_models
from npu.engines import Setup
from npu.errors import ModelRefused
from tasks import roster
from tasks.card import Card
from tasks.prompting.cards import card_of
from tasks.prompting.failures import without_folders

log = logging.getLogger("rockchipllama.board")

LOOK = 10.0
"""Seconds between two looks into the models folder."""
MOST_REFUSED, LONGEST_REFUSAL = 50, 500
"""Names of files that cannot be used, and characters of the reason, that a breath takes along."""


class Announced:
    """`look` is called by one thread; the rest is for any."""

    def __init__(
        self,
        client: redis.Redis,
        board: str,
        folder: Path,
        setup: Setup,
        notes: Callable[[str], Iterable[str]],
        gone: Callable[[str], None],
    ) -> None:
        """`notes` tells what there is to say of a model beside what its files do; `gone` hears of one that has gone."""
        self._client = client
        self._board = board
        self._folder = folder
        self._setup = setup
        self._notes = notes
        self._gone = gone
        self.catalog = Catalog(())
        self.ids: set[str] = set()
        """Those that were announced."""
        self.chats: set[str] = set()
        """Those of them that can chat."""
        self.refused: dict[str, str] = {}
        """Names of models whose files cannot be used, and why."""
        self.unusable: dict[str, tuple[str, ...]] = {}
        """The other names of each of them, by its id."""
        self._problems: set[str] = set()
        self._looked = threading.Condition()
        self._looks_asked = self._looks_done = 0

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a look."""
        return self._looks_asked > self._looks_done

    def look_again(self) -> None:
        """Have the models folder read now. Returns once what is there was announced, or soon when that cannot be done."""
        with self._looked:
            self._looks_asked += 1
            mine = self._looks_asked
            self._looked.wait_for(lambda: self._looks_done >= mine, timeout=LOOK)

    def look(self) -> bool:
        """Read the models folder, and announce what is there; False when it cannot be read. Raises what the client raises."""
        asked = self._looks_asked
        try:
            return self._announce()
        finally:
            with self._looked:
                self._looks_done = asked
                self._looked.notify_all()

    def _announce(self) -> bool:
        problems: list[str] = []
        found = self._read_models(problems)
        for problem in problems:
            if problem not in self._problems:
                log.warning("%s", problem)
        self._problems = set(problems)
        if found is None:
            return False
        for card in found.values():
            if card is not None:
                roster.announce(self._client, card)
        announced = set(found)
        for model_id in sorted(announced - self.ids):
            log.info("found the model %s", model_id)
        for model_id in sorted(self.ids - announced):
            log.info("the model %s is gone", model_id)
            self._gone(model_id)
        self.ids = announced
        self.chats = {card.id for card in found.values() if card is not None and card.chats}
        roster.withdraw(self._client, self._board, announced)
        return True

    def _read_models(self, problems: list[str]) -> dict[str, Card | None] | None:
        """The card of each model here, None for one that is known and cannot be read now. None when nothing can be read.

        Adds what is wrong to `problems`. A disk that fails is no outage of Redis, though both are `OSError`s; models on
        it stay announced, for a worker may hold them in memory.
        """
        folder = self._folder
        try:
            self.catalog = find_models(folder)
        except OSError as error:
            problems.append(f"The models folder {folder} cannot be read ({error}). What was found there before stays.")
            return None
        problems += [*self.catalog.problems, *self.catalog.clashes]
        found: dict[str, Card | None] = {}
        refused, unusable = dict(self.catalog.refused), dict(self.catalog.unusable)
        for model in self.catalog.models:
            try:
                card = card_of(model, self._board, self._setup)
            except ModelRefused as error:
                # A file that is still being copied is no problem yet; one from the future is not, on a board in 1970.
                if abs(time.time() - model.created) > LOOK:
                    problems.append(str(error))
                    names = dict.fromkeys(map(str.lower, model.names))
                    unusable[model.id] = tuple(name for name in names if name != model.id)
                    refused |= dict.fromkeys((model.id, *unusable[model.id]), str(error))
                continue
            except OSError as error:
                problems.append(f"The model {model.id} in {model.folder} cannot be read ({error}).")
                if model.id in self.ids:
                    found[model.id] = None
                continue
            found[model.id] = msgspec.structs.replace(card, notes=(*card.notes, *self._notes(model.id)))
        shown = tuple(refused.items())[:MOST_REFUSED]
        self.refused = {name: without_folders(why)[:LONGEST_REFUSAL] for name, why in shown}
        self.unusable = {name: names for name, names in unusable.items() if name in self.refused}
        return found
