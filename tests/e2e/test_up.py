"""`rockchipllama up` for real: one command to a service, and nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from ops.up import listen
from ops.up.store import SOCKET_NAME, server_binary, socket_dir
from tests.stack import LIMIT, Stack, command_of, eventually, free_port, kill_all, lives, variables_of

MANIFEST = 'engine = "echo"\nid = "echo"\ncontext_length = 8192\n[engine_options]\ntokens_per_second = 200.0\n'


class Up:
    """One `rockchipllama up`, what it said, and every process it was ever seen to have."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.folder = folder
        models = folder / "models" / "echo"
        if not models.exists():
            models.mkdir(parents=True)
            (models / "manifest.toml").write_text(MANIFEST)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ops.cli.main", "up", "--port", "0"),
                *("--data-dir", str(folder / "data"), "--models-dir", str(folder / "models"), *arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if not name.startswith("ROCKCHIPLLAMA_")}
            | variables,
            start_new_session=True,
        )
        self.said = ""
        self.family: list[psutil.Process] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line.decode(errors="replace")

    def until_ready(self) -> Up:
        """Wait until it says so, and note its processes."""
        eventually(lambda: "Ctrl-C stops everything." in self.said or self.process.poll() is not None, what="readiness")
        assert self.process.poll() is None, self.said
        self.note_family()
        return self

    def note_family(self) -> None:
        """Remember who belongs to it now."""
        process = psutil.Process(self.process.pid)
        self.family = [process, *process.children(recursive=True)]

    @property
    def curl(self) -> str:
        """The line to try, as it was printed."""
        found = re.search(r"^  (curl .*?'\n)", self.said, re.MULTILINE | re.DOTALL)
        assert found, self.said
        return found[1]

    @property
    def url(self) -> str:
        found = re.search(r"http://127\.0\.0\.1:\d+", self.said)
        assert found, self.said
        return found[0]

    def signal(self, number: int) -> None:
        """As a terminal does it: to the whole process group."""
        os.killpg(self.process.pid, number)

    def ended(self) -> int:
        """Wait for its end; its exit code."""
        code = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        return code

    def left(self) -> list[psutil.Process]:
        """Those of its processes that still live."""
        return [process for process in self.family if lives(process)]

    def valkey_sockets(self) -> list[str]:
        """Sockets that somebody listens on, below its data directory."""
        table = Path("/proc/net/unix").read_text().splitlines()
        return [line.split()[-1] for line in table if str(self.folder) in line]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for one service. Whatever a failed test leaves running in it is ended."""
    yield tmp_path
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = [*(process.info["cmdline"] or []), (process.info["environ"] or {}).get("ROCKCHIPLLAMA_DATA_DIR", "")]
        if process.pid != os.getpid() and any(str(tmp_path) in word for word in words):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def ask(url: str, text: str) -> httpx.Response:
    reply = httpx.post(
        f"{url}/v1/chat/completions",
        json={"model": "echo", "messages": [{"role": "user", "content": text}]},
        timeout=LIMIT,
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == text
    return reply


def test_what_it_prints_works_verbatim(folder: Path) -> None:
    """A few lines say what runs where; the curl line, pasted into a shell, is answered."""
    up = Up(folder).until_ready()
    for words in ("RockchipLlama", "queue   embedded Valkey", f"api     {up.url}", f"models  {folder}/models", "logs"):
        assert words in up.said
    assert "echo on echo 1" in up.said
    if shutil.which("curl") is None and not os.environ.get("CI"):
        pytest.skip("there is no curl here")
    found = subprocess.run(["/bin/sh", "-c", up.curl], capture_output=True, timeout=LIMIT)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["choices"][0]["message"]["content"] == "Why is the sky blue?"
    up.signal(signal.SIGINT)
    assert up.ended() == 0


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.full),
    ],
)
def test_stopping_with_an_open_stream(folder: Path, number: signal.Signals) -> None:
    """The answer in progress may end, then all parts leave in order; code 0, no process, no socket, no traceback."""
    up = Up(folder).until_ready()
    text = "x" * 200  # a second's worth
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": text}]}
    with httpx.stream("POST", f"{up.url}/v1/chat/completions", json=body, timeout=LIMIT) as reply:
        lines = reply.iter_lines()
        assert any('"content":"x' in line for line in lines)
        up.note_family()
        assert len(up.family) >= 6  # itself, Valkey and its guard, API, board, worker and its child
        if number == signal.SIGINT:
            up.signal(number)
        else:
            up.process.send_signal(number)  # as a service manager does: to the one it started
        rest = list(lines)
    assert rest[-2:] == ["data: [DONE]", ""]
    assert up.ended() == 0
    eventually(lambda: not up.left(), what="the end of every process")
    assert up.valkey_sockets() == []
    assert "Stopping." in up.said
    assert "Traceback" not in up.said


@pytest.mark.full
def test_a_second_ctrl_c_hurries(folder: Path) -> None:
    """A long answer is not waited for then; the code is still 0, and nothing is left, in /tmp neither."""
    long = folder / ("x" * 100)  # too long for a socket, which therefore lies elsewhere
    long.mkdir()
    sockets = socket_dir(long)
    assert folder not in sockets.parents
    up = Up(folder, "--data-dir", str(long)).until_ready()
    assert (sockets / SOCKET_NAME).exists()
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "x" * 6000}]}
    with httpx.stream("POST", f"{up.url}/v1/chat/completions", json=body, timeout=LIMIT) as reply:
        lines = reply.iter_lines()
        assert any('"content":"x' in line for line in lines)
        up.note_family()
        up.signal(signal.SIGINT)
        eventually(lambda: "Stopping." in up.said, what="the first Ctrl-C")
        up.signal(signal.SIGINT)
        with contextlib.suppress(httpx.TransportError):
            list(lines)
    assert up.ended() == 0
    eventually(lambda: not up.left(), what="the end of every process")
    assert not sockets.exists()
    assert "Traceback" not in up.said


def test_kill_9_leaves_nothing_and_loses_nothing(folder: Path) -> None:
    """Soon no process is left; the next `up` on the same data directory knows the jobs of the first."""
    first = Up(folder).until_ready()
    job = ask(first.url, "remember me").headers["x-job-id"]
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "x" * 6000}]}
    with httpx.stream("POST", f"{first.url}/v1/chat/completions", json=body, timeout=LIMIT) as reply:
        assert any('"content":"x' in line for line in reply.iter_lines())
        broken = reply.headers["x-job-id"]
        first.note_family()
        first.process.kill()
    first.ended()
    eventually(lambda: not first.left(), what="the end of every process")
    second = Up(folder).until_ready()
    found = httpx.get(f"{second.url}/v1/jobs/{job}", timeout=LIMIT).json()
    assert (found["state"], found["usage"]["completion_tokens"]) == ("finished", len("remember me"))

    def ended() -> bool:
        return httpx.get(f"{second.url}/v1/jobs/{broken}", timeout=LIMIT).json()["state"] in ("failed", "cancelled")

    eventually(ended, what="the end of the job that was cut off")
    ask(second.url, "and on")
    second.signal(signal.SIGINT)
    assert second.ended() == 0
    eventually(lambda: not second.left(), what="the end of every process")


@pytest.mark.full
def test_a_second_up_says_so_in_one_sentence(folder: Path) -> None:
    """On the same data directory and on the same port; code 1, and the first goes on."""
    first = Up(folder).until_ready()
    same_data = Up(folder, "--port", str(free_port()))
    assert same_data.ended() == 1
    port = first.url.rpartition(":")[2]
    same_port = Up(folder, "--port", port, "--data-dir", str(folder / "other"))
    assert same_port.ended() == 1
    for up, words in ((same_data, first.url), (same_port, f"Port {port}")):
        lines = [line for line in up.said.splitlines() if line]
        assert len(lines) == 1, up.said
        assert lines[0].startswith("rockchipllama: ")
        assert words in lines[0]
    ask(first.url, "still here")
    first.signal(signal.SIGINT)
    assert first.ended() == 0


def test_an_absent_redis_is_waited_for_aloud(folder: Path) -> None:
    """It is said at once, with the place and without the password; when it is there, all goes well."""
    port = free_port()
    up = Up(folder, "--redis-url", f"redis://default:sesame@127.0.0.1:{port}/0")
    eventually(lambda: f"Waiting for Redis at 127.0.0.1:{port}" in up.said, what="the news")
    server = [str(server_binary()), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "sesame", "--save", ""]
    with subprocess.Popen(server, cwd=folder, stdout=subprocess.DEVNULL) as valkey:
        try:
            up.until_ready()
            ask(up.url, "at last")
            up.signal(signal.SIGINT)
            assert up.ended() == 0
        finally:
            valkey.terminate()
    assert up.said.count("Waiting for Redis") == 1
    assert "sesame" not in up.said


def test_only_the_api_knows_its_keys_and_the_network_its_address(folder: Path) -> None:
    """What the other parts were started with holds no key; the line to try works from another machine."""
    up = Up(folder, "--host", "0.0.0.0", ROCKCHIPLLAMA_API_KEYS="sesame").until_ready()
    knowing = [process for process in up.family[1:] if "sesame" in variables_of(process).values()]
    assert [command_of(process)[-1] for process in knowing] == ["api"]
    assert any(command_of(process)[-2:] == ["worker", "echo"] for process in up.family)
    found = re.search(r"^  api     (http://\S+)$", up.said, re.MULTILINE)
    assert found, up.said
    with listen.listen("0.0.0.0", 0) as sock:
        assert found[1].rpartition(":")[0] == listen.network_url(sock).rpartition(":")[0]
    assert f"  clients Open WebUI {found[1]}/v1, Home Assistant {found[1]} " in up.said
    assert f"curl {found[1]}/v1/chat/completions" in up.curl
    assert "Bearer YOUR-KEY" in up.curl
    reply = httpx.get(f"{found[1]}/v1/models", headers={"authorization": "Bearer sesame"}, timeout=LIMIT)
    assert reply.json()["data"][0]["id"] == "echo"
    up.signal(signal.SIGINT)
    assert up.ended() == 0


def valkey_of(up: Up) -> psutil.Process:
    """Its embedded Valkey."""
    up.note_family()
    [found] = [process for process in up.family if lives(process) and process.name() == "valkey-server"]
    return found


def test_a_full_disk_ends_what_was_accepted_and_refuses_the_rest(folder: Path) -> None:
    """An answer in progress reaches its end; new requests get 507 with the figures; with room all goes on, and what was done
    meanwhile is on the disk."""
    up = Up(folder).until_ready()
    valkey = valkey_of(up)
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "x" * 1500}]}
    with httpx.stream("POST", f"{up.url}/v1/chat/completions", json=body, timeout=LIMIT) as reply:
        lines = reply.iter_lines()
        assert any('"content":"x' in line for line in lines)
        unlimited = valkey.rlimit(psutil.RLIMIT_FSIZE)
        valkey.rlimit(psutil.RLIMIT_FSIZE, (1, unlimited[1]))
        rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""] and '"finish_reason":"stop"' in "".join(rest)
        job = reply.headers["x-job-id"]
    eventually(lambda: "could not be written" in up.said, what="the news")
    assert up.said.count("could not be written") == 1

    def refused() -> httpx.Response | None:
        tried = httpx.post(f"{up.url}/v1/chat/completions", json={**body, "stream": False}, timeout=LIMIT)
        return tried if tried.status_code == 507 else None

    problem = eventually(refused, what="a refusal")
    assert problem.json()["error"]["code"] == "storage_full" and "MB free" in problem.json()["error"]["message"]
    assert int(problem.headers["retry-after"]) == 30

    valkey.rlimit(psutil.RLIMIT_FSIZE, unlimited)
    eventually(lambda: "requests are accepted" in up.said, what="the news of room")
    ask(up.url, "and on")
    valkey.kill()

    def remembered() -> bool:
        found = httpx.get(f"{up.url}/v1/jobs/{job}", timeout=LIMIT).json()
        return bool(found.get("state") == "finished" and found["usage"]["completion_tokens"] == 1500)

    eventually(lambda: not lives(valkey) and remembered(), what="the record of the answer")
    up.signal(signal.SIGINT)
    assert up.ended() == 0


def keys(*words: str, folder: Path) -> str:
    """What `rockchipllama keys …` says to the service of this data directory."""
    command = [sys.executable, "-m", "ops.cli.main", "keys", *words, "--data-dir", str(folder / "data")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT).stdout


@pytest.mark.full
def test_a_key_made_while_it_runs_locks_the_door_and_opens_the_network(folder: Path) -> None:
    """It is found by the data directory; the next `up` may listen beyond this machine, and is refused that once it is revoked."""
    up = Up(folder).until_ready()
    key = json.loads(keys("create", "me", "--json", folder=folder))["key"]
    eventually(lambda: httpx.get(f"{up.url}/v1/models", timeout=LIMIT).status_code == 401, what="a closed door")
    assert httpx.get(f"{up.url}/v1/models", headers={"x-api-key": key}, timeout=LIMIT).status_code == 200
    up.signal(signal.SIGINT)
    assert up.ended() == 0

    wide = Up(folder, "--host", "0.0.0.0").until_ready()
    assert "Bearer YOUR-KEY" in wide.curl
    assert "me" in keys("revoke", "me", folder=folder)
    wide.signal(signal.SIGINT)
    assert wide.ended() == 0

    refused = Up(folder, "--host", "0.0.0.0")
    assert refused.ended() == 2
    assert "rockchipllama keys create" in refused.said and "Traceback" not in refused.said


def test_a_worker_alone_with_its_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not inherit the API's keys from a board that was started with them; killed hard, it leaves no folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    kept = set(Path("/dev/shm").glob("pymp-*"))
    with Stack({"echo": {}}, default_model="echo", api_keys="sesame") as stack:
        eventually(lambda: stack.state("echo") == "loaded", what="a loaded model")
        worker = stack.worker("echo")
        family = [worker, *worker.children(recursive=True)]
        assert len(family) >= 2
        variables = [found for process in family if (found := variables_of(process))]
        assert not any("sesame" in found.values() for found in variables)
        assert {found["TMPDIR"] for found in variables} == {str(tmp_path)}
        kill_all(family)
        eventually(lambda: not any(map(lives, family)), what="the end of the worker")
        # Its successor may have something for a moment; what was left of it would stay.
        eventually(lambda: list(tmp_path.iterdir()) == [], what="no folder")
        eventually(lambda: set(Path("/dev/shm").glob("pymp-*")) <= kept, what="no shared memory")
