"""A board's runtime is changed while it answers, with two releases of the simulated library installed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import threading

import httpx
import pytest

from npu.rkllm.evidence import NAME
from npu.simulator import Profile, SimulatedModel, build
from tests.simulators import SIMULATORS
from tests.stack import LIMIT, Stack, eventually

pytestmark = pytest.mark.full


def install(stack: Stack, version: str) -> None:
    """As `ops/fetch-runtime` does."""
    place = stack.folder / "data" / "runtime" / version / platform.machine() / NAME
    place.parent.mkdir(parents=True)
    shutil.copy(build(version, SIMULATORS), place)


def runtime(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.main", "runtime", *words, "--url", stack.url],
        env={name: value for name, value in os.environ.items() if not name.startswith("ROCKCHIPLLAMA_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT * 2,
    )


def ask(stack: Stack, tokens: int) -> str:
    body = {"model": "m", "max_tokens": tokens, "messages": [{"role": "user", "content": "tell me more"}]}
    reply = httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT * 2)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def version(stack: Stack) -> str:
    return str(httpx.get(f"{stack.url}/v1/models/m", timeout=LIMIT).json()["meta"]["engine_version"])


def test_a_runtime_is_changed_under_way() -> None:
    """The answer in hand goes on behind it and is the same; a release that cannot run the model leaves all as it was."""
    stack = Stack({}, worker_grace=1, default_model="m")
    stack.add_simulated("m", SimulatedModel(profile=Profile(decode_tps=10)))
    stack.add_simulated("pair", SimulatedModel(), "[engine_options]\nn_batch = 2")
    for release in ("1.1.4", "1.2.3", "1.3.0"):
        install(stack, release)
    with stack:
        whole = ask(stack, 200)
        assert version(stack) == "RKLLM runtime 1.3.0"
        answers: list[str] = []
        client = threading.Thread(target=lambda: answers.append(ask(stack, 200)))
        client.start()
        eventually(lambda: stack.state("m") == "busy", what="the answer")
        changed = httpx.post(f"{stack.url}/v1/boards/test-board/runtime", json={"version": "1.2.3"}, timeout=LIMIT * 2)
        assert changed.status_code == 200, changed.text
        assert {"version": "1.2.3", "before": "1.3.0", "tried": ["m"]}.items() <= changed.json().items()
        client.join(LIMIT)
        assert answers == [whole]
        assert "job handed back" in stack.log("board")  # it was under way
        eventually(lambda: version(stack) == "RKLLM runtime 1.2.3", what="its card")
        refused = runtime(stack, "use", "1.1.4", "--model", "pair")
        assert refused.returncode == 1 and "stays with 1.2.3" in refused.stderr, refused
        assert ask(stack, 200) == whole
        assert version(stack) == "RKLLM runtime 1.2.3"
        used = runtime(stack, "use", "1.3.0")
        assert used.stdout == "'test-board' uses the runtime 1.3.0, and had 1.2.3. It was tried with m.\n", used
        listed = runtime(stack, "list").stdout
        assert listed == "test-board: 1.3.0 (installed: 1.3.0, 1.2.3, 1.1.4)\n"
