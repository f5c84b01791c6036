"""What many boards on one Redis answer together, at the pace of an RK3588: figures are printed, shares are judged."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest

from tests.stack import LIMIT, Stack, eventually

pytestmark = pytest.mark.full

PACE = 30.0
"""Tokens per second of one board, as an RK3588 has them with a small model; an echo's token is a byte."""
ANSWER = "x" * 90
WINDOW = 15.0
"""Seconds in which tokens are counted, once every board is at work."""


class Rack:
    """Boards of one model on one Redis, each a worker with a name and a data directory of its own."""

    def __init__(self, stack: Stack, paces: list[float]) -> None:
        self.stack = stack
        self.paces = paces
        for number, pace in enumerate(paces):
            home = stack.folder / f"board{number}"
            manifest = home / "models" / "rack" / "manifest.toml"
            manifest.parent.mkdir(parents=True)
            manifest.write_text(
                f'engine = "echo"\nid = "rack"\ncontext_length = 8192\n[engine_options]\ntokens_per_second = {pace}\n'
            )
            stack.spawn(
                f"board{number}",
                "worker",
                "rack",
                board_name=f"board{number}",
                data_dir=str(home / "data"),
                models_dir=str(home / "models"),
            )
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._tokens = 0
        self.wrong: list[str] = []
        """Answers that were not whole."""
        self._clients = [threading.Thread(target=self._ask_on) for _ in range(2 * len(paces) + 2)]

    def start(self) -> None:
        """Have more clients ask than there are boards, and wait until every board is at work."""
        eventually(lambda: self._at_work() is not None, what="the boards are there")
        for client in self._clients:
            client.start()
        eventually(lambda: self._at_work() == len(self.paces), what="every board is at work")

    def close(self) -> None:
        """Ask no more, and wait for what was asked."""
        self._over.set()
        for client in self._clients:
            if client.ident is not None:
                client.join(LIMIT)

    def rate(self) -> float:
        """Tokens per second that reach clients during the window."""
        before, began = self._tokens, time.monotonic()
        self._over.wait(WINDOW)
        return (self._tokens - before) / (time.monotonic() - began)

    @contextmanager
    def frozen(self, number: int) -> Iterator[None]:
        """One board stands still, and keeps its connections."""
        process = psutil.Process(self.stack.process(f"board{number}").pid)
        family = [process, *process.children(recursive=True)]
        for each in family:
            each.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGCONT)

    def _at_work(self) -> int | None:
        found = httpx.get(f"{self.stack.url}/v1/queue", timeout=LIMIT).json()["data"]
        [running] = [queue["running"] for queue in found if len(queue["boards"]) == len(self.paces)] or [None]
        return running

    def _ask_on(self) -> None:
        body = {"model": "rack", "stream": True, "messages": [{"role": "user", "content": ANSWER}]}
        while not self._over.is_set():
            said = ""
            with httpx.stream("POST", f"{self.stack.url}/v1/chat/completions", json=body, timeout=2 * LIMIT) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        text = json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                        said += text
                        with self._lock:
                            self._tokens += len(text)
            if said != ANSWER:
                self.wrong.append(said)


@contextmanager
def rack(paces: list[float]) -> Iterator[Rack]:
    """One that answers."""
    with Stack({}, board=False, worker_grace=1) as stack:
        made = Rack(stack, paces)
        try:
            made.start()
            yield made
        finally:
            made.close()
    assert not made.wrong


@pytest.fixture(scope="module")
def alone() -> float:
    """What one board answers."""
    with rack([PACE]) as one:
        return one.rate()


@pytest.mark.parametrize("boards", [2, 4, 8, 16])
def test_boards_answer_together_what_they_answer_alone(alone: float, boards: int) -> None:
    """The queue between them costs next to nothing."""
    with rack([PACE] * boards) as many:
        rate = many.rate()
    print(f"{boards} boards: {rate:.1f} tokens/s, {rate / (boards * alone):.3f} of {boards} times {alone:.1f}")
    assert rate > 0.9 * boards * alone


def test_unequal_boards_share_by_their_speed(alone: float) -> None:
    """A slow one is never waited for, and does what it can."""
    with rack([PACE, PACE / 3]) as two:
        rate = two.rate()
    print(f"3:1 boards: {rate:.1f} tokens/s, {rate / (alone * 4 / 3):.3f} of the sum {alone * 4 / 3:.1f}")
    assert rate > 0.9 * alone * 4 / 3


def test_one_of_eight_that_freezes_costs_its_own_share(alone: float) -> None:
    """The others go on meanwhile; its answer goes on elsewhere, whole."""
    with rack([PACE] * 8) as many, many.frozen(0):
        rate = many.rate()
    print(f"one of 8 boards frozen: {rate:.1f} tokens/s, {rate / (8 * alone):.3f} of {8 * alone:.1f}")
    assert rate > 0.8 * 8 * alone
