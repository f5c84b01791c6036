"""A file as clients upload it: `multipart/form-data`, its fields kept and the bytes of the file handed on as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from email.message import Message

import python_multipart
from python_multipart.exceptions import MultipartParseError
from starlette.requests import Request

from api.errors import HttpProblem, Problem, invalid
from api.settings import ApiSettings

MOST_FIELDS = 32
MOST_FIELD = 4096
"""Bytes of one field that is no file."""
BESIDE = MOST_FIELDS * (MOST_FIELD + 1024)
"""Bytes there may be beside the file's."""


class Upload:
    """One upload. `open` reads up to where the file's bytes begin, `chunks` hands those on, and reads the fields behind them."""

    def __init__(self, http: Request, settings: ApiSettings) -> None:
        """Raises `HttpProblem` when the request is none."""
        kind = Message()
        kind["content-type"] = http.headers.get("content-type", "")
        boundary = kind.get_boundary()
        if kind.get_content_type() != "multipart/form-data" or not boundary:
            raise invalid(
                "Files are uploaded as multipart/form-data with a boundary, as `curl -F purpose=batch -F file=@input.jsonl` "
                "does.",
                code="invalid_upload",
            )
        announced = http.headers.get("content-length", "")
        if announced.isdecimal() and len(announced) < 20 and int(announced) > settings.max_file + BESIDE:
            raise _too_large(settings.max_file)
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._limit = settings.max_file
        self._settings = settings
        self._stream = http.stream()
        self._parser = python_multipart.MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._all_read,
            },
        )
        self._header = bytearray(), bytearray()
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._in_file = False
        self._begun = False
        self._whole = False
        self._read: list[bytes] = []

    async def open(self) -> None:
        """Read up to the file. Raises `HttpProblem` when there is none, and `ClientDisconnect`."""
        while not self._begun:
            if not await self._more():
                raise invalid("The upload has no part 'file' with a file name.", "file", "missing_required_parameter")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes. Raises `HttpProblem` when the upload is cut off, malformed or too large."""
        size = 0
        while True:
            read, self._read = self._read, []
            for chunk in read:
                size += len(chunk)
                if size > self._limit:
                    raise _too_large(self._limit)
                yield chunk
            if not await self._more():
                break
        if not self._whole:
            raise invalid(
                "The upload ends before its last boundary: it was cut off. Send it again.", code="invalid_upload"
            )

    async def _more(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                data = await anext(self._stream, None)
        except TimeoutError:
            raise HttpProblem(
                Problem(
                    408, "request_timeout", "The upload stopped: nothing came for a while. Send it again.", close=True
                )
            ) from None
        if data is None:
            return False
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise invalid(f"The upload is no multipart/form-data: {error}", code="invalid_upload") from None
        return True

    def _part_begin(self) -> None:
        self._disposition = b""
        self._value = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        if self._header[1]:
            self._keep_header()
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _keep_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        self._keep_header()
        _, options = python_multipart.multipart.parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._in_file = b"filename" in options and self._name == "file"
        if self._in_file:
            if self._begun:
                raise invalid("The upload has two files; send one at a time.", "file")
            self._begun = True
            self.filename = options[b"filename"].decode("utf-8", "replace")
        elif len(self.fields) >= MOST_FIELDS:
            raise invalid(f"The upload has more than {MOST_FIELDS} fields.", code="invalid_upload")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._read.append(bytes(data[start:end]))
            return
        self._value.extend(data[start:end])
        if len(self._value) > MOST_FIELD:
            raise invalid(
                f"The field '{self._name[:60]}' of the upload is longer than {MOST_FIELD} bytes.", code="invalid_upload"
            )

    def _part_end(self) -> None:
        if not self._in_file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")
        self._in_file = False

    def _all_read(self) -> None:
        self._whole = True


def _too_large(limit: int) -> HttpProblem:
    return HttpProblem(
        Problem(413, "file_too_large", f"The file is larger than {limit} bytes, the most this server takes.")
    )
