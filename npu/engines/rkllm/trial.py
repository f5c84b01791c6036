"""Tries a release of the library with a model before anything depends on it, in a process of its own.

That process is `python -m npu.engines.rkllm.trial`, its order JSON on standard input. It loads the model and tries it out
as its first load does; what that shows is kept apart from what is known of the model with the library in use.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from npu.catalog import find_models
from npu.engines import Setup, open_engine
from npu.engines.rkllm.facts import Loaded, read_loaded, suspicion
from npu.errors import NpuError
from npu.model import Model
from npu.rkllm.parent_death import end_with
from npu.self_test import Verdict

_FOLDERS = ".trial-"
"""Begins the names of folders that trials are in, and no model's."""
SECONDS = 300.0
"""Gigabytes come from a card in that time, and the self-test takes five."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it."""

    problem: str
    """Why the model cannot be used with this release; empty when it can."""
    loaded: Loaded | None = None
    """What the load told."""


def try_out(
    model: Model, models_dir: Path, library: Path, version: str, setup: Setup, seconds: float = SECONDS
) -> Trial:
    """Load the model with that library, within `seconds`; `setup` is the one of now.

    Text that is suspect counts as a problem where it is not so with the library of now.
    """
    with tempfile.TemporaryDirectory(prefix=_FOLDERS, dir=setup.runtime_dir) as folder:
        trial = replace(setup, runtime_dir=Path(folder), rkllm_library=str(library), rkllm_version=version)
        problem = _ask(model, models_dir, trial, seconds)
        if problem:
            return Trial(problem)
        loaded = read_loaded(_tried(model), trial)
    doubt = suspicion(model, loaded) if loaded is not None else None
    before = read_loaded(model, setup)
    was_suspect = before is not None and before.self_test is not None and before.self_test.text is Verdict.SUSPECT
    return Trial("" if doubt is None or was_suspect else doubt, loaded)


def clear_trials(runtime_dir: Path) -> None:
    """Remove what is left of trials whose asker was killed; none may be under way. Raises `OSError`."""
    for left in runtime_dir.glob(f"{_FOLDERS}*"):
        shutil.rmtree(left)


def _ask(model: Model, models_dir: Path, setup: Setup, seconds: float) -> str:
    order = {
        "models_dir": str(models_dir),
        "model": model.id,
        "runtime_dir": str(setup.runtime_dir),
        "context_length": setup.context_length,
        "model_memory": setup.model_memory,
        "library": setup.rkllm_library,
        "version": setup.rkllm_version,
        "seconds": seconds,
        "asker": os.getpid(),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        told, _ = child.communicate(json.dumps(order).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"{model.id} was not loaded and tried out within {seconds:.0f} s."
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    try:
        return str(json.loads(told)["problem"])
    except (ValueError, KeyError):
        status = child.returncode
        how = signal.strsignal(-status) if status < 0 else f"exit code {status}"
        return f"The library ended the process that loaded {model.id} with it ({how})."


def _tried(model: Model) -> Model:
    """The model as it is tried: with a self-test in any case, and without a file of what it has read."""
    return replace(model, engine_options={**model.engine_options, "self_test": 1}, cached_system_prompt=None)


def main() -> NoReturn:
    """Load it once, and say what came of that."""
    order = json.load(sys.stdin)
    # Once whoever asked is gone, others load models where this one would be.
    end_with(order["asker"])
    signal.alarm(int(order["seconds"]) + 5)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = os.dup(1)
    os.dup2(2, 1)  # what the library prints is no answer
    setup = Setup(
        runtime_dir=Path(order["runtime_dir"]),
        context_length=order["context_length"],
        model_memory=order["model_memory"],
        rkllm_library=order["library"],
        rkllm_version=order["version"],
    )
    try:
        model = find_models(Path(order["models_dir"])).find(order["model"])
        problem = f"The model {order['model']} is gone." if model is None else ""
        if model is not None:
            open_engine(_tried(model), setup)
    except NpuError as error:
        problem = str(error)
    os.write(answer, json.dumps({"problem": problem}).encode())
    os._exit(0)  # without the library's own way of ending, which may crash too


if __name__ == "__main__":
    main()
