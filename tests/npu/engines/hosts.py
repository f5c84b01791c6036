"""The process of an engine's llama-server, as tests look at it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil

from npu.engine import TextEngine
from npu.engines.llamacpp.engine import LlamaCppEngine

WAIT = 60.0
"""Seconds granted to what takes milliseconds, so that a busy machine fails nothing."""


def host(engine: TextEngine) -> int:
    """The id of the server's process."""
    assert isinstance(engine, LlamaCppEngine) and engine._server is not None
    return engine._server._process.pid


def kill_host(engine: TextEngine) -> None:
    """Kill the server's process, and wait until it is gone."""
    assert isinstance(engine, LlamaCppEngine) and engine._server is not None
    engine._server._process.kill()
    engine._server._process.wait(WAIT)


def stop(pid: int) -> None:
    """Stop a process, and wait until each of its threads stands still."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + WAIT
    while any(
        (task / "stat").read_text().rpartition(")")[2].split()[0] != "T" for task in Path(f"/proc/{pid}/task").iterdir()
    ):
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        time.sleep(0.01)


def wait_until_gone(pid: int) -> None:
    """Wait until the process runs no more; nobody may have been there to bury it."""
    deadline = time.monotonic() + WAIT
    while psutil.pid_exists(pid):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)
