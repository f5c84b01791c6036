"""A model llama.cpp really loads, of a few hundred kilobytes: its weights are zeros, its vocabulary is whatever a test needs."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from npu.model import Model
from tests.npu.test_gguf import entry, string

WIDTH = 32
NORMAL, UNKNOWN, CONTROL, ADDED, BYTE = 1, 2, 3, 4, 6
SPM_BYTES = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]


def tiny_model(folder: Path, tokenizer: dict[str, object], tokens: Sequence[tuple[str, int]]) -> Model:
    """A model whose vocabulary is `tokens`, each with its type; `tokenizer` says the rest of `tokenizer.ggml`."""
    entries: dict[str, object] = {
        "general.architecture": "llama",
        "llama.context_length": 32768,
        "llama.block_count": 1,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": WIDTH,
        "llama.attention.head_count": 1,
        "llama.rope.dimension_count": WIDTH,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.tokens": [text for text, _ in tokens],
        "tokenizer.ggml.token_type": [kind for _, kind in tokens],
        **{f"tokenizer.ggml.{name}": value for name, value in tokenizer.items()},
    }
    matrix = (WIDTH, WIDTH)
    tensors = {
        "token_embd.weight": (WIDTH, len(tokens)),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        **{f"blk.0.attn_{name}.weight": matrix for name in ("q", "k", "v", "output")},
        "blk.0.ffn_norm.weight": (WIDTH,),
        **{f"blk.0.ffn_{name}.weight": matrix for name in ("gate", "up", "down")},
    }
    pairs = [entry(*item) for item in entries.items()]
    pairs += [_floats("llama.attention.layer_norm_rms_epsilon", 1e-5)]
    if tokenizer["model"] == "llama":
        pairs += [_scores("tokenizer.ggml.scores", [-float(place) for place in range(len(tokens))])]
    head, data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs), 0
    for name, shape in tensors.items():
        size = 4
        for length in shape:
            size *= length
        head += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, data)
        data += -(-size // 32) * 32
    path = folder / "tiny.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(data))
    return Model(id="tiny", engine="llamacpp", folder=folder, path=path)


def _floats(key: str, value: float) -> bytes:
    return string(key) + struct.pack("<If", 6, value)


def _scores(key: str, values: list[float]) -> bytes:
    return string(key) + struct.pack(f"<IIQ{len(values)}f", 9, 6, len(values), *values)
