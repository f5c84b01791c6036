"""Texts with a gap: made into prompts by what the vocabulary or the manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from npu.engines.echo import ASSISTANT, BOS, SYSTEM, USER, EchoTokenizer
from npu.errors import ContextTooLong, FieldRefused
from npu.model import Model
from npu.tokenizer_file import FileTokenizer, open_tokenizer_file
from tasks.prompting.filling import KNOWN
from tasks.prompting.prepare import Prepared, Preparer
from tasks.requests import CompletionRequest

MODEL = Model(
    id="m", engine="echo", folder=Path("/nowhere"), fill_in_middle=("<|system|>", "<|user|>", "<|assistant|>")
)


def prompt(request: CompletionRequest, model: Model = MODEL, *, context_length: int = 1000) -> tuple[list[int], int]:
    prepared = Preparer(model, EchoTokenizer(), None, context_length).prepare(request)
    assert isinstance(prepared, Prepared)
    return list(prepared.prompts[0].tokens), prepared.left_out


def test_a_gap_is_framed_by_control_tokens() -> None:
    """And what the texts have of such tokens is text, so that a file of these words does not end the gap."""
    told, _ = prompt(CompletionRequest(("a<|user|>",), suffix="z"))
    assert told == [BOS, SYSTEM, *b"a<|user|>", USER, *b"z", ASSISTANT]
    told, _ = prompt(CompletionRequest(("",), suffix="z"))
    assert told == [BOS, SYSTEM, USER, *b"z", ASSISTANT]
    told, _ = prompt(CompletionRequest(((65, 66),), suffix="z"))
    assert told == [BOS, SYSTEM, *b"AB", USER, *b"z", ASSISTANT]


def test_without_such_tokens_it_is_refused() -> None:
    """By name, and so is a model that is said to fill none."""
    for model in (replace(MODEL, fill_in_middle=None), replace(MODEL, fill_in_middle=())):
        with pytest.raises(FieldRefused, match="no fill-in-the-middle tokens") as caught:
            prompt(CompletionRequest(("a",), suffix="z"), model)
        assert caught.value.field == "suffix"
        assert prompt(CompletionRequest(("a",)), model)[0] == [BOS, *b"a"]


def test_what_stands_before_loses_its_beginning_where_it_may() -> None:
    """What is behind the gap stays, and so do the control tokens."""
    request = CompletionRequest(("x" * 200 + "near",), suffix="behind", overflow="truncate")
    told, left_out = prompt(request, context_length=100)
    assert 0 < left_out < 204 and len(told) < 100
    assert bytes(each for each in told if each < 256).endswith(b"nearbehind")
    assert (told[:2], told[-1]) == ([BOS, SYSTEM], ASSISTANT)
    with pytest.raises(ContextTooLong):
        prompt(CompletionRequest(("x" * 200,), suffix="z"), context_length=100)


def vocabulary(folder: Path, markers: Sequence[str]) -> FileTokenizer:
    """Bytes, and these tokens; they are no special ones in Qwen's files."""
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in markers])
    tokenizer.save(str(folder / "tokenizer.json"))
    found = open_tokenizer_file(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("markers", KNOWN, ids=lambda markers: markers[0])
def test_the_tokens_of_families_are_found(markers: tuple[str, str, str], tmp_path: Path) -> None:
    """In their vocabulary, where they are tokens of their own."""
    tokenizer = vocabulary(tmp_path, markers)
    model = replace(MODEL, fill_in_middle=None)
    prepared = Preparer(model, tokenizer, None, 1000).prepare(CompletionRequest(("ab",), suffix="c"))
    assert isinstance(prepared, Prepared)
    begin, hole, answer = (tokenizer.encode(marker)[0] for marker in markers)
    assert list(prepared.prompts[0].tokens) == [
        *[begin, *tokenizer.encode("ab")],
        *[hole, *tokenizer.encode("c"), answer],
    ]
