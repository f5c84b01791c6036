"""The input of a batch: one request a line, read as it lies in the storage and checked as its endpoint would check it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec

from api.body import check
from api.errors import HttpProblem
from api.openai.endpoints import Endpoint
from api.settings import ApiSettings
from api.storage import Storage
from tasks.batch import LineProblem
from tasks.requests import Request

MOST_ID = 512
"""Characters of a custom_id."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not empty. `number` is its place in the file, the first being 1; it goes from byte `start` to `end`,
    where the next one begins.

    `data` is None where the line is longer than any request may be."""

    number: int
    start: int
    end: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a batch, by its client's own name for it."""

    custom_id: str
    body: Any
    request: Request
    """What the body asks for."""


class Wrong(Exception):
    """Raised for a line that is no request of its batch."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        self.code = code
        self.param = param
        super().__init__(message)

    def problem(self, line: int | None) -> LineProblem:
        """The same, as the batch shows it."""
        return LineProblem(self.code, str(self), line, self.param)


async def read_lines(storage: Storage, name: str, limit: int, start: int = 0, number: int = 0) -> AsyncIterator[Line]:
    """The lines from byte `start` on, before which `number` lines lie. At most `limit` bytes of one are held in memory.

    Raises what the storage raises."""
    held = bytearray()
    long = False
    begun = end = start
    async for chunk in storage.read(name, start):
        begin = 0
        while (at := chunk.find(b"\n", begin)) >= 0:
            held += chunk[begin:at]
            number, begin = number + 1, at + 1
            if long or held.strip():
                yield Line(number, begun, end + begin, None if long or len(held) > limit else bytes(held))
            held, long, begun = bytearray(), False, end + begin
        held += chunk[begin:]
        end += len(chunk)
        if len(held) > limit:
            held, long = bytearray(), True
    if long or held.strip():
        yield Line(number + 1, begun, end, None if long else bytes(held))


def read_item(line: Line, path: str, endpoint: Endpoint, settings: ApiSettings) -> Item:
    """The request of a line. Raises `Wrong`."""
    if line.data is None:
        raise Wrong("line_too_long", f"The line is longer than {settings.max_body} bytes, the most of one request.")
    value = _object(line.data)
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MOST_ID:
        raise Wrong(
            *("missing_required_parameter", f"'custom_id' should be a string of 1 to {MOST_ID} characters."),
            "custom_id",
        )
    method = value.get("method")
    if method != "POST":
        raise Wrong("invalid_method", "'method' should be \"POST\".", "method")
    if value.get("url") != path:
        raise Wrong(
            "mismatched_url" if isinstance(value.get("url"), str) else "invalid_url",
            f"'url' should be \"{path}\", the endpoint of the batch.",
            "url",
        )
    body = value.get("body")
    if not isinstance(body, dict):
        raise Wrong("missing_required_parameter", "'body' should be an object, the request.", "body")
    try:
        checked = check({**body, "stream": False}, endpoint.shape, settings)
        return Item(custom_id, checked, endpoint.to_request(checked))
    except HttpProblem as error:
        problem = error.problem
        raise Wrong(
            problem.code or "invalid_value", problem.message, f"body.{problem.param}" if problem.param else "body"
        ) from None


_decoder = msgspec.json.Decoder()


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = _decoder.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError:
        raise Wrong("invalid_json_line", "The line is not UTF-8.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Wrong("invalid_json_line", f"The line is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Wrong("invalid_json_line", "The line is no JSON object.")
    return value


class Names:
    """The custom_ids that were seen; of each a digest of eight bytes, so that a large batch takes little memory."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, custom_id: str) -> None:
        """One more. Raises `Wrong` when it was there already."""
        digest = int.from_bytes(hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        if digest in self._seen:
            raise Wrong("duplicate_custom_id", f"The custom_id '{custom_id[:60]}' was used before.", "custom_id")
        self._seen.add(digest)
