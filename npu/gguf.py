"""Reads what a GGUF file says of its model, without loading it.

Every length and count in the file is checked against the file's size before it is believed: what is read here may have
been cut short on its way, or be no GGUF at all.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from npu.errors import ModelRefused

Scalar = str | int | float | bool

MAX_STRING_BYTES = 8 << 20
MAX_ENTRIES = 100_000
MAX_NUMBERS = 4096
"""Longer arrays of numbers are passed over, all but the types of tokens: scores, which nobody here reads."""
MAX_DEPTH = 4

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
"""`general.file_type`, as llama.cpp numbers it."""

# (elements in a block, bytes of a block) of the tensor types this reader can measure; others are not measured.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StringArray:
    """Where the strings of an array lie in the file: a vocabulary has hundreds of thousands, and few are ever read."""

    offsets: array[int]
    """Where each string's bytes begin."""
    lengths: array[int]


@dataclass(frozen=True, slots=True)
class Gguf:
    """The metadata of one file."""

    path: Path
    metadata: Mapping[str, Scalar]
    strings: Mapping[str, StringArray]
    numbers: Mapping[str, tuple[int | float | bool, ...]]
    parameter_count: int

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained for."""
        return self.number("context_length")

    @property
    def chat_template(self) -> str | None:
        return self.text("tokenizer.chat_template") or None

    @property
    def quantization(self) -> str:
        """The name of its file type, such as `Q4_K_M`; empty when unknown."""
        kind = self.metadata.get("general.file_type")
        return FILE_TYPES.get(kind, "") if isinstance(kind, int) else ""

    @property
    def size_label(self) -> str:
        """Such as `135M`; empty when the file does not say."""
        return self.text("general.size_label")

    def text(self, key: str) -> str:
        """A string of the metadata, or the empty one."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | None:
        """A positive number the architecture gives under `key`: the largest, where each layer has its own."""
        full = f"{self.architecture}.{key}"
        values = [self.metadata[full]] if full in self.metadata else list(self.numbers.get(full, ()))
        found = [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]
        return max(found, default=None)

    def special_token(self, name: str) -> str:
        """The text of the token that `tokenizer.ggml.NAME_token_id` names, or the empty string."""
        index, tokens = self.metadata.get(f"tokenizer.ggml.{name}_token_id"), self.strings.get("tokenizer.ggml.tokens")
        if not isinstance(index, int) or tokens is None or not 0 <= index < len(tokens.offsets):
            return ""
        with self.path.open("rb") as file:
            file.seek(tokens.offsets[index])
            return file.read(tokens.lengths[index]).decode(errors="replace")

    def cache_bytes_per_token(self) -> int:
        """Bytes of the KV cache a token takes, in 16-bit floats; sliding windows may take less."""
        layers, width = self.number("block_count") or 0, self.number("embedding_length") or 0
        heads = self.number("attention.head_count") or 1
        shared = self.number("attention.head_count_kv") or heads
        key = self.number("attention.key_length") or width // heads
        value = self.number("attention.value_length") or width // heads
        return layers * shared * (key + value) * 2


def read_gguf(path: Path) -> Gguf:
    """Read the metadata of the file at `path`. Raises `ModelRefused` when it is missing, damaged or not a GGUF."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise _Damaged("it is shorter than a GGUF header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data, size).read()
    except OSError as error:
        raise ModelRefused(f"{path}: the weights cannot be read: {error.strerror or error}.") from error
    except _Damaged as damage:
        raise ModelRefused(f"{path}: {damage}. Fetch the file again; compare its size with the original's.") from None


class _Damaged(Exception):
    """Raised where the file contradicts itself."""


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self._path = path
        self._data = data
        self._size = size
        self._at = 0

    def read(self) -> Gguf:
        if self._data[:4] != b"GGUF":
            raise _Damaged("this is not a GGUF file (its first four bytes are not `GGUF`)")
        self._at = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise _Damaged(f"GGUF version {version} is not known here (2 and 3 are)")
        tensors, entries = self._count("<Q"), self._count("<Q")
        metadata: dict[str, Scalar] = {}
        strings: dict[str, StringArray] = {}
        numbers: dict[str, tuple[int | float | bool, ...]] = {}
        for _ in range(entries):
            key = self._string()
            kind = self._scalar("<I")
            if kind == _STRING:
                metadata[key] = self._string()
            elif kind in _SCALARS:
                metadata[key] = self._scalar(_SCALARS[int(kind)])
            elif kind == _ARRAY:
                self._array(key, strings, numbers)
            else:
                raise _Damaged(f"the value of {key[:80]!r} has the unknown type {kind}")
        parameters = self._tensors(tensors, metadata)
        return Gguf(self._path, metadata, strings, numbers, parameters)

    def _tensors(self, count: int, metadata: Mapping[str, Scalar]) -> int:
        """Check that every tensor lies inside the file; give the number of parameters."""
        parameters, ends = 0, 0
        for _ in range(count):
            self._string()
            dimensions = self._scalar("<I")
            if dimensions > 8:
                raise _Damaged(f"a tensor has {dimensions} dimensions")
            elements = prod(int(self._scalar("<Q")) for _ in range(int(dimensions)))
            block, block_bytes = _BLOCKS.get(int(self._scalar("<I")), (1, 0))
            ends = max(ends, int(self._scalar("<Q")) + elements // block * block_bytes)
            parameters += elements
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise _Damaged("its alignment makes no sense")
        start = -(-self._at // alignment) * alignment
        if start + ends > self._size:
            raise _Damaged(f"it was cut short: {start + ends} bytes are promised, {self._size} are there")
        return parameters

    def _array(
        self,
        key: str,
        strings: dict[str, StringArray],
        numbers: dict[str, tuple[int | float | bool, ...]],
        depth: int = 0,
    ) -> None:
        kind, count = int(self._scalar("<I")), int(self._scalar("<Q"))
        if kind == _STRING:
            self._need(count * 8)
            strings[key] = self._string_array(count)
        elif kind in _SCALARS:
            width = struct.calcsize(_SCALARS[kind])
            self._need(count * width)
            if count <= MAX_NUMBERS or key.endswith("token_type"):
                numbers[key] = struct.unpack_from(f"<{count}{_SCALARS[kind][1]}", self._data, self._at)
            self._at += count * width
        elif kind == _ARRAY and depth < MAX_DEPTH:
            for _ in range(self._bounded(count)):
                self._array(key, {}, {}, depth + 1)
        else:
            raise _Damaged(f"the array {key[:80]!r} has the unknown type {kind}")

    def _string_array(self, count: int) -> StringArray:
        offsets, lengths = array("Q"), array("I")
        at, data, size, unpack = self._at, self._data, self._size, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                raise _Damaged("it ends in the middle of its metadata")
            (length,) = unpack(data, at)
            at += 8
            if length > MAX_STRING_BYTES or at + length > size:
                raise _Damaged("it ends in the middle of its metadata")
            offsets.append(at)
            lengths.append(length)
            at += length
        self._at = at
        return StringArray(offsets, lengths)

    def _string(self) -> str:
        length = int(self._scalar("<Q"))
        if length > MAX_STRING_BYTES:
            raise _Damaged(f"a string of {length} bytes is promised")
        self._need(length)
        text = self._data[self._at : self._at + length].decode(errors="replace")
        self._at += length
        return text

    def _scalar(self, form: str) -> int | float | bool:
        width = struct.calcsize(form)
        self._need(width)
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += width
        assert isinstance(value, (int, float, bool))
        return value

    def _count(self, form: str) -> int:
        return self._bounded(int(self._scalar(form)))

    def _bounded(self, count: int) -> int:
        if count > MAX_ENTRIES:
            raise _Damaged(f"{count} entries are promised")
        return count

    def _need(self, size: int) -> None:
        if self._at + size > self._size:
            raise _Damaged("it ends in the middle of its metadata")
