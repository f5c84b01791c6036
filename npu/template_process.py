"""Renders chat templates in a process of its own, so that its parent can bound their time and memory.

It runs as a script and imports nothing of this project: `python -I template_process.py MEMORY_BYTES OUTPUT_CHARS`, with
a socket as standard input. Each message is four bytes of length (big-endian) and JSON. The parent sends
`{"id", "source"}` once for a template and `{"id", "variables"}` to render it; the answer is `{"text"}`, `{"error"}`, or
`{"memory"}` when the error is that the memory did not suffice.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import struct
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATES_KEPT = 32


class Generation(Extension):
    """`{% generation %}`, which training code uses to mark what the assistant says. It changes nothing here."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Refused(TemplateError):
    """Raised by a template through `raise_exception`."""


def refuse(message: object) -> NoReturn:
    """What templates call `raise_exception`."""
    raise Refused(str(message))


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` models are trained with: keys in their order, no HTML escapes, Unicode as it is."""
    if separators is not None:
        separators = (separators[0], separators[1])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """The Jinja environment of chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], cache_size=0
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return made


def explain(error: Exception) -> str:
    """One sentence for whoever sent the messages or wrote the template."""
    if isinstance(error, Refused):
        return f"The model's chat template refused the messages: {error}"
    if isinstance(error, MemoryError):
        return "The model's chat template needed more memory than it may have."
    if isinstance(error, RecursionError):
        return "The model's chat template calls itself without end."
    line = getattr(error, "lineno", None)
    where = f" (line {line})" if isinstance(line, int) else ""
    what = re.sub(r"\s+", " ", str(error))[:500] or type(error).__name__
    return f"The model's chat template failed{where}: {what}"


class Renderer:
    """The templates this process knows, compiled."""

    def __init__(self, output_chars: int) -> None:
        self._environment = environment()
        self._templates: dict[str, Template] = {}
        self._output_chars = output_chars

    def answer(self, request: dict[str, Any]) -> dict[str, str]:
        """Do what one message asks for. Every exception becomes an answer; only the parent's clock ends this process."""
        try:
            if "source" in request:
                while len(self._templates) >= TEMPLATES_KEPT:
                    del self._templates[next(iter(self._templates))]
                self._templates[request["id"]] = self._environment.from_string(request["source"])
                return {"text": ""}
            template = self._templates.get(request["id"])
            return {"unknown": request["id"]} if template is None else self._render(template, request["variables"])
        except MemoryError as error:
            return {"memory": explain(error)}
        except Exception as error:
            return {"error": explain(error)}

    def _render(self, template: Template, variables: dict[str, Any]) -> dict[str, str]:
        parts: list[str] = []
        size = 0
        for part in template.generate(variables):
            size += len(part)
            if size > self._output_chars:
                return {"error": f"The model's chat template wrote more than {self._output_chars} characters."}
            parts.append(part)
        return {"text": "".join(parts)}


def read_exactly(size: int) -> bytes:
    """`size` bytes from the parent. Leaves the process when the parent is gone."""
    data = bytearray()
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            sys.exit(0)
        data += part
    return bytes(data)


def write(message: dict[str, str]) -> None:
    """Send one message to the parent. Lone surrogates travel as JSON escapes."""
    data = json.dumps(message).encode()
    view = memoryview(struct.pack(">I", len(data)) + data)
    while view:
        view = view[os.write(0, view) :]


def limit_memory(size: int) -> None:
    """Let the kernel refuse this process more address space than `size`, or than it was allowed before."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def main() -> NoReturn:
    """Answer until the parent closes the socket."""
    # Ctrl-C and a stopping service signal the whole group at once; the parent may still have something to render.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    memory, output_chars = int(sys.argv[1]), int(sys.argv[2])
    limit_memory(memory)
    renderer = Renderer(output_chars)
    write({"text": "ready"})
    while True:
        (size,) = struct.unpack(">I", read_exactly(4))
        write(renderer.answer(json.loads(read_exactly(size))))


if __name__ == "__main__":
    main()
