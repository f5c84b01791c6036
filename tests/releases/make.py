"""Makes the data directory of this release, which every later one must be able to open: `python -m tests.releases.make`.

It is a backup of a service with a job in each state, API keys, and a note of what is in it. Run it once before a release, and
commit what it writes; the folders of earlier releases stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from tasks.version import VERSION
from tests.e2e.test_up import Up
from tests.stack import LIMIT, eventually

RELEASES = Path(__file__).parent
ARCHIVE = "backup.tar.gz"
NOTE = "contents.json"
FOREVER = 3_000_000_000
"""Seconds for which what has ended is kept: longer than any release will be tried."""
SLOW = 'engine = "echo"\nid = "echo"\ncontext_length = 8192\n[engine_options]\ntokens_per_second = 10.0\n'
NAMELESS = "import socket\nsocket.gethostname = lambda: 'board'\n"
"""Of the machine that this runs on nothing is to be left in it."""
TEXT = "{} is an answer that takes a while: " + "".join(f"{place} " for place in range(40))


class Made:
    """A running service of this release, and what it was asked."""

    def __init__(self, up: Up, held: ExitStack) -> None:
        self.up = up
        self.keys = {name: self.cli("keys", "create", name, "--json") for name in ("kept", "revoked")}
        self.cli("keys", "revoke", "revoked")
        self.jobs: dict[str, dict[str, Any]] = {}
        self._held = held
        self._http = httpx.Client(
            base_url=up.url, timeout=LIMIT, headers={"authorization": f"Bearer {self.keys['kept']['key']}"}
        )

    def cli(self, *words: str) -> Any:
        command = [sys.executable, "-m", "ops.cli.main", *words, "--data-dir", str(self.up.folder / "data")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return json.loads(said) if "--json" in words else said

    def view(self, state: str) -> Any:
        return self._http.get(f"/v1/jobs/{self.jobs[state]['id']}").json()

    def whole(self, state: str, text: str) -> None:
        """A job that ends, as `state`."""
        body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
        reply = self._http.post("/v1/chat/completions", json=body)
        self.jobs[state] = {"id": reply.headers["x-job-id"], "text": text if state == "finished" else ""}
        assert self.view(state)["state"] == state

    def stream(self, state: str, **fields: Any) -> None:
        """A job whose client may come back, and has its stream open now."""
        text = TEXT.format(state)
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": text}]} | fields
        headers = {"x-stream-grace": "300s"}
        stream = self._http.stream("POST", "/v1/chat/completions", json=body, headers=headers)
        reply = self._held.enter_context(stream)
        self.jobs[state] = {"id": reply.headers["x-job-id"], "text": text}

    def until_begun(self, state: str) -> None:
        eventually(lambda: self.view(state)["events"] > 10, what=f"a part of the answer of {state}")


def make(folder: Path) -> None:
    """Write both files of this release into `folder`."""
    with tempfile.TemporaryDirectory(prefix="rl-") as name, ExitStack() as held:
        work = Path(name)
        (work / "models" / "echo").mkdir(parents=True)
        (work / "models" / "echo" / "manifest.toml").write_text(SLOW)
        (work / "nameless").mkdir()
        (work / "nameless" / "sitecustomize.py").write_text(NAMELESS)
        up = Up(
            work,
            PYTHONPATH=f"{work / 'nameless'}{os.pathsep}{Path(__file__).parents[2]}",
            ROCKCHIPLLAMA_BOARD_NAME="board",
            ROCKCHIPLLAMA_JOB_TTL=str(FOREVER),
            ROCKCHIPLLAMA_LEASE="3",
        ).until_ready()
        try:
            made = Made(up, held)
            made.whole("finished", "A short answer.")
            made.whole("failed", "x" * 9000)
            made.stream("paused", service_tier="flex")
            made.until_begun("paused")
            made.stream("running")
            made.stream("waiting")
            made.until_begun("running")
            found = {state: made.view(state)["state"] for state in ("paused", "running", "waiting")}
            assert found == {"paused": "queued", "running": "running", "waiting": "queued"}
            assert made.view("paused")["pauses"] == 1
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            made.cli("backup", str(folder / ARCHIVE))
            keys = {name: key["key"] for name, key in made.keys.items()}
            (folder / NOTE).write_text(json.dumps({"jobs": made.jobs, "keys": keys}, indent=1) + "\n")
        finally:
            up.signal(signal.SIGKILL)
            up.ended()


if __name__ == "__main__":
    make(RELEASES / VERSION)
    print(f"wrote {RELEASES / VERSION}")
