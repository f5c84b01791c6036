"""Runs one llama-server in a process of its own, so that whoever uses it can end it in any state and at any moment.

It runs as a script and imports nothing of this project: `python -I host.py`, with a socket as standard input.
The parent sends one line of JSON, `{"path", "socket", "key", "context", "batch", "threads"}`, and is answered with another:
`{"ready": true}` once the model is loaded, or `{"import": WHY}` or `{"load": WHY}`. After that nothing is said on it, and this
process lives for as long as the parent's end is open.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any, NoReturn

SILENT = -1

STACK_BYTES = 64 << 20
"""Of each thread of the library. Many tokenizers go one call deeper with each character of a word, at 350 bytes a call."""


def read_line(connection: socket.socket) -> bytes:
    """What the parent sends first. Leaves the process when the parent is gone."""
    line = bytearray()
    while not line.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part:
            os._exit(0)
        line += part
    return bytes(line)


def leave_with(connection: socket.socket) -> None:
    """From now on the kernel ends this process when the parent's end of the socket closes, however that happens.

    The library keeps Python's lock while it loads, so no thread could do it. SIGKILL needs no lock, and unlike the usual
    SIGIO it ends a stopped process as well. The kernel sends it on whatever happens to the socket, so the parent must not
    write to it any more.
    """
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([connection], [], [], 0)[0]:  # It closed before anybody was told to watch.
        os._exit(0)


def deepen_stacks() -> None:
    """Begin anew with a limit that gives each thread a stack of `STACK_BYTES`; the limit is read when a program begins."""
    if sys.argv[1:] == ["deep"]:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    size = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (size, hard))
    os.execv(sys.executable, [sys.executable, "-I", __file__, "deep"])


def start(asked: dict[str, Any]) -> tuple[dict[str, Any], object]:
    """Load the model and begin to listen. The answer to the parent, and what must be kept."""
    try:
        import xllamacpp  # type: ignore[import-untyped]
    except ImportError as error:
        return {"import": str(error)}, None

    params: Any = xllamacpp.CommonParams()
    params.model.path = asked["path"]
    params.hostnames = [asked["socket"]]
    params.api_keys = [asked["key"]]
    params.n_ctx = asked["context"]
    params.n_batch = params.n_ubatch = asked["batch"]
    params.n_parallel = 1
    params.n_threads_http = 4
    params.ctx_shift = False
    params.cache_ram_mib = 0  # A second cache, of 8 GB by default, for conversations that left the context.
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 4
    params.fit_params = False
    params.warmup = False
    params.ui = False
    params.endpoint_slots = False
    params.slot_save_path = asked["files"]
    params.offline = True
    params.use_jinja = False
    params.enable_chat_template = False  # It would be rendered once at load, unbounded; nothing here uses it.
    params.sse_ping_interval = -1
    params.verbosity = SILENT
    for cores in (params.cpuparams, params.cpuparams_batch):
        cores.n_threads = asked["threads"]
        cores.poll = 0  # It would spin between two steps, on cores that others need.
    try:
        return {"ready": True}, xllamacpp.Server(params)
    except (RuntimeError, MemoryError) as error:
        return {"load": str(error)}, None


def main() -> NoReturn:
    """Serve until the parent closes the socket."""
    # Ctrl-C and a stopping service signal the whole group at once; the parent may still have an answer to finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deepen_stacks()
    connection = socket.socket(fileno=0)
    asked = json.loads(read_line(connection))
    leave_with(connection)
    answer, server = start(asked)
    connection.sendall(json.dumps(answer).encode() + b"\n")
    # Not `recv`: while a thread sleeps in it, the kernel wakes that thread instead of sending the signal.
    select.select([connection], [], [])
    os._exit(0 if server is not None else 1)  # Not `exit`, which would join the server's threads.


if __name__ == "__main__":
    main()
