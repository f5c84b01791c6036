"""The map from errors below the queue to failures that cross it."""

from __future__ import annotations

import pytest

from npu import errors
from npu.errors import AdapterMissing, ContextTooLong, FieldRefused, NpuError, SamplingRefused
from tasks import events, requests
from tasks.events import Failed, FailureCode
from tasks.prompting.failures import CODES, failure, without_folders

SECRET = "the user's secret words"


def tree(kind: type[NpuError]) -> set[type[NpuError]]:
    """Every class below `kind`."""
    return {below for child in kind.__subclasses__() for below in (child, *tree(child))}


def made(kind: type[NpuError]) -> NpuError:
    if kind is ContextTooLong:
        return ContextTooLong(10, 5, 12)
    if kind is AdapterMissing:
        return AdapterMissing("tiny", "poet")
    if kind is SamplingRefused:
        return SamplingRefused("top_k", "too many")
    if kind is FieldRefused:
        return FieldRefused("tools", "it was not taught any")
    return kind("what happened, and what to do")


OURS = sorted((kind for kind in tree(NpuError) if kind.__module__ == errors.__name__), key=lambda kind: kind.__name__)


def test_the_map_is_total() -> None:
    """Every class of the tree stands in it by itself, so a new one cannot be forgotten."""
    assert set(OURS) == set(CODES)


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_each_error_becomes_a_failure(kind: type[NpuError]) -> None:
    """With its own code and its own words."""
    error = made(kind)
    failed = failure(error)
    assert (failed.code, failed.message) == (CODES[kind], str(error))
    assert (failed.param == "top_k") is (kind is SamplingRefused)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ModelRefused("x"), FailureCode.MODEL_UNAVAILABLE),
        (errors.OutOfMemory("x"), FailureCode.MODEL_UNAVAILABLE),
        (errors.PromptRefused("x"), FailureCode.BAD_PROMPT),
        (errors.TemplateFailed("x"), FailureCode.BAD_PROMPT),
        (errors.ContextTooLong(1, None, 1), FailureCode.CONTEXT_TOO_LONG),
        (errors.AdapterMissing("tiny", "poet"), FailureCode.BAD_PROMPT),
        (errors.SamplingRefused("seed", "x"), FailureCode.UNSUPPORTED),
        (errors.EngineFailed("x"), FailureCode.ENGINE_FAILED),
        (requests.Unreadable("x"), FailureCode.UNREADABLE),
        (events.Unreadable("x"), FailureCode.UNREADABLE),
        (ZeroDivisionError("x"), FailureCode.INTERNAL),
    ],
    ids=lambda value: type(value).__name__,
)
def test_codes(error: Exception, code: FailureCode) -> None:
    """Fronts choose their status by these, so they are written down a second time."""
    assert failure(error).code is code


def test_an_error_of_an_engine_of_its_own_kind_is_what_its_parent_is() -> None:
    """An engine may refine the tree without a line in the map."""

    class CardOnFire(errors.EngineFailed):
        pass

    assert failure(CardOnFire("hot")) == Failed(FailureCode.ENGINE_FAILED, "hot")


def test_an_unknown_error_keeps_its_words_to_itself() -> None:
    """They may hold a prompt; its kind is all that is told."""

    class Odd(Exception):
        pass

    try:
        raise Odd(SECRET) from ValueError(SECRET)
    except Odd as error:
        failed = failure(error)
    assert failed.code is FailureCode.INTERNAL
    assert "Odd" in failed.message
    assert SECRET not in repr(failed)


def test_files_are_told_to_clients_without_their_folders() -> None:
    """Where a board keeps them is the log's to tell; what is no such path stays as it is."""
    why = "/srv/models/poet/x.rkllm is cut off (/srv/models/poet/y.rkllm too): see GET /v1/models, https://a.b/c/d or 1/2/3."
    told = "…/x.rkllm is cut off (…/y.rkllm too): see GET /v1/models, https://a.b/c/d or 1/2/3."
    assert without_folders(why) == told
    manifest = "/srv/models/poet/manifest.toml: /srv/models/a/b/tokenizer.json is not there."
    assert without_folders(manifest) == "…/poet/manifest.toml: …/b/tokenizer.json is not there."
    assert failure(AdapterMissing("tiny", "poet", why)).message.endswith(told)
    assert failure(errors.PromptRefused(why)).message == why  # the client's own words


def test_a_field_is_named_as_the_request_has_it() -> None:
    """And not as the engine calls it."""
    assert failure(SamplingRefused("constraint", "no")).param == "output"
