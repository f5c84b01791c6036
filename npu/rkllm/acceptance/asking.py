"""Puts a question to the library in a process of its own, and makes an answer of whatever becomes of that process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from npu.rkllm.abi import family_of
from npu.rkllm.acceptance.material import Material
from npu.rkllm.acceptance.notes import Row
from npu.rkllm.acceptance.question import CRASHED, INAPPLICABLE, UNKNOWN, Question

LAST_LINES = 4
"""Of what a process printed before it crashed."""
LINE_CHARACTERS = 300
OUR_FAULT = 101
"""Exit code of a process that failed in our own code, where the library may call exit() with any of its own."""
_MODULE = "npu.rkllm.acceptance.child"
_PATH = re.compile(r"(?:/[^/\s'\":,\]\[()]+)+")


class Ended(StrEnum):
    """What became of the process of a question."""

    ANSWERED = "answered"
    CRASHED = "crashed"
    LATE = "late"
    """It was ended for want of time."""
    BROKEN = "broken"
    """It failed in our own code."""
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one question."""

    name: str
    answer: str
    """Empty for a measurement that went well."""
    ended: Ended
    evidence: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0


def ask(question: Question, material: Material, environment: Mapping[str, str], most: float = 1e9) -> Found:
    """Ask within the time the question may take, at most `most` seconds. `environment` is that of its process."""
    if not question.applies(family_of(material.runtime).CAPABILITIES):
        return Found(question.name, INAPPLICABLE, Ended.NOT_ASKED, ("This family of runtimes cannot be asked.",))
    seconds = min(question.seconds, most)
    order = json.dumps({"name": question.name, "seconds": seconds, "material": asdict(material)}).encode()
    begun = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        child = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            env=dict(environment),
            start_new_session=True,
        )
        late = False
        try:
            told, _ = child.communicate(order, timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
            os.killpg(child.pid, signal.SIGKILL)
            told, _ = child.communicate()
        except BaseException:  # It has a session of its own, so a Ctrl-C would leave it running.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        return _judge(question, told, None if late else child.returncode, printed, time.monotonic() - begun, seconds)


def _judge(question: Question, told: bytes, status: int | None, printed: IO[bytes], took: float, limit: float) -> Found:
    """`status` None is a process that was late."""
    said: dict[str, list[object]] = {"note": [], "row": [], "crash_means": [], "answer": []}
    for line in told.splitlines():
        try:
            (item,) = json.loads(line).items()
        except ValueError:
            continue  # the last one, cut short by the end of the process
        said[item[0]].append(item[1])
    evidence = [str(note) for note in said["note"]]
    rows = tuple(row for row in said["row"] if isinstance(row, dict))
    meant = str(said["crash_means"][-1]) if said["crash_means"] else ""
    if said["answer"]:
        answer, ended = str(said["answer"][-1]), Ended.ANSWERED
    elif status is None:
        answer, ended = UNKNOWN, Ended.LATE
        evidence.append(f"It did not end within {limit:.0f} s.")
    elif status == OUR_FAULT:
        answer, ended = UNKNOWN, Ended.BROKEN
        evidence += _last_words(printed)
    else:
        answer, ended = meant or CRASHED, Ended.CRASHED
        how = signal.strsignal(-status) if status < 0 else f"exit code {status}"
        evidence += [f"The library ended the process ({how}).", *_last_words(printed)]
    return Found(question.name, answer, ended, tuple(evidence), rows, round(took, 2))


def _last_words(printed: IO[bytes]) -> list[str]:
    """What it printed last; of each path its last part, for the rest is its owner's business."""
    printed.seek(0)
    lines = [line.strip() for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    return [f"It printed: {without_folders(line)[:LINE_CHARACTERS]}" for line in lines[-LAST_LINES:]]


def without_folders(text: str) -> str:
    """The same, with no more than the last part of each path in it."""
    return _PATH.sub(lambda found: Path(found[0]).name, text)
