"""Five models of different size share a small board under random requests, with real workers and weights."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import httpx
import pytest

from npu.catalog import find_models
from npu.engines import describe
from tasks.prompting.setup import setup_of
from tasks.settings import TaskSettings
from tests.stack import Stack

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

CONTEXTS = (512, 1024, 2048, 4096, 8192)
SECONDS = 600.0
TOTAL, RESERVE = 900, 0.1
"""MiB of the simulated board, which has room for two or three of the five."""
LEAST_STAY = 5.0


def weights() -> Path:
    """The demo model's."""
    found = sorted(Path("models/smollm2-135m-instruct").glob("*.gguf"))
    if not found:
        pytest.skip("there is no demo model; `rockchipllama models fetch-demo` gets it")
    return found[0]


def test_every_request_is_answered_within_the_budget() -> None:
    """For ten minutes. Each model stays its least time, so there are no more loads than that and the room allow."""
    gguf = weights()
    stack = Stack({}, memory_total=TOTAL, memory_reserve=RESERVE, least_stay=LEAST_STAY)
    for context in CONTEXTS:
        folder = stack.folder / "models" / f"m{context}"
        folder.mkdir()
        shutil.copy(gguf, folder)
        (folder / "manifest.toml").write_text(f'id = "m{context}"\ncontext_length = {context}\n')
    setup = setup_of(TaskSettings())
    sizes = {m.id: describe(m, setup).memory_bytes >> 20 for m in find_models(stack.folder / "models").models}
    assert sum(sizes.values()) > TOTAL
    with stack:
        begun = time.monotonic()

        def ask(seed: int) -> list[int]:
            draw, codes = Random(seed), []
            with httpx.Client(base_url=stack.url, timeout=300) as http:
                while time.monotonic() - begun < SECONDS:
                    body = {
                        "model": draw.choice(sorted(sizes)),
                        "max_tokens": 8,
                        "messages": [{"role": "user", "content": "Hello"}],
                    }
                    codes.append(http.post("/v1/chat/completions", json=body).status_code)
                    time.sleep(draw.random() * 2)
            return codes

        loads, most, before = 0, 0, set[str]()
        with ThreadPoolExecutor(3) as pool:
            clients = [pool.submit(ask, seed) for seed in range(3)]
            while not all(client.done() for client in clients):
                now = {model for model in sizes if stack.has_worker(model)}
                loads, before = loads + len(now - before), now
                most = max(most, sum(sizes[model] for model in now))
                assert most <= TOTAL * (1 - RESERVE)
                time.sleep(0.2)
            lasted = time.monotonic() - begun
            codes = [code for client in clients for code in client.result()]
        assert set(codes) == {200}
        fit = len(sizes)  # never more at once
        assert loads <= fit * (lasted / LEAST_STAY + 1)
        assert loads <= len(codes) + 1
        print(f"{len(codes)} answers, {loads} loads, at most {most} MiB of {TOTAL * (1 - RESERVE):.0f}")
