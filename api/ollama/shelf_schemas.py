"""The bodies of requests that change which models there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from api.body import Wire
from api.ollama.options import OllamaOptions
from api.ollama.schemas import NamedBody, check_template
from api.refusals import Refusal, refuse, refused
from tasks.blobs import is_digest

REFUSED: Mapping[str, Refusal] = {
    "messages": (([],), "A model has no turns of its own to begin with; leave {field} out."),
    "quantize": (("",), "Weights are used as they are; leave {field} out."),
}
"""Fields of a new model that cannot be honoured."""

MOST_FILES = 16
"""Files a model is made of."""

REFUSED_PARAMETERS: Mapping[str, str] = {
    "seed": "A seed belongs to a request.",
    "num_predict": "A limit of tokens belongs to a request.",
}


class PullBody(NamedBody):
    """The body of `POST /api/pull`."""

    stream: bool = True
    board: str = Field("", max_length=512)
    """The one that is to fetch it, of several."""


class DeleteBody(NamedBody):
    """The body of `DELETE /api/delete`."""


class CopyBody(Wire):
    """The body of `POST /api/copy`."""

    source: str = Field(min_length=1, max_length=512)
    destination: str = Field(min_length=1, max_length=512)


class CreateBody(NamedBody):
    """The body of `POST /api/create`."""

    base: str = Field("", alias="from", max_length=512)
    system: str | None = Field(None, max_length=1_000_000)
    template: str | None = Field(None, max_length=1_000_000)
    parameters: OllamaOptions = OllamaOptions()
    files: dict[str, str] = Field({}, max_length=MOST_FILES)
    adapters: dict[str, str] = Field({}, max_length=MOST_FILES)
    stream: bool = True

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        refuse(data, REFUSED)
        parameters = data.get("parameters") if isinstance(data, dict) else None
        for field, value in parameters.items() if isinstance(parameters, dict) else ():
            if value is not None and field in REFUSED_PARAMETERS:
                raise refused(f"parameter '{field}' is not supported: {REFUSED_PARAMETERS[field]}", "parameters")
        return data

    @model_validator(mode="after")
    def _made_of_something(self) -> CreateBody:
        if self.base and self.files:
            raise refused("'from' and 'files' exclude each other: a model is made of another, or of files", "files")
        if self.adapters and not self.files:
            raise refused(
                "'adapters' go with the 'files' they were made for, in one request. An adapter that a model has here already "
                'is named behind it: "from": "model:adapter"',
                "adapters",
            )
        for field, files in (("files", self.files), ("adapters", self.adapters)):
            for name, digest in files.items():
                if not is_digest(digest):
                    raise refused(
                        f"invalid digest format: '{name[:100]}' has {digest[:80]!r}, which is not `sha256:` and 64 "
                        "hexadecimal digits",
                        field,
                        "invalid_value",
                    )
        if not self.base and not self.files:
            raise refused("neither 'from' or 'files' was specified", "from", "missing_required_parameter")
        if self.template is not None:
            check_template(self.template)
        return self
