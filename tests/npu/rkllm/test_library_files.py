"""What is no library for this machine is told from its bytes, and no bytes bring the reader down."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from npu.errors import RuntimeRefused
from npu.rkllm.abi import v1_3_0
from npu.rkllm.elf import Unreadable, _Image, read_library, this_machine
from npu.rkllm.evidence import MAX_BYTES, functions_of
from npu.rkllm.library import identify
from tests.npu.rkllm.libraries import compiled, library, source
from tests.npu.rkllm.tables import CC

needs_compiler = pytest.mark.skipif(CC is None, reason="no C compiler")
HERE = this_machine()
X86_64, AARCH64 = 62, 183
OTHER = AARCH64 if HERE.machine == X86_64 else X86_64


def header(machine: int, bits: int, kind: int = 3) -> bytes:
    """An ELF header alone, written by hand."""
    start = b"\x7fELF" + bytes((2 if bits == 64 else 1, 1, 1)) + bytes(9)
    layout = "<HHIQQQIHHHHHH" if bits == 64 else "<HHIIIIIHHHHHH"
    size = 64 if bits == 64 else 52
    return start + struct.pack(layout, kind, machine, 1, 0, size, 0, 0, size, 56, 0, 64, 0, 0)


def refusal(path: Path) -> str:
    with pytest.raises(RuntimeRefused) as refused:
        identify(path, seconds=60)
    text = str(refused.value)
    assert str(path) in text and "Traceback" not in text and "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"just words\n", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 6901528\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><title>Not Found</title>", "a web page"),
        (b'<?xml version="1.0"?><html>', "a web page"),
        (b"PK\x03\x04rest", "an archive"),
        (b"\x1f\x8b\x08rest", "an archive"),
        (bytes(range(200)), "no library for Linux"),
        (b"\x7fELF", "cut off after 4 bytes"),
        (header(HERE.machine, HERE.bits)[:40], "cut off after 40 bytes"),
        (header(HERE.machine, HERE.bits, kind=1), "a program or a part of one"),
        (header(HERE.machine, HERE.bits), "damaged inside"),
        (b"\x7fELF" + bytes((2, 2, 1)) + bytes(57), "not made for any machine"),
        (b"\x7fELF" + bytes((9, 1, 1)) + bytes(57), "not made for any machine"),
    ],
)
def test_what_it_is_instead_is_said(content: bytes, words: str, tmp_path: Path) -> None:
    """With what to do about it."""
    path = tmp_path / "librkllmrt.so"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_library_for_another_machine_is_refused(tmp_path: Path) -> None:
    """By both names."""
    path = tmp_path / "librkllmrt.so"
    path.write_bytes(header(OTHER, 64))
    names = {X86_64: "x86-64", AARCH64: "aarch64"}
    assert f"made for {names[OTHER]}, this machine is {HERE}" in refusal(path)
    path.write_bytes(header(7777, 64))
    assert "made for machine number 7777" in refusal(path)


def test_a_library_of_another_width_is_refused(tmp_path: Path) -> None:
    """Such as one for 32 bits on a 64-bit system."""
    path = tmp_path / "librkllmrt.so"
    path.write_bytes(header(HERE.machine, 96 - HERE.bits))
    assert f"({96 - HERE.bits} and {HERE.bits} bits)" in refusal(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Without waiting for a pipe that nobody writes into, or reading a model."""
    assert "cannot be read" in refusal(tmp_path / "missing.so")
    assert "no regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.so")
    assert "no regular file" in refusal(tmp_path / "pipe.so")
    with (tmp_path / "model.rkllm").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "Is it a model?" in refusal(tmp_path / "model.rkllm")


@needs_compiler
def test_a_truncated_library_is_refused(tmp_path: Path) -> None:
    """Wherever it was cut; read in this process, so a crash would be this test's."""
    data = library(tmp_path, v1_3_0).read_bytes()
    for length in (*range(0, len(data), 61), len(data) - 1):
        with pytest.raises(Unreadable):
            read_library(data[:length])
    path = tmp_path / "cut.so"
    path.write_bytes(data[: len(data) // 2])
    assert "the file is cut off" in refusal(path)


@needs_compiler
def test_damage_is_never_more_than_a_refusal(tmp_path: Path) -> None:
    """Bytes changed at random, the same ones each time, in the headers above all."""
    data = library(tmp_path, v1_3_0).read_bytes()
    dice = random.Random(3)
    for at in _places(dice, len(data)):
        damaged = bytearray(data)
        damaged[at : at + 8] = dice.randbytes(8)
        try:
            read_library(bytes(damaged))
        except Unreadable:
            continue


@pytest.mark.parametrize(("segments", "size"), [(2, 16), (1, 1 << 20)], ids=["many tables", "one without end"])
def test_tables_without_end_are_not_read(segments: int, size: int) -> None:
    """A few such bytes would keep whoever looks at them busy for hours."""
    at = 64 + 56 * segments
    segment = struct.pack("<IIQQQQQQ", 2, 0, at, 0, 0, size, size, 0)
    head = bytearray(header(HERE.machine, 64))
    struct.pack_into("<Q", head, 32, 64)
    struct.pack_into("<Q", head, 40, 0)
    struct.pack_into("<H", head, 56, segments)
    image = _Image(bytes(head) + segment * segments + b"\x01" * size, 64)
    with pytest.raises(ValueError, match="more dynamic tags"):
        next(image.exported())


def _places(dice: random.Random, size: int) -> Iterator[int]:
    for _ in range(600):
        yield dice.randrange(16, 1200)
        yield dice.randrange(16, size - 8)


@needs_compiler
@pytest.mark.parametrize(
    "options",
    [(), ("-s",), ("-Wl,--hash-style=sysv",), ("-Wl,--hash-style=gnu", "-s"), ("-Wl,--hash-style=both",)],
    ids=lambda options: " ".join(options) or "plain",
)
def test_exports_are_read_as_the_loader_would(options: tuple[str, ...], tmp_path: Path) -> None:
    """Both kinds of tables, stripped or not; what is hidden, or only used, is no export."""
    more = (
        '__attribute__((visibility("hidden"))) int rkllm_hidden(void) { return 0; } static int rkllm_own(void) { return 0; }\n'
        'int puts(const char *); int also_here(void) { return puts("") + rkllm_own(); }'
    )
    found = read_library(compiled(tmp_path, source(v1_3_0, extra=more), options).read_bytes())
    assert {name for name in found.exported if name.startswith("rkllm_")} == functions_of(v1_3_0)
    assert "also_here" in found.exported and "puts" not in found.exported
    assert found.target == HERE


@needs_compiler
@pytest.mark.parametrize("style", ["sysv", "gnu"])
def test_exports_of_a_32_bit_library_are_read(style: str, tmp_path: Path) -> None:
    """The vendor has such for boards with a 32-bit system."""
    try:
        path = compiled(tmp_path, source(v1_3_0, defaults=""), ("-m32", "-nostdlib", f"-Wl,--hash-style={style}"))
    except subprocess.CalledProcessError:
        pytest.skip("this compiler makes no 32-bit libraries")
    found = read_library(path.read_bytes())
    assert found.exported >= functions_of(v1_3_0) and found.target.bits == 32
    assert "32 and 64 bits" in refusal(path) or "made for x86, this machine" in refusal(path)
