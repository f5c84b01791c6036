"""The `options` of a request: how it is sampled, and how far it may go."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from api.body import Wire, bounded
from api.refusals import refused

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_k": (-1, 2**31 - 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "repeat_last_n": (-1, 2**31 - 1),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
    "mirostat": (0, 2),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 100),
    "seed": (-(2**63), 2**63 - 1),
    "num_ctx": (1, 2**31 - 1),
    "num_predict": (-(2**31), 2**63 - 1),
}
"""What an engine could do something with."""


def _wrong(name: str | None, kind: str) -> Exception:
    return refused(f'option "{name}" must be of type {kind}', code="invalid_type")


def _within(value: float, info: ValidationInfo) -> None:
    low, high = RANGES[info.field_name or ""]
    if not low <= value <= high:
        raise refused(f'option "{info.field_name}" must be between {low:g} and {high:g}', code="invalid_value")


def _integer(value: Any, info: ValidationInfo) -> int:
    if type(value) is float and value.is_integer():
        value = int(value)  # some languages write every number with a point
    if type(value) is not int:
        raise _wrong(info.field_name, "integer")
    _within(value, info)
    return value


def _number(value: Any, info: ValidationInfo) -> float:
    if type(value) not in (int, float):
        raise _wrong(info.field_name, "float32")
    _within(value, info)
    return float(value)


def _texts(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _wrong(info.field_name, "array of strings")
    bounded(len(value), info, "max_stop", "stop sequences")
    return tuple(text for text in value if text)


Integer = Annotated[int, BeforeValidator(_integer)]
Number = Annotated[float, BeforeValidator(_number)]


class OllamaOptions(Wire):
    """The options that mean something here. Ollama ignores those it does not know, and so does this."""

    temperature: Number | None = None
    top_k: Integer | None = None
    top_p: Number | None = None
    min_p: Number | None = None
    typical_p: Number | None = None
    repeat_penalty: Number | None = None
    repeat_last_n: Integer | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    mirostat: Integer | None = None
    mirostat_tau: Number | None = None
    mirostat_eta: Number | None = None
    seed: Integer | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ()
    num_predict: Integer | None = None
    num_ctx: Integer | None = None
