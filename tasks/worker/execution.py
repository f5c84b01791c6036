"""One claimed job on an engine: prepared from its request, or gone on with where earlier claims left it."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

import redis

from npu.engine import EmbeddingEngine, RerankEngine, TextEngine
from tasks import requests
from tasks.claims import Claim, prompt_fields
from tasks.events import FinishReason
from tasks.jobs import Lane, Phase
from tasks.prompting.prepare import Prepared, PreparedQuestions, PreparedTexts, Preparer
from tasks.worker import embed, generate, rerank
from tasks.worker.begun import Begun, CannotContinue, read_begun
from tasks.worker.job_run import JobRun


def execute(client: redis.Redis, preparer: Preparer, engine: TextEngine, run: JobRun) -> FinishReason:
    """Run it to its end. Raises what preparing, the engine and the record's writer raise, and `CannotContinue`."""
    claim = run.claim
    language = engine.tokenizer.digest
    begun = _begun(client, claim, language)
    run.before = begun.size if begun is not None else 0
    # A template may tell the date: what was begun goes on behind the very prompt that it was begun with.
    prepared = preparer.prepare(requests.decode_request(claim.request), claim.prompts if begun is not None else ())
    match prepared:
        case Prepared():
            if any(prompt.turn is not None for prompt in prepared.prompts):
                run.can_be_paused = False  # nobody knows the tokens of such a prompt
            run.totals.left_out = prepared.left_out
            tokens = (prompt.tokens for prompt in prepared.prompts)
            run.writer.note(phase=Phase.PREFILL.value, language=language, **prompt_fields(tokens))
            prepared = owned(prepared, claim.owner, claim.lane)
            return generate.run(prepared, engine, run, run.totals, begun, job=claim.job)
        case PreparedTexts():
            run.writer.note(phase=Phase.PREFILL.value)
            assert isinstance(engine, EmbeddingEngine)  # its manifest says so, and was checked against the engine
            return embed.run(prepared, engine, run, run.totals, begun)
        case PreparedQuestions():
            run.writer.note(phase=Phase.PREFILL.value)
            assert isinstance(engine, RerankEngine)
            return rerank.run(prepared, engine, run, run.totals, begun)
        case _:
            assert_never(prepared)


def owned(prepared: Prepared, owner: str, lane: str) -> Prepared:
    """The same, with whose it is for the engine that keeps conversations."""
    # What somebody waits for goes on as a conversation; titles and items of batches come once.
    returns = lane == Lane.INTERACTIVE
    return replace(
        prepared, prompts=tuple(replace(prompt, owner=owner, returns=returns) for prompt in prepared.prompts)
    )


def _begun(client: redis.Redis, claim: Claim, language: str) -> Begun | None:
    if not claim.sent:
        return None
    if claim.prompts and claim.language != language:
        raise CannotContinue(
            "A part of this answer was made by a board whose model has another tokenizer than this one's, so it cannot be "
            "gone on with here. Give both boards the same files, and ask again."
        )
    return read_begun(client, claim.job)
