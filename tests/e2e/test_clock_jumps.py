"""The clock of the machine jumps under the whole service: of Redis, API, board and workers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.fakes.jumping_clock import AGES, HOUR, JumpingClock
from tests.stack import LIMIT, Stack, eventually


def test_jumps_end_no_answer_and_keep_none_waiting(tmp_path: Path) -> None:
    """The one that runs comes whole and undivided, the one that waits comes after it, and new ones as ever."""
    clock = JumpingClock(tmp_path)
    stack = Stack({"echo": {"tokens_per_second": 60.0}}, default_model="echo", lease=3, deadline=300)
    stack.preload(clock.environment)
    with stack, ThreadPoolExecutor() as pool:

        def ask(text: str) -> httpx.Response:
            body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
            return httpx.post(f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT)

        eventually(lambda: stack.state("echo") == "loaded", what="a loaded model")
        text = "".join(chr(ord("a") + place % 26) for place in range(500))
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": text}]}
        jumps = [AGES, -AGES, HOUR, -HOUR - AGES]
        with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT) as reply:
            job, got, waiting = reply.headers["x-job-id"], "", None
            for line in reply.iter_lines():
                if '"content":"' in line:
                    got += line.split('"content":"')[1].split('"')[0]
                    if waiting is None:
                        waiting = pool.submit(ask, "waits")
                    if jumps and len(got) >= 100 * (5 - len(jumps)):
                        clock.jump(jumps.pop(0))
            assert line == "" and got == text
        assert waiting is not None
        answer = waiting.result(LIMIT)
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == "waits"
        assert ask("and on").status_code == 200
        view = httpx.get(f"{stack.url}/v1/jobs/{job}", timeout=LIMIT).json()
        assert (view["state"], view["attempts"]) == ("finished", 1)
        assert "Traceback" not in stack.log("api") + stack.log("board")
