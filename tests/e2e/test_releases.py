"""What earlier releases have left on the disk, opened by this one: jobs in every state, streams, and API keys."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from ops import backup
from tasks.settings import ROOT
from tests.e2e.test_resume import events, text_of
from tests.e2e.test_up import Up
from tests.e2e.test_up import folder as folder
from tests.releases.make import ARCHIVE, NOTE, RELEASES
from tests.stack import LIMIT, eventually

VERSIONS = sorted(found.parent.name for found in RELEASES.glob(f"*/{ARCHIVE}"))


def test_every_release_has_left_its_data() -> None:
    """Whoever makes a release keeps a data directory of it; nobody can make one afterwards."""
    made = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(made) == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_the_data_of_each_release_is_opened(folder: Path, version: str) -> None:
    """Its keys open, or do not any more; what had ended is readable, and the streams that waited, ran or were paused are gone
    on with to their last word, each once."""
    note = json.loads((RELEASES / version / NOTE).read_text())
    jobs: dict[str, dict[str, Any]] = note["jobs"]
    backup.restore(RELEASES / version / ARCHIVE, folder / "data")
    up = Up(folder, ROCKCHIPLLAMA_LEASE="3").until_ready()
    assert "damaged" not in up.said
    with httpx.Client(base_url=up.url, timeout=LIMIT) as http:
        for name, status in (("kept", 200), ("revoked", 401)):
            http.headers["authorization"] = f"Bearer {note['keys'][name]}"
            assert http.get("/v1/models").status_code == status
        http.headers["authorization"] = f"Bearer {note['keys']['kept']}"

        def view(state: str) -> Any:
            return http.get(f"/v1/jobs/{jobs[state]['id']}").json()

        assert {state for state in jobs if view(state)["state"] == state} >= {"finished", "failed"}
        assert view("finished")["usage"]["completion_tokens"] == len(jobs["finished"]["text"])
        assert view("failed")["error"]["code"] == "context_too_long"
        page = http.get(f"/v1/jobs/{jobs['finished']['id']}/events", headers={"accept": "application/json"}).json()
        assert "".join(event.get("text", "") for event in page["data"]) == jobs["finished"]["text"]
        assert page["ended"] and not page["has_more"]

        for state in ("running", "paused", "waiting"):
            with events(up.url, jobs[state]["id"], key=note["keys"]["kept"]) as reading:
                assert text_of(reading.read()) == jobs[state]["text"], state
            assert view(state)["state"] == "finished"
        assert view("paused")["pauses"] >= 1
        body = {"model": "echo", "messages": [{"role": "user", "content": "And on."}]}
        assert http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "And on."
    up.signal(signal.SIGINT)
    assert up.ended() == 0
    eventually(lambda: not up.left(), what="the end of every process")
