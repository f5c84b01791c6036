"""Which process loads what: each entry point is imported in a fresh interpreter, and what came along is read.

import-linter sees imports that are written; this also sees those made by string.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ops import environment
from tasks.settings import ROOT

WEB = ("fastapi", "starlette", "uvicorn", "sse_starlette")
ENGINES = ("xllamacpp", "tokenizers")
TRACES = ("opentelemetry.sdk.trace", "opentelemetry.exporter")
LOADS = "import importlib, json, sys; importlib.import_module(sys.argv[1]); print(json.dumps(sorted(sys.modules)))"

NEVER = {
    "api.server": (*TRACES, "npu", "tasks.worker", "tasks.board", "tasks.prompting", "ops", *ENGINES),
    "api.app": (*TRACES, "npu", "tasks.worker", "tasks.board", "tasks.prompting", "ops", *ENGINES),
    "tasks.worker.entry": (*TRACES, "api", "ops", "tasks.board", *WEB),
    "tasks.board.agent": ("api", "ops", "tasks.worker.generate", "tasks.worker.slot", "xllamacpp", *WEB),
    "tasks.queue": ("api", "ops", "npu", "tasks.worker", "tasks.board", "tasks.prompting", *WEB, *ENGINES),
    "npu.engines": ("api", "ops", "tasks", "celery", "kombu", "redis", "msgspec", "pydantic", "xllamacpp", *WEB),
    "npu.catalog": ("api", "ops", "tasks", "celery", "kombu", "redis", "msgspec", "pydantic", "xllamacpp", *WEB),
    "ops.up.service": ("celery", "kombu", "redis", "npu", "tasks.worker", "tasks.board.agent", *WEB, *ENGINES),
}
"""An entry point, and what a process that starts there must not hold."""


def loaded_by(module: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", LOADS, module],
        env=environment.for_child({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return set(found)


@pytest.mark.parametrize("entry", NEVER)
def test_an_entry_point_loads_only_what_its_process_needs(entry: str) -> None:
    """Memory, start time and the arrows between packages all depend on it."""
    loaded = loaded_by(entry)
    assert not {name for name in NEVER[entry] if name in loaded}


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_only_the_bindings_touch_c() -> None:
    """ctypes stays inside npu/rkllm and npu/rknn."""
    bindings = (ROOT / "npu/rkllm", ROOT / "npu/rknn")
    outside = [
        path for path in sources("api", "tasks", "npu", "ops") if not any(path.is_relative_to(b) for b in bindings)
    ]
    assert [str(path) for path in outside if "ctypes" in imported(path)] == []


def test_nothing_imports_ops() -> None:
    """It may import all, and is imported by none."""
    for path in sources("api", "tasks", "npu"):
        assert not any(name == "ops" or name.startswith("ops.") for name in imported(path)), path


def test_every_module_says_what_it_holds() -> None:
    """One sentence at the top."""
    silent = [
        path for path in sources("api", "tasks", "npu", "ops") if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert [str(path.relative_to(ROOT)) for path in silent] == []
