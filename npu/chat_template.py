"""A model's chat template, rendered within bounds of time and memory.

A template is a program that comes with somebody's weights. A few characters of it loop for ever or build a gigabyte
inside one call into C, where no check written in Python gets a turn. So each process that renders keeps one small child
(`npu/template_process.py`) whose memory the kernel bounds and which is killed at the deadline. A render costs a round trip
over a socket, about a tenth of a millisecond; it works from any thread, and after a fork each process has its own child.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npu.errors import TemplateFailed

SECONDS = 3.0
"""How long one render may take. A normal chat takes less than a millisecond."""

MEMORY_BYTES = 256 << 20
"""Address space of the rendering process, its own code included."""

OUTPUT_CHARS = 16 << 20
"""How long a rendered prompt may be, in characters."""

REST_SECONDS = 60.0
"""How long a template is left alone that broke a bound twice in a row: each try keeps everybody else waiting."""

BROKEN_KEPT = 32
"""How many such templates are remembered."""

START_SECONDS = 30.0
"""How long the rendering process may take to start: it imports jinja2, from a slow card at worst."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The source of a template, and the model's special tokens it may mention."""

    source: str
    bos_token: str = ""
    eos_token: str = ""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """Further ones by the names templates use: `pad_token`, `unk_token`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Variables for every render, unless the call gives others."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> str:
        """The prompt as text. Messages, tools and options must be JSON values; `options` become variables.

        Raises `TemplateFailed` with the template's own words when it refuses the messages, and when it breaks a bound.
        """
        variables = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            **self.special_tokens,
            **self.options,
            **options,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        return _CHILD.render(self.digest, self.source, variables)

    def check(self) -> None:
        """Compile the template. Raises `TemplateFailed` when it is not Jinja."""
        _CHILD.compile(self.digest, self.source)

    @property
    def digest(self) -> str:
        """SHA-256 of the source: equal on two boards when their prompts are."""
        return hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()


class _BoundBroken(Exception):
    """Raised when a render takes more time or memory than it may have."""


@dataclass(frozen=True, slots=True)
class _Broken:
    """What became of a template's last renders."""

    words: str
    """Why the last one failed."""
    times: int
    """How many failed in a row."""
    since: float
    """When the last one failed, in seconds of the clock."""


class _Child:
    """The rendering process of this process, started when first needed and again whenever it had to be killed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._known: set[str] = set()
        self._broken: dict[str, _Broken] = {}
        """By digest: the templates whose last render broke a bound."""

    def render(self, digest: str, source: str, variables: Mapping[str, Any]) -> str:
        self._check_rest(digest)
        request = _packed({"id": digest, "variables": variables})
        with self._lock:
            self._check_rest(digest)  # Once more: it may have broken while this one waited its turn.
            with self._watching(digest):
                self._compile(digest, source)
                answer = self._ask(request, SECONDS)
                if "unknown" in answer:  # It keeps the newest templates only.
                    self._known.discard(digest)
                    self._compile(digest, source)
                    answer = self._ask(request, SECONDS)
        return _text(answer)

    def compile(self, digest: str, source: str) -> None:
        self._check_rest(digest)
        with self._lock, self._watching(digest):
            self._compile(digest, source)

    def forget(self) -> None:
        """In a forked process: the child is the parent's, and one of the parent's threads may have held the lock."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.returncode = 0  # Not ours to wait for, and Popen would complain that nobody did.
        self._lock = threading.Lock()
        self._process, self._socket, self._known = None, None, set()

    def _check_rest(self, digest: str) -> None:
        broken = self._broken.get(digest)
        if broken is None or broken.times < 2:
            return
        left = broken.since + REST_SECONDS - self._clock()
        if left > 0:
            raise TemplateFailed(
                f"{broken.words} That happened {broken.times} times in a row; it is tried again in {left:.0f} s."
            )

    @contextmanager
    def _watching(self, digest: str) -> Iterator[None]:
        """Remember a bound that is broken in here; forget the earlier ones when none is."""
        try:
            yield
        except _BoundBroken as error:
            before = self._broken.pop(digest, None)
            while len(self._broken) >= BROKEN_KEPT:
                del self._broken[next(iter(self._broken))]
            self._broken[digest] = _Broken(str(error), before.times + 1 if before else 1, self._clock())
            raise TemplateFailed(str(error)) from error
        self._broken.pop(digest, None)

    def _compile(self, digest: str, source: str) -> None:
        if digest not in self._known:
            _text(self._ask(_packed({"id": digest, "source": source}), SECONDS))
            self._known.add(digest)

    def _ask(self, request: bytes, seconds: float) -> dict[str, str]:
        if self._process is not None and self._process.poll() is not None:
            self._kill()  # It died while nobody asked it anything: not this template's fault.
        if self._socket is None:
            self._start()
        try:
            answer = self._exchange(request, seconds)
        except TimeoutError:
            self._kill()
            raise _BoundBroken(
                f"The model's chat template did not end within {seconds:g} seconds. "
                "Give the model another one: `chat_template` in its manifest."
            ) from None
        except (OSError, ValueError) as error:
            self._kill()
            raise _BoundBroken(
                "The process that renders chat templates broke while rendering, most likely for want of memory. "
                "Shorten the messages, or give the model another template: `chat_template` in its manifest."
            ) from error
        if "memory" in answer:
            raise _BoundBroken(answer["memory"])
        return answer

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        script = Path(__file__).with_name("template_process.py")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(script), str(MEMORY_BYTES), str(OUTPUT_CHARS)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        self._socket = ours
        try:
            self._exchange(b"", START_SECONDS)
        except (OSError, ValueError) as error:
            self._kill()
            raise TemplateFailed(
                f"The process that renders chat templates did not start: {error}. Look at its output above this line."
            ) from error

    def _exchange(self, request: bytes, seconds: float) -> dict[str, str]:
        assert self._socket is not None
        deadline = time.monotonic() + seconds
        self._socket.settimeout(seconds)
        self._socket.sendall(request)
        (size,) = struct.unpack(">I", self._receive(4, deadline))
        answer: dict[str, str] = json.loads(self._receive(size, deadline))
        return answer

    def _receive(self, size: int, deadline: float) -> bytes:
        assert self._socket is not None
        data = bytearray()
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            part = self._socket.recv(size - len(data))
            if not part:
                raise ConnectionError("it ended")
            data += part
        return bytes(data)

    def _kill(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process, self._socket, self._known = None, None, set()


def _environment() -> dict[str, str]:
    """What the interpreter and the clock may need, and nothing of ours: the settings hold keys."""
    environment = os.environ  # noqa: TID251 - handed on, not read
    return {name: environment[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in environment}


def _packed(message: Mapping[str, Any]) -> bytes:
    try:
        data = json.dumps(message, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateFailed(f"The messages cannot be handed to the chat template: {error}") from error
    return struct.pack(">I", len(data)) + data


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not a JSON value")


def _text(answer: dict[str, str]) -> str:
    if "error" in answer:
        raise TemplateFailed(answer["error"])
    return answer["text"]


_CHILD = _Child()
os.register_at_fork(after_in_child=_CHILD.forget)
