"""Which board is asked about texts, and what becomes of one that cannot answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from api.errors import HttpProblem
from api.texts import Texts
from tasks.card import Card
from tasks.commands import BUSY, Command, Count, Load
from tasks.errors import CommandFailed, ModelDown
from tasks.events import FailureCode
from tasks.requests import ChatRequest, Message
from tasks.roster import ModelStatus

pytestmark = pytest.mark.anyio

REQUEST = ChatRequest((Message("user", "Hi"),))


class Boards:
    """Boards that have a model, and what each says when it is asked, in order."""

    def __init__(self, **answers: list[object]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Command]] = []
        parts: Any = SimpleNamespace(find=self._find, ask=self._ask)
        self.texts = Texts(parts, parts)

    async def _find(self, name: str | None) -> ModelStatus:
        return ModelStatus(
            card=Card(id="m", board="one"),
            served=True,
            loaded=False,
            loading=False,
            waiting=0,
            boards=tuple(self.answers),
        )

    async def _ask(self, board: str, command: Command, seconds: float) -> msgspec.Raw:
        self.asked.append((board, command))
        answer = self.answers[board].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return msgspec.Raw(msgspec.json.encode(answer))

    async def count(self) -> int:
        _, tokens = await self.texts.ask(None, lambda model: Count(model, REQUEST), int)
        return tokens


async def test_the_next_board_answers_for_one_that_is_away() -> None:
    """The command names the model by its id."""
    boards = Boards(one=[CommandFailed("board_away", "one is away")], two=[12])
    assert await boards.count() == 12
    assert boards.asked == [("one", Count("m", REQUEST)), ("two", Count("m", REQUEST))]


@pytest.mark.parametrize("answers", [{}, {"one": [CommandFailed("timeout", "no answer within 35 s.")]}])
async def test_where_no_board_answers_the_model_is_down(answers: dict[str, list[object]]) -> None:
    """Which is a 503 with the reason."""
    with pytest.raises(ModelDown, match=r"no board|no answer"):
        await Boards(**answers).count()


@pytest.mark.parametrize(
    ("code", "status"),
    [(FailureCode.BAD_PROMPT, 400), (FailureCode.CONTEXT_TOO_LONG, 400), (FailureCode.INTERNAL, 500), (BUSY, 503)],
)
async def test_a_boards_own_no_is_told(code: str, status: int) -> None:
    """Another board would say the same, so none is asked."""
    boards = Boards(one=[CommandFailed(code, "no")], two=[12])
    with pytest.raises(HttpProblem) as refused:
        await boards.count()
    assert (refused.value.problem.status, refused.value.problem.message) == (status, "no")
    assert len(boards.asked) == 1


async def test_a_model_is_loaded_whose_tokenizer_comes_with_it() -> None:
    """Once, and the board is asked until it is there."""
    absent = CommandFailed(FailureCode.ENGINE_FAILED, "not loaded")
    boards = Boards(one=[absent, None, absent, 12])
    assert await boards.count() == 12
    assert [type(command) for _, command in boards.asked] == [Count, Load, Count, Count]


async def test_a_model_that_cannot_be_loaded_is_down() -> None:
    """With the board's own words."""
    absent = CommandFailed(FailureCode.ENGINE_FAILED, "not loaded")
    with pytest.raises(ModelDown, match="needs 900 MiB"):
        await Boards(one=[absent, CommandFailed(FailureCode.MODEL_UNAVAILABLE, "needs 900 MiB")]).count()
