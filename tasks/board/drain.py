"""What a board hands over and unloads when it is drained, and loads again when it is resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import redis

from tasks import keys
from tasks.board.workers import Workers
from tasks.connection import UNREACHABLE
from tasks.instances import model_of
from tasks.roster import read_roster

log = logging.getLogger("rockchipllama.board")


class Drain:
    """Whether a board is to serve nothing, as `tasks.boards.drain` asks for."""

    def __init__(
        self,
        client: redis.Redis,
        board: str,
        workers: Workers,
        asked: Callable[[], Mapping[str, float]],
        dismiss: Callable[[str], None],
        load_again: Callable[[Mapping[str, float | None]], None],
    ) -> None:
        """`asked` tells how many seconds models were asked to stay; `dismiss` has the worker of a model stopped, without waiting
        for that; `load_again` is told what was loaded before, and what was asked of it."""
        self._client = client
        self._board = board
        self._workers = workers
        self._asked = asked
        self._dismiss = dismiss
        self._load_again = load_again
        self.on = False
        self._before: dict[str, float | None] = {}
        self._resuming = False
        """Redis went away while that was loaded again: the next look goes on with it."""

    def is_asked(self) -> bool:
        """Whether the board is to serve nothing, which `look` may not have seen yet. Raises what the client raises."""
        return bool(self._client.hexists(keys.DRAINED, self._board))

    def look(self) -> None:
        """See what was asked for, and do it; a worker that has come meanwhile, as one that is taken over, goes as well."""
        was, self.on = self.on, self.is_asked()
        if self.on != was:
            log.info("board %s %s", self._board, "is drained, and serves nothing" if self.on else "serves again")
        if not self.on:
            if was or self._resuming:
                self._resume()
        elif living := set(map(model_of, self._workers.living())):
            asked = self._asked()
            self._before = {model_id: asked.get(model_id) for model_id in living} | self._before
            self.hand_over(at_once=False)
            for model_id in living:
                self._dismiss(model_id)

    def _resume(self) -> None:
        before, self._before, self._resuming = self._before, {}, False
        try:
            self._load_again(before)
        except UNREACHABLE:
            self._before, self._resuming = before, True
            raise

    def hand_over(self, *, at_once: bool) -> None:
        """Have workers give up their jobs where another board has the model and goes on with them; unless it is to be done at
        once, when that has read them."""
        elsewhere = {status.card.id for status in read_roster(self._client).models if {*status.boards} - {self._board}}
        word = "hand-over" if at_once else "move"
        for name in self._workers.living():
            if model_of(name) in elsewhere:
                self._client.publish(keys.control(f"{name}@{self._board}"), word)
