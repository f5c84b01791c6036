"""Knows beforehand what a simulated model says to a request, from its folder alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from npu.manifest import read_manifest
from npu.simulator import Adapter, Language, SimulatedModel
from npu.template_search import find_template
from npu.tokenizer_file import open_tokenizer_file
from tasks.prompting.prepare import PreparedQuestions, Preparer
from tasks.requests import Message, RerankRequest


class Oracle:
    """For the model in `folder`, which was written from `simulated`."""

    def __init__(self, folder: Path, simulated: SimulatedModel) -> None:
        model = read_manifest(folder / "manifest.toml")
        tokenizer = open_tokenizer_file(folder)
        assert tokenizer is not None
        self.tokenizer = tokenizer
        self.language: Language = simulated.language()
        self._width = simulated.hidden_size
        self._preparer = Preparer(model, tokenizer, find_template(model, None), simulated.max_context_limit)

    def ask(
        self, *turns: str, most: int = 4000, adapter: Adapter | None = None, **template_options: object
    ) -> tuple[str, int, int]:
        """The answer to the last turn, and how many tokens prompt and answer have. Turns begin with the user's."""
        messages = [Message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(turns)]
        prompt = self.tokenizer.encode(self._preparer.render(messages, template_options))
        answer = self.language.expected_answer(prompt, most, adapter)
        return self.tokenizer.decode(answer).decode("utf-8", "replace"), len(prompt), len(answer)

    def vector(self, text: str) -> tuple[list[float], int]:
        """The embedding of a text, and how many tokens it has."""
        tokens = self.tokenizer.encode(text, add_special=True)
        row = self.language.hidden(tokens, self._width)[-1]
        length = math.hypot(*row)
        return [number / length for number in row], len(tokens)

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """How well each document answers the query."""
        questions = self._preparer.prepare(RerankRequest(query, tuple(documents)))
        assert isinstance(questions, PreparedQuestions)
        rows = [self.language.logits(tokens, len(self.language.tokens)) for tokens in questions.inputs]
        return [1 / (1 + math.exp(row[questions.no] - row[questions.yes])) for row in rows]
