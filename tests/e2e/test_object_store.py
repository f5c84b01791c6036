"""Files and batches with an object store behind them: a server of the protocol of S3, installed for this test alone."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.test_batch_load import input_of
from tests.faults.cable import Cable
from tests.installed import install
from tests.stack import LIMIT, Stack, eventually, free_port

ITEMS = 600

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's. At home it is done without when it cannot be fetched."""
    return install("requirements-s3-server.lock", tmp_path_factory.mktemp("s3")) / "moto_server"


@pytest.fixture(scope="module")
def store(program: Path) -> Iterator[str]:
    """Its address, with an empty bucket."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL) as server:
        try:
            eventually(lambda: _put(f"{url}/bucket") == 200, what="an object store")
            yield url
        finally:
            server.kill()


def _put(url: str) -> int:
    try:
        return httpx.put(url, timeout=LIMIT).status_code
    except httpx.TransportError:
        return 0


@pytest.fixture(scope="module")
def cable(store: str) -> Iterator[Cable]:
    """The way to it."""
    cable = Cable(free_port(), int(store.rpartition(":")[2]))
    yield cable
    cable.close()


@pytest.fixture(scope="module")
def stack(cable: Cable) -> Iterator[Stack]:
    """The service, with the bucket for its files."""
    stack = Stack({"echo": {"tokens_per_second": 3000.0}}, files_url="s3://bucket/files")
    stack.preload(
        {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{cable.near}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
    )
    with stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=stack.url + "/v1", api_key="none", max_retries=0)


def test_a_file_lies_in_the_store_until_it_is_deleted(client: openai.OpenAI, stack: Stack, store: str) -> None:
    """Large ones are sent in parts; one that was cut off leaves none of these, nor anything else."""
    data = os.urandom(1_000_000) * 17
    made = client.files.create(file=("large", io.BytesIO(data)), purpose="user_data")
    assert client.files.content(made.id).content == data
    part = httpx.get(f"{stack.url}/v1/files/{made.id}/content", headers={"range": "bytes=16999990-"}, timeout=LIMIT)
    assert (part.status_code, part.content) == (206, data[-10:])
    assert f"files/{made.id}" in httpx.get(f"{store}/bucket", timeout=LIMIT).text
    client.files.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)

    def cut_off() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n' + data
        yield b"\r\n--b\r\n"

    reply = httpx.post(
        f"{stack.url}/v1/files",
        content=cut_off(),
        headers={"content-type": "multipart/form-data; boundary=b"},
        timeout=LIMIT,
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_upload")
    assert "<Key>" not in httpx.get(f"{store}/bucket", timeout=LIMIT).text
    assert "<Upload>" not in httpx.get(f"{store}/bucket?uploads", timeout=LIMIT).text


def test_a_batch_outlives_a_store_that_is_away(client: openai.OpenAI, stack: Stack, store: str, cable: Cable) -> None:
    """Every line is answered once, and of its parts nothing is left but its two files."""
    file = client.files.create(file=("input.jsonl", io.BytesIO(input_of(ITEMS))), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")

    def completed() -> int:
        counts = client.batches.retrieve(batch.id).request_counts
        return counts.completed if counts is not None else 0

    eventually(lambda: completed() > 100, what="some answers")
    cable.cut()
    eventually(lambda: "is interrupted" in stack.log("api"), what="a batch that is interrupted")
    assert completed() < ITEMS
    with pytest.raises(openai.InternalServerError) as refused:
        client.files.content(file.id)
    assert (refused.value.status_code, refused.value.code) == (503, "storage_unavailable")
    cable.mend()
    ended = eventually(
        lambda: (found := client.batches.retrieve(batch.id)).status == "completed" and found, what="the batch's end"
    )
    assert ended.output_file_id is not None
    lines = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(f"item-{number}" for number in range(ITEMS))
    found = httpx.get(f"{store}/bucket", timeout=LIMIT).text
    assert found.count("<Key>") == 2 and ".parts" not in found


def test_who_is_not_let_in_by_the_store_is_told_so(client: openai.OpenAI, stack: Stack, store: str) -> None:
    """The client that its file was not kept, and whoever reads the log why; what is asked of the queue goes on."""
    httpx.post(f"{store}/moto-api/reset-auth", content=b"0", headers={"content-type": "text/plain"}, timeout=LIMIT)
    with pytest.raises(openai.InternalServerError) as refused:
        client.files.create(file=("x", b"x"), purpose="batch")
    assert (refused.value.status_code, refused.value.code) == (503, "storage_unavailable")
    assert "secret" not in str(refused.value)
    assert "InvalidAccessKeyId" in stack.log("api") or "privileges" in stack.log("api")
    assert client.completions.create(model="echo", prompt="Hi", max_tokens=2).choices[0].text
