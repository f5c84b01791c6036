"""The bodies of requests for which a model reads and says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, model_validator

from api.body import Whole, Wire, bounded
from api.openai.schemas import PROMPTS_SHAPE, Prompts, prompts
from api.refusals import Refusal, refuse


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


REFUSED_IN_RERANK: Mapping[str, Refusal] = {
    "raw_scores": ((False,), "A score is the probability of a yes, which has no other form."),
    "max_tokens_per_doc": ((), "Documents are read whole; send shorter ones."),
    "max_chunks_per_doc": ((), "Documents are read whole; send shorter ones."),
    "rank_fields": ((["text"], []), "Of a document that is an object, 'text' is read."),
}
"""What would change the order, and cannot be honoured."""


def _documents(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("it should be a list of texts, with one or more of them")
    bounded(len(value), info, "max_inputs", "documents")
    texts = [item.get("text") if isinstance(item, dict) else item for item in value]
    documents = tuple(text for text in texts if isinstance(text, str) and text)
    if len(documents) < len(texts):
        raise ValueError("each document should be a text that is not empty, or an object with such a 'text'")
    return documents


Documents: TypeAlias = Annotated[
    tuple[str, ...],
    PlainValidator(_documents),
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
                ]
            },
        }
    ),
]


class RerankBody(Wire):
    """The body of `POST /v1/rerank`."""

    model: str | None = Field(None, max_length=512)
    query: str = Field(min_length=1)
    documents: Documents
    top_n: Whole | None = Field(None, ge=1, lt=2**31)
    return_documents: bool = False

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        refuse(data, REFUSED_IN_RERANK)
        return data


class RerankTextsBody(Wire):
    """The same as Text Embeddings Inference shaped it: a body that has `texts`."""

    model: str | None = Field(None, max_length=512)
    query: str = Field(min_length=1)
    texts: Documents
    top_n: Whole | None = Field(None, ge=1, lt=2**31)
    return_text: bool = False

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        refuse(data, REFUSED_IN_RERANK)
        return data
