"""Asks a library for its default parameters, in a process of its own, which the library may crash or hang.

It runs as a script and imports nothing of this project: `python -I probe.py LIBRARY SECONDS`. The answer is one line of
JSON: `{"defaults"}` with the bytes in hexadecimal, or `{"error"}` when the library could not be loaded. After SECONDS it
ends by itself, for whoever asked may be gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import NoReturn

SIZE = 512
"""More than the parameters of any version, so that none writes past the end."""


class Area(ctypes.Structure):
    """Where the parameters are returned to. It is larger than they are, and nobody clears the rest."""

    _fields_ = [("content", ctypes.c_uint8 * SIZE)]


def ask(path: str) -> dict[str, str]:
    """Load the library and call the one function that takes nothing and needs no NPU."""
    try:
        function = ctypes.CDLL(path).rkllm_createDefaultParam
    except (OSError, AttributeError) as error:
        return {"error": str(error)}
    function.restype, function.argtypes = Area, ()
    return {"defaults": bytes(function()).hex()}


def main() -> NoReturn:
    """Answer once."""
    path, seconds = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(seconds)
    answer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # What the library prints is not an answer.
        os.dup2(nowhere, stream)
    ctypes.CDLL(None).clearenv()  # The loader has read its paths; nothing else in there is the library's business.
    os.write(answer, json.dumps(ask(path)).encode())
    os._exit(0)  # Without the library's own way of ending, which may crash too.


if __name__ == "__main__":
    main()
