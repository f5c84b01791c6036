"""A thought at the beginning of an answer, told from the answer."""

from __future__ import annotations

from enum import Enum, auto

from npu.answer_format import ThinkingFormat
from tasks.worker.parsing.text import overlap


class Stage(Enum):
    """How far an answer is."""

    BEFORE = auto()
    """It may begin with a thought still."""
    THINKING = auto()
    ANSWERING = auto()


class Thoughts:
    """Tells thought from answer, fed piece by piece.

    A thought stands at the beginning, or nowhere: the same marks later on are text. Blanks around it belong to neither. One
    that does not end is a thought to the end.
    """

    def __init__(self, form: ThinkingFormat, begun: bool) -> None:
        """`begun` says that the prompt ends inside a thought."""
        self.stage = Stage.THINKING if begun else Stage.BEFORE
        self.thought = begun
        """There was the beginning of a thought."""
        self._form = form
        self._held = ""
        self._blank = True
        """Nothing but blanks was there since the last mark."""

    def feed(self, text: str) -> tuple[str, str]:
        """What is certain after `text`: of the thought, and of the answer."""
        if self.stage is Stage.ANSWERING and not self._blank:
            return "", text
        self._held += text
        thought = ""
        if self.stage is Stage.BEFORE:
            self._open()
        if self.stage is Stage.THINKING:
            thought = self._think()
        if self.stage is Stage.ANSWERING:
            return thought, self._answer()
        return thought, ""

    def finish(self) -> tuple[str, str]:
        """What was held back, now that nothing follows: of the thought, and of the answer."""
        held, self._held = self._held, ""
        if self.stage is Stage.THINKING:
            return held.rstrip(), ""
        return "", held if self.stage is Stage.BEFORE else ""

    def _open(self) -> None:
        opening = self._form.opening
        begin = self._held.lstrip()
        if begin.startswith(opening):
            self.stage, self._held = Stage.THINKING, begin[len(opening) :]
            self.thought = True
        elif not opening.startswith(begin):
            self.stage, self._blank = Stage.ANSWERING, False

    def _think(self) -> str:
        if self._blank:
            self._held = self._held.lstrip()
        at = self._held.find(self._form.closing)
        if at >= 0:
            thought = self._held[:at].rstrip()
            self.stage, self._held = Stage.ANSWERING, self._held[at + len(self._form.closing) :]
            self._blank = True
            return thought
        sure = self._held[: len(self._held) - overlap(self._held, self._form.closing)].rstrip()
        if sure:
            self._blank = False
        self._held = self._held[len(sure) :]
        return sure

    def _answer(self) -> str:
        text, self._held = self._held, ""
        if self._blank:
            text = text.lstrip()
            self._blank = not text
        return text
