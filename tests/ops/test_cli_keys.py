"""`rockchipllama keys`."""

from __future__ import annotations

import json
import subprocess
import sys

import redis

from ops import environment


def run(*words: str, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.cli.main", "keys", *words, "--redis-url", url],
        env=environment.for_child({}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_key_is_made_listed_and_revoked(client: redis.Redis, valkey_url: str) -> None:
    """The key itself is shown once, by the command that made it."""
    made = run("create", "open-webui", "--scope", "inference", "--scope", "admin", "--json", url=valkey_url)
    shown = json.loads(made.stdout)
    assert shown["key"].startswith("rl-") and shown["scopes"] == ["admin", "inference"]
    assert shown.keys() == {"object", "id", "name", "scopes", "created", "limits", "key"}  # as /v1/keys tells it
    listed = run("list", url=valkey_url).stdout
    assert "open-webui" in listed and shown["id"] in listed and shown["key"] not in listed
    assert "opens nothing any more" in run("revoke", "open-webui", url=valkey_url).stdout
    assert json.loads(run("list", "--json", url=valkey_url).stdout) == []


def test_a_wrong_scope_and_a_taken_name_are_sentences(client: redis.Redis, valkey_url: str) -> None:
    """Exit code 2 for what was typed wrongly, 1 for what cannot be done."""
    wrong = run("create", "x", "--scope", "everything", url=valkey_url)
    assert wrong.returncode == 2 and "inference, batch, admin" in wrong.stderr
    assert run("create", "0123456789ab", url=valkey_url).returncode == 2  # as an id is
    first = run("create", "x", url=valkey_url)
    assert first.returncode == 0 and "Clients need a key now" in first.stderr and "--scope admin" in first.stderr
    taken = run("create", "x", url=valkey_url)
    assert taken.returncode == 1 and "already" in taken.stderr and "Traceback" not in taken.stderr


def test_without_a_service_it_says_what_to_start(tmp_path: object) -> None:
    """A password in the address is not shown."""
    away = run("list", url="redis://:secret@127.0.0.1:1/0")
    assert away.returncode == 1
    assert "Start the service first" in away.stderr and "secret" not in away.stderr
