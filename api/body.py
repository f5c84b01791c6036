"""A request's body: read up to a bound, parsed, and checked against a shape."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails
from starlette.requests import Request

from api.errors import HttpProblem, Problem, invalid
from api.json_faults import fault
from api.needs import settings_of
from api.settings import ApiSettings
from api.value_faults import fault_of

Shape = TypeVar("Shape", bound=BaseModel)

_decoder = msgspec.json.Decoder()

KINDS = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
"""What JSON calls a value that is no object."""


class Wire(BaseModel):
    """An object as a client sends it: null means absent, unknown fields are ignored, types are what they say."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if type(data) is dict and None in data.values():
            return {key: value for key, value in data.items() if value is not None}
        return data


def _integral(value: Any) -> Any:
    # Some languages write every number with a point.
    return int(value) if type(value) is float and value.is_integer() else value


Whole: TypeAlias = Annotated[int, BeforeValidator(_integral)]
"""A whole number, also one that is written with a point."""


def bounded(count: int, info: ValidationInfo, setting: str, what: str) -> None:
    """Refuse more than a setting allows. Raises `ValueError`."""
    # The settings come as the context of the validation; a shape checked without any has no such bounds.
    limit = getattr(info.context, setting, None)
    if limit is not None and count > limit:
        raise ValueError(f"there should be at most {limit} {what}")


async def read_body(http: Request, shape: type[Shape]) -> Shape:
    """The body as `shape`, whatever its Content-Type. Raises `HttpProblem` (400, 408, 413, 415) and `ClientDisconnect`."""
    settings = settings_of(http)
    return check(parse(await read_bytes(http, settings)), shape, settings)


async def read_bytes(http: Request, settings: ApiSettings) -> bytes:
    """The raw body, within the settings' bounds of size and time. Raises `HttpProblem` (408, 413, 415)."""
    limit = settings.max_body
    encoding = http.headers.get("content-encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise HttpProblem(
            Problem(
                415, "unsupported_encoding", f"Bodies compressed with {encoding[:40]!r} are not read; send plain JSON."
            )
        )
    announced = http.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    now = asyncio.get_running_loop().time
    end = now() + settings.upload_timeout
    try:
        async with asyncio.timeout_at(min(end, now() + settings.body_timeout)) as patience:
            async for part in http.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
                patience.reschedule(min(end, now() + settings.body_timeout))
    except TimeoutError:
        raise _too_slow(size, settings, whole=now() >= end) from None
    return b"".join(parts)


def _too_slow(size: int, settings: ApiSettings, *, whole: bool) -> HttpProblem:
    what = (
        f"was not whole after {settings.upload_timeout:g} s"
        if whole
        else f"stopped: after {size} bytes nothing came for {settings.body_timeout:g} s"
    )
    return HttpProblem(Problem(408, "request_timeout", f"The request's body {what}. Send it again.", close=True))


def _too_large(limit: int) -> HttpProblem:
    return HttpProblem(
        Problem(413, "request_too_large", f"The request body is larger than {limit} bytes, the most this server reads.")
    )


def parse(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises `HttpProblem` for anything else, NaN, infinities and lone surrogates included."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise invalid("The request has no body; send a JSON object.", code="invalid_json")
    try:
        value = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The request body {fault(data, error)}", code="invalid_json") from None
    except RecursionError:
        raise invalid("The request body is nested too deeply.", code="invalid_json") from None
    if type(value) is not dict:
        found = KINDS.get(type(value), "a number")
        raise invalid(f"The request body must be a JSON object, and is {found}.", code="invalid_json")
    return value


def check(data: dict[str, Any], shape: type[Shape], settings: ApiSettings | None = None) -> Shape:
    """`data` as `shape`, within the bounds that the settings draw. Raises `HttpProblem` that names the first field at fault."""
    try:
        return shape.model_validate(data, context=settings)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        raise _problem(data, details) from None
    except RecursionError:
        raise invalid("The request body is nested too deeply.", code="invalid_json") from None


def _problem(data: dict[str, Any], details: Sequence[ErrorDetails]) -> HttpProblem:
    first = details[0]
    param = _path(data, first["loc"])
    context = first.get("ctx") or {}
    if context.get("param"):
        param = f"{param}.{context['param']}" if param else context["param"]
    if first["type"] == "missing":
        return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if "code" in context:
        return invalid(first["msg"], param, context["code"])
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return invalid(f"Invalid '{param}': {fault_of(first)}.", param, code)


def _path(data: Any, loc: Sequence[int | str]) -> str:
    # The location also names the branches of unions; what the body does not hold is not part of the path.
    parts: list[str] = []
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(data, dict) and isinstance(part, str) and (part in data or last):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and 0 <= part < len(data):
            data = data[part]
        else:
            continue
        parts.append(part if isinstance(part, str) else str(part))
    return ".".join(parts)
