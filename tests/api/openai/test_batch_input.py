"""The input of a batch as it is read from its storage."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.openai.batch_input import read_lines
from api.storage import CHUNK, LocalStorage

LIMIT = 1_000_000

pytestmark = pytest.mark.anyio


class Endless(LocalStorage):
    """A file whose second line has a hundred million bytes, which nobody keeps."""

    async def read(self, name: str, start: int = 0) -> AsyncIterator[bytes]:
        yield b"one\n"
        for _ in range(100_000_000 // CHUNK):
            yield b"x" * CHUNK
        yield b"\nthree"


async def test_a_line_of_any_length_takes_no_more_memory_than_a_request_may(tmp_path: Path) -> None:
    """It is told by its number, and those behind it are read as ever."""
    tracemalloc.start()
    lines = [line async for line in read_lines(Endless(tmp_path), "f", LIMIT)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(line.number, line.data) for line in lines] == [(1, b"one"), (2, None), (3, b"three")]
    assert lines[2].end == lines[1].end + len(b"three")
    assert peak < 3 * LIMIT


async def test_lines_are_read_alike_wherever_the_pieces_of_a_file_end(tmp_path: Path) -> None:
    """And from the beginning of any of them."""
    data = b"\xef\xbb\xbfa\n\n  \r\nbb\r\n\nccc"

    class Pieces(LocalStorage):
        size = 1

        async def read(self, name: str, start: int = 0) -> AsyncIterator[bytes]:
            for at in range(start, len(data), self.size):
                yield data[at : at + self.size]

    storage = Pieces(tmp_path)
    for storage.size in range(1, len(data) + 1):
        lines = [line async for line in read_lines(storage, "f", LIMIT)]
        assert [(line.number, line.data) for line in lines] == [(1, data[:4]), (4, b"bb\r"), (6, b"ccc")]
        for place, line in enumerate(lines):
            again = [each async for each in read_lines(storage, "f", LIMIT, line.start, line.number - 1)]
            assert again == lines[place:]
