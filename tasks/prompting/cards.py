"""The card of a model: what a board or worker says of it to the rest of the service."""

from __future__ import annotations

from dataclasses import asdict

from npu.answer_format import HIDDEN, thinking_format
from npu.engines import Setup, describe
from npu.model import Model
from tasks.card import Card, LastLoad, SelfTest
from tasks.prompting.conversation import calls_tools
from tasks.prompting.failures import PARAMS, without_folders


def card_of(model: Model, board: str, setup: Setup) -> Card:
    """The card. Reads the head of the weights, loads nothing. Raises `ModelRefused`."""
    facts = describe(model, setup)
    template = facts.template
    source = template.source if template is not None else HIDDEN if facts.chat else ""
    return Card(
        id=model.id,
        board=board,
        names=model.names,
        engine=model.engine,
        engine_version=facts.version,
        context_length=facts.context_length,
        created=model.created,
        size_bytes=model.size_bytes,
        memory_bytes=facts.memory_bytes,
        family=model.family or facts.family,
        parameters=model.parameters or facts.parameters,
        quantization=model.quantization or facts.quantization,
        chat=facts.chat,
        completion=facts.completion,
        tools=template is not None and calls_tools(model, template),
        thinking=thinking_format(model.thinking_format, source) is not None,
        abilities=tuple(sorted(model.abilities)),
        embedding_length=facts.embedding_length,
        adapters=tuple(adapter.name for adapter in model.adapters),
        base=model.base,
        refuses={PARAMS.get(field, field): why for field, why in facts.refuses.items()},
        notes=tuple(map(without_folders, facts.notes)),
        last_load=LastLoad(**asdict(facts.last_load)) if facts.last_load is not None else None,
        self_test=SelfTest(**asdict(facts.self_test)) if facts.self_test is not None else None,
    )
