"""What goes wrong below the queue, as the failure that crosses it. The only such map, and total by test."""

from __future__ import annotations

from npu.errors import (
    AdapterMissing,
    ContextTooLong,
    EngineFailed,
    ModelRefused,
    NpuError,
    OutOfMemory,
    PromptRefused,
    RuntimeNotFound,
    RuntimeRefused,
    SamplingRefused,
    TemplateFailed,
)
from tasks import requests
from tasks.events import Failed, FailureCode

CODES: dict[type[NpuError], FailureCode] = {
    ModelRefused: FailureCode.MODEL_UNAVAILABLE,
    OutOfMemory: FailureCode.MODEL_UNAVAILABLE,
    RuntimeNotFound: FailureCode.MODEL_UNAVAILABLE,
    RuntimeRefused: FailureCode.MODEL_UNAVAILABLE,
    PromptRefused: FailureCode.BAD_PROMPT,
    ContextTooLong: FailureCode.CONTEXT_TOO_LONG,
    AdapterMissing: FailureCode.BAD_PROMPT,
    TemplateFailed: FailureCode.BAD_PROMPT,
    SamplingRefused: FailureCode.UNSUPPORTED,
    EngineFailed: FailureCode.ENGINE_FAILED,
}


def failure(error: Exception) -> Failed:
    """The failure that `error` is to a client. What no map knows is a defect of ours, and says no more than that."""
    if isinstance(error, NpuError):
        kind = next((kind for kind in type(error).__mro__ if kind in CODES), EngineFailed)
        param = error.field if isinstance(error, SamplingRefused) else None
        return Failed(CODES[kind], str(error), param)
    if isinstance(error, requests.Unreadable):
        return Failed(FailureCode.UNREADABLE, str(error))
    return Failed(
        FailureCode.INTERNAL,
        f"An internal error ended this request ({type(error).__name__}). The server's log has the details.",
    )
