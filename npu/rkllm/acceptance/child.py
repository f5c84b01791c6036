"""The process of one question: `python -m npu.rkllm.acceptance.child`, the question as JSON on standard input.

What it tells goes to what was its standard output; what the library prints goes to its standard error.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from typing import NoReturn

from npu.errors import NpuError
from npu.rkllm.acceptance.asking import OUR_FAULT
from npu.rkllm.acceptance.material import read_material
from npu.rkllm.acceptance.measures import MEASURES
from npu.rkllm.acceptance.notes import Notes
from npu.rkllm.acceptance.question import UNKNOWN, Unanswered
from npu.rkllm.acceptance.questions import QUESTIONS
from npu.rkllm.loading import LOG_LEVEL, allow_files

GRACE = 5
"""Seconds after which it ends by itself, for whoever asked may be gone."""


def main() -> NoReturn:
    """Ask once."""
    order = json.load(sys.stdin)
    seconds = float(order["seconds"])
    signal.alarm(int(seconds) + GRACE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    allow_files()
    os.putenv(LOG_LEVEL, "0")  # what it prints takes time, and this is measured
    descriptor = os.dup(1)
    os.dup2(2, 1)
    notes = Notes(descriptor, seconds)
    question = next(one for one in (*QUESTIONS, *MEASURES) if one.name == order["name"])
    try:
        notes.answer(question.ask(read_material(order["material"]), notes))
    except (Unanswered, NpuError) as reason:
        notes.note(f"Not answered: {reason}.")
        notes.answer(UNKNOWN)
    except Exception:
        traceback.print_exc()
        os._exit(OUR_FAULT)
    os._exit(0)  # Without the library's own way of ending, which may crash too.


if __name__ == "__main__":
    main()
