"""Engines named for their misbehaviour, over the vocabulary of the echo."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from npu.engine import End, Piece, Prompt, Sampling, Stats
from npu.engines.echo import CONTEXT_LENGTH, EchoTokenizer
from npu.errors import EngineFailed, PromptRefused

TEXT = "One two three, ünd 😀 four."

Script = Callable[[threading.Event], Iterator[bytes]]
"""What a run says, piece by piece; the event is set when it was aborted."""


class ScriptedEngine:
    """Says what its script says. Counts its runs, and how often it was closed."""

    context_length = CONTEXT_LENGTH
    version = "scripted 1"

    def __init__(self, script: Script) -> None:
        self.tokenizer = EchoTokenizer()
        self.prompts: list[Prompt] = []
        self.closed = 0
        self._script = script

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> ScriptedGeneration:
        """Prepare one run of the script."""
        self.prompts.append(prompt)
        return ScriptedGeneration(prompt, self._script)

    def close(self) -> None:
        """Twice is safe."""
        self.closed += 1


class ScriptedGeneration:
    """One run of a script; a piece's token is its first byte, or 32 when it is empty."""

    def __init__(self, prompt: Prompt, script: Script) -> None:
        self._prompt = prompt
        self._script = script
        self._aborted = threading.Event()
        self._said = 0
        self._end: End | None = None

    def __iter__(self) -> Iterator[Piece]:
        end = End.ABORTED if self._aborted.is_set() else End.EOS
        if end is End.EOS:
            for data in self._script(self._aborted):
                if self._aborted.is_set():
                    end = End.ABORTED
                    break
                self._said += 1
                yield Piece(data[0] if data else 32, data)
                if self._said == self._prompt.max_tokens:
                    end = End.LENGTH
                    break
        self._end = end

    def abort(self) -> None:
        """Ends the run at its next piece."""
        self._aborted.set()

    @property
    def end(self) -> End:
        """Why it ended. Raises `RuntimeError` before that."""
        if self._end is None:
            raise RuntimeError("the generation has not ended")
        return self._end

    @property
    def stats(self) -> Stats:
        """Fixed times, so that what is computed from them can be compared."""
        return Stats(len(self._prompt.tokens), 0, 1.0, self._said, 2.0)


def pieces_of(text: str, *, size: int = 3) -> Iterator[bytes]:
    """The bytes of `text` in pieces of `size`, which cuts characters apart."""
    data = text.encode()
    yield from (data[start : start + size] for start in range(0, len(data), size))


def says(text: str, *, size: int = 3) -> ScriptedEngine:
    """Says `text`, and ends."""
    return ScriptedEngine(lambda _: pieces_of(text, size=size))


def says_nothing() -> ScriptedEngine:
    """Ends before its first token."""
    return ScriptedEngine(lambda _: iter(()))


def says_empty_pieces() -> ScriptedEngine:
    """Most of its tokens add nothing to the text."""
    return ScriptedEngine(lambda _: iter((b"", b"a", b"", b"", b"b", b"")))


def says_broken_utf8() -> ScriptedEngine:
    """Says bytes that are no UTF-8 anywhere."""
    return ScriptedEngine(lambda _: iter((b"a", b"\xff", b"b", b"\xf0\x9f")))


def raises_midway() -> ScriptedEngine:
    """Breaks after two pieces."""

    def script(_: threading.Event) -> Iterator[bytes]:
        yield b"On"
        yield b"e "
        raise EngineFailed("The engine broke on purpose.")

    return ScriptedEngine(script)


def raises_at_once() -> ScriptedEngine:
    """Breaks before its first piece."""

    def script(_: threading.Event) -> Iterator[bytes]:
        raise EngineFailed("The engine broke on purpose.")
        yield b""

    return ScriptedEngine(script)


def refuses_the_prompt() -> ScriptedEngine:
    """Refuses the prompt when it begins to run."""

    def script(_: threading.Event) -> Iterator[bytes]:
        raise PromptRefused("The engine refused the prompt on purpose.")
        yield b""

    return ScriptedEngine(script)


def hangs_until_aborted() -> ScriptedEngine:
    """Says one piece, and then nothing until it is aborted."""

    def script(aborted: threading.Event) -> Iterator[bytes]:
        yield b"On"
        aborted.wait()

    return ScriptedEngine(script)


def hears_late(text: str) -> ScriptedEngine:
    """Says all of its text, one byte at a time, however early it is aborted."""

    class HearsLate(ScriptedGeneration):
        def abort(self) -> None:
            """Too late for this run."""

    class Engine(ScriptedEngine):
        def generate(
            self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
        ) -> ScriptedGeneration:
            return HearsLate(prompt, self._script)

    return Engine(lambda _: pieces_of(text, size=1))


def never_ends() -> ScriptedEngine:
    """Goes on to the limit."""

    def script(_: threading.Event) -> Iterator[bytes]:
        while True:
            yield b"more "

    return ScriptedEngine(script)
