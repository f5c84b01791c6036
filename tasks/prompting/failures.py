"""What goes wrong below the queue, as the failure that crosses it. The only such map, and total by test."""

from __future__ import annotations

import re

from npu.errors import (
    AdapterMissing,
    ContextTooLong,
    EngineFailed,
    FieldRefused,
    ModelRefused,
    NpuError,
    OutOfMemory,
    PromptRefused,
    RuntimeNotFound,
    RuntimeRefused,
    SamplingRefused,
    TemplateFailed,
)
from tasks import events, requests
from tasks.events import Failed, FailureCode

CODES: dict[type[NpuError], FailureCode] = {
    ModelRefused: FailureCode.MODEL_UNAVAILABLE,
    OutOfMemory: FailureCode.MODEL_UNAVAILABLE,
    RuntimeNotFound: FailureCode.MODEL_UNAVAILABLE,
    RuntimeRefused: FailureCode.MODEL_UNAVAILABLE,
    PromptRefused: FailureCode.BAD_PROMPT,
    ContextTooLong: FailureCode.CONTEXT_TOO_LONG,
    FieldRefused: FailureCode.UNSUPPORTED,
    AdapterMissing: FailureCode.BAD_PROMPT,
    TemplateFailed: FailureCode.BAD_PROMPT,
    SamplingRefused: FailureCode.UNSUPPORTED,
    EngineFailed: FailureCode.ENGINE_FAILED,
}

PARAMS = {"constraint": "output"}
"""Fields of `Sampling` that a request has by another name."""

_OF_FILES = frozenset({ModelRefused, OutOfMemory, RuntimeNotFound, RuntimeRefused, AdapterMissing, EngineFailed})
"""What may name a file of the board; the others repeat what the client itself has sent."""
_PART = r"[^\s/'\"`,;()]+"
_PATH = re.compile(
    rf"(?<![\w.…:/~-])/(?!v1/)(?:(?:{_PART}/)*(?={_PART}/{_PART}\.(?:toml|json|jinja)(?!\w))|(?:{_PART}/)+)"
)
"""The folders of a path; where every model has a file of that name, such as manifest.toml, the model's own is none of them."""


def without_folders(sentence: str) -> str:
    """The same for clients, who need not know where on its disk a board keeps a file. The log names the whole path."""
    return _PATH.sub("…/", sentence)


def failure(error: Exception) -> Failed:
    """The failure that `error` is to a client. What no map knows is a defect of ours, and says no more than that."""
    if isinstance(error, NpuError):
        kind = next((kind for kind in type(error).__mro__ if kind in CODES), EngineFailed)
        param = PARAMS.get(error.field, error.field) if isinstance(error, SamplingRefused | FieldRefused) else None
        message = without_folders(str(error)) if kind in _OF_FILES else str(error)
        return Failed(CODES[kind], message, param)
    if isinstance(error, requests.Unreadable | events.Unreadable):
        return Failed(FailureCode.UNREADABLE, str(error))
    return Failed(
        FailureCode.INTERNAL,
        f"An internal error ended this request ({type(error).__name__}). The server's log has the details.",
    )
