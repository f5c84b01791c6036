"""A batch that two API processes may feed, which freeze, die and wake, over a Redis that forgets its last moment."""

from __future__ import annotations

import io
import json
import random
import signal
import time
from typing import Any

import openai
import pytest

from tests.stack import Stack, eventually, free_port

LEASE = 2.0
LINES = 5000


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2])
def test_every_line_is_answered_once_whoever_feeds(seed: int) -> None:
    """Whoever feeds is stopped for longer than its lease, in whatever it does, and goes on when another has taken over."""
    chance = random.Random(seed)
    with Stack({"echo": {"tokens_per_second": 5000.0}}, lease=LEASE) as stack:
        ports = {"api": str(stack.port), "second": str(free_port())}
        stack.spawn("second", "api", port=ports["second"])
        client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=20)
        body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8}
        lines = [
            {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(LINES)
        ]
        data = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
        source = client.files.create(file=("x.jsonl", data), purpose="batch").id
        batch = client.batches.create(input_file_id=source, endpoint="/v1/chat/completions", completion_window="24h").id

        def look() -> Any:
            return client.batches.retrieve(batch)

        eventually(lambda: look().request_counts.completed > 0)
        for turn in range(10):
            name = ("api", "second")[turn % 2]
            time.sleep(chance.uniform(0.2, 1.0))
            what = chance.choice(["freeze", "freeze", "kill", "forget"])
            print(f"{seed}: {what} {name}")
            if what == "freeze":
                stack.process(name).send_signal(signal.SIGSTOP)
                time.sleep(LEASE + chance.uniform(0.5, 6.0))
                stack.process(name).send_signal(signal.SIGCONT)
            elif what == "kill":
                stack.kill(name)
                stack.spawn(name, "api", port=ports[name])
            else:
                moment = stack.moment()
                time.sleep(chance.uniform(0.1, 1.0))
                stack.forget_since(moment)
        eventually(lambda: look().status == "completed", limit=250, what="the end of the batch")
        counts = look().request_counts
        text = client.files.content(look().output_file_id).text
    got = sorted(int(json.loads(line)["custom_id"][1:]) for line in text.splitlines())
    assert got == list(range(LINES))
    assert (counts.total, counts.completed, counts.failed) == (LINES, LINES, 0)
