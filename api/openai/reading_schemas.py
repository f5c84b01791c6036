"""The bodies of requests for which a model reads and says nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema

from api.body import Wire
from api.openai.schemas import PROMPTS_SHAPE, Prompts, Whole, bounded, prompts


def _inputs(value: Any, info: ValidationInfo) -> Prompts:
    inputs = prompts(value)
    bounded(len(inputs), info, "max_inputs", "inputs")
    if not all(inputs):
        raise ValueError("an input should not be empty")
    return inputs


class EmbeddingBody(Wire):
    """The body of `POST /v1/embeddings`."""

    model: str | None = Field(None, max_length=512)
    input: Annotated[Prompts, PlainValidator(_inputs), WithJsonSchema(PROMPTS_SHAPE)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Whole | None = Field(None, ge=1, lt=2**31)
