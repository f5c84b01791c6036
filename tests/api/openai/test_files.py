"""Files: uploaded, listed, read and deleted by the official client, over a real server and a real Valkey."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
import redis

from api import object_storage
from api.object_storage import ObjectStorage
from api.storage import NEW, LocalStorage, Storage
from tasks import api_keys, keys
from tasks.api_keys import Scope
from tasks.files import new_file_id
from tasks.settings import TaskSettings
from tests.api.site import RealWorld, Site, site
from tests.stack import LIMIT, eventually

MOST = 2_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of the server."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def place(valkey_url: str, folder: Path) -> Iterator[Site]:
    """The server."""
    with site(RealWorld(TaskSettings(redis_url=valkey_url, data_dir=folder)), drain=0, max_file=MOST) as running:
        yield running


@pytest.fixture
def client(place: Site, client: redis.Redis) -> openai.OpenAI:
    """The official client, and no files there."""
    return openai.OpenAI(base_url=place.url + "/v1", api_key="none", max_retries=0)


def kept(folder: Path) -> list[str]:
    """What lies in the storage."""
    return sorted(path.name for path in (folder / "files").glob("*")) + sorted(
        path.name for path in (folder / "files").glob(".*")
    )


def test_a_file_comes_back_as_it_was_uploaded(client: openai.OpenAI, folder: Path) -> None:
    """Whatever its bytes; and once it is deleted there is nothing left of it."""
    data = bytes(range(256)) * 4000 + b"\r\n--end"
    made = client.files.create(file=("Grüße.jsonl", io.BytesIO(data)), purpose="user_data")
    assert (made.bytes, made.filename, made.purpose, made.expires_at) == (len(data), "Grüße.jsonl", "user_data", None)
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == data
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)
    assert made.id not in kept(folder)


def test_lists_are_turned_page_by_page(client: openai.OpenAI) -> None:
    """By the client's own pages, in both orders, of one purpose or all."""
    ids = [client.files.create(file=(f"{n}", b"x"), purpose="batch").id for n in range(5)]
    other = client.files.create(file=("o", b"x"), purpose="evals").id
    assert [file.id for file in client.files.list(purpose="evals")] == [other]
    listed = [file.id for file in client.files.list(limit=2, order="asc", purpose="batch")]
    assert sorted(listed) == sorted(ids)
    assert [file.id for file in client.files.list(limit=2, order="desc", purpose="batch")] == listed[::-1]
    for wrong in ({"limit": 0}, {"limit": "x"}, {"order": "up"}, {"after": "file-none"}):
        with pytest.raises(openai.BadRequestError):
            client.get("/files", options={"params": wrong}, cast_to=object)


def test_batch_files_go_after_a_month_unless_asked_otherwise(client: openai.OpenAI) -> None:
    """As OpenAI's do."""
    made = client.files.create(file=("a", b"x"), purpose="batch")
    assert made.expires_at == made.created_at + 30 * 24 * 3600
    made = client.files.create(
        file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    with pytest.raises(openai.BadRequestError, match="3600"):
        client.files.create(file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 5})


def test_what_is_no_upload_is_refused(place: Site, client: openai.OpenAI, folder: Path) -> None:
    """In words that say what is missing, and nothing is kept of it."""
    before = kept(folder)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a", b"x"), purpose="fun")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="nothing is trained here"):
        client.files.create(file=("a", b"x"), purpose="fine-tune")
    with pytest.raises(openai.APIStatusError, match="larger than 2000000") as caught:
        client.files.create(file=("a", b"x" * (MOST + 1)), purpose="batch")
    assert caught.value.status_code == 413

    def post(body: bytes, kind: str = "multipart/form-data; boundary=B") -> tuple[int, str]:
        reply = httpx.post(place.url + "/v1/files", content=body, headers={"content-type": kind}, timeout=LIMIT)
        return reply.status_code, reply.json()["error"]["message"]

    part = b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nhello\r\n'
    for body, kind, words in (
        (b"{}", "application/json", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=B", "no part 'file'"),
        (part + b"--B--\r\n", "multipart/form-data; boundary=B", "'purpose'"),
        (part + part + b"--B--\r\n", "multipart/form-data; boundary=B", "two files"),
        (part, "multipart/form-data; boundary=B", "cut off"),
        (b"nonsense" * 10, "multipart/form-data; boundary=B", "no multipart"),
    ):
        status, message = post(body, kind)
        assert status == 400
        assert words in message
    assert kept(folder) == before


def test_a_gigabyte_is_refused_before_it_comes(place: Site, folder: Path) -> None:
    """By what its client says of its length."""
    before = kept(folder)
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=B\r\n"
        b"Content-Length: 1000000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", place.port), timeout=LIMIT) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert kept(folder) == before


def test_a_client_that_leaves_in_the_middle_leaves_nothing(place: Site, folder: Path) -> None:
    """The bytes that had come are dropped with it."""
    before = kept(folder)
    connection = socket.create_connection(("127.0.0.1", place.port))
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=B\r\n"
        b"Content-Length: 1000000\r\n\r\n"
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + b"x" * 100_000
    )
    connection.sendall(head)
    eventually(lambda: kept(folder) != before, what="its draft")
    connection.close()
    eventually(lambda: kept(folder) == before, what="the draft's end")


def test_a_storage_that_fails_is_no_missing_file(client: openai.OpenAI, folder: Path) -> None:
    """Whoever asks for its bytes, or has it deleted, is told to come again."""
    made = client.files.create(file=("a", b"x"), purpose="user_data")
    path = folder / "files" / made.id
    path.unlink()
    path.mkdir()
    for act in (client.files.content, client.files.delete):
        with pytest.raises(openai.InternalServerError) as refused:
            act(made.id)
        assert (refused.value.status_code, refused.value.code) == (503, "storage_unavailable")
    path.rmdir()
    with pytest.raises(openai.NotFoundError):
        client.files.content(made.id)
    assert client.files.delete(made.id).deleted


def test_a_full_disk_refuses_files(client: openai.OpenAI, valkey_url: str) -> None:
    """With the words that `up` has for it."""
    redis.Redis.from_url(valkey_url).set(keys.REFUSAL, "Only 3 MB are free.", ex=60)
    with pytest.raises(openai.APIStatusError, match="Only 3 MB") as caught:
        client.files.create(file=("a", b"x"), purpose="batch")
    assert caught.value.status_code == 507


def test_files_belong_to_the_key_that_made_them(client: openai.OpenAI, valkey_url: str, tmp_path: Path) -> None:
    """Others do not even learn that they exist; administrators see all."""
    book = redis.Redis.from_url(valkey_url)
    plain = {
        name: api_keys.create(book, name, scopes)[1]
        for name, scopes in {
            "one": [Scope.BATCH],
            "other": [Scope.BATCH],
            "admin": [Scope.BATCH, Scope.ADMIN],
            "none": [Scope.INFERENCE],
        }.items()
    }
    with site(RealWorld(TaskSettings(redis_url=valkey_url, data_dir=tmp_path)), drain=0) as place:
        one, other, admin, none = (
            openai.OpenAI(base_url=place.url + "/v1", api_key=key, max_retries=0) for key in plain.values()
        )
        made = one.files.create(file=("a", b"x"), purpose="batch")
        assert [file.id for file in one.files.list()] == [made.id]
        assert list(other.files.list()) == []
        for act in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                act(made.id)
        assert admin.files.retrieve(made.id).id == made.id
        with pytest.raises(openai.PermissionDeniedError):
            none.files.list()


def storages(folder: Path) -> dict[str, Callable[[], Storage]]:
    """Every kind of storage over an empty folder, as often as it is opened."""
    (folder / "objects").mkdir()
    return {
        "local": lambda: LocalStorage(folder / "files"),
        "objects": lambda: ObjectStorage((folder / "objects").as_uri()),
    }


async def read(storage: Storage, name: str, start: int = 0) -> bytes:
    """The bytes of a file."""
    return b"".join([chunk async for chunk in storage.read(name, start)])


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["local", "objects"])
async def test_a_storage_keeps_files(tmp_path: Path, kind: str) -> None:
    """Whole or not at all, read from any place, until they are deleted."""
    storage = storages(tmp_path)[kind]()

    async def chunks(*parts: bytes | Exception) -> AsyncIterator[bytes]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    big = bytes(range(256)) * 4096
    assert await storage.create("f", chunks(b"he", b"", b"llo", big)) == 5 + len(big)
    assert await read(storage, "f") == b"hello" + big
    assert await read(storage, "f", 3) == b"lo" + big
    assert await read(storage, "f", 5 + len(big)) == b""
    with pytest.raises(ZeroDivisionError):
        await storage.create("g", chunks(b"half", ZeroDivisionError()))
    for missing in ("g", "h"):
        with pytest.raises(FileNotFoundError):
            await read(storage, missing)
    await storage.delete("f")
    await storage.delete("f")
    with pytest.raises(FileNotFoundError):
        await read(storage, "f")


async def ours() -> None:
    """The file is this process'."""


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["local", "objects"])
async def test_storage_goes_on_behind_what_is_known_to_be_good(tmp_path: Path, kind: str) -> None:
    """What a process that died wrote behind it is dropped; a hole is never made."""
    opened = storages(tmp_path)[kind]
    storage = opened()
    await storage.append("f", 0, b"one\n", ours)
    await storage.append("f", 4, b"two, but not committed\n", ours)
    await storage.append("f", 27, b"nor this\n", ours)
    storage = opened()
    await storage.append("f", 4, b"two\n", ours)
    await storage.append("f", 8, b"three\n", ours)
    for _ in range(3):
        assert await read(storage, "f") == b"one\ntwo\nthree\n"
        assert await read(storage, "f", 6) == b"o\nthree\n"
        await storage.seal("f", 14, ours)
    await storage.delete("f")
    storage = opened()
    await storage.append("f", 0, b"one\n", ours)
    await storage.append("f", 4, b"two\n", ours)
    with pytest.raises(OSError, match="bytes"):
        await storage.append("f", 9, b"x", ours)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["local", "objects"])
async def test_a_file_ends_where_it_is_said_to(tmp_path: Path, kind: str) -> None:
    """What was written behind that by a process that died is in no file."""
    storage = storages(tmp_path)[kind]()
    await storage.append("f", 0, b"one\n", ours)
    await storage.append("f", 4, b"not counted\n", ours)
    await storage.seal("f", 4, ours)
    assert await read(storage, "f") == b"one\n"


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["local", "objects"])
async def test_whoever_was_replaced_writes_nothing(tmp_path: Path, kind: str) -> None:
    """Neither when it asks first, nor, in an object store, when it froze behind the question."""
    opened = storages(tmp_path)[kind]
    zombie, storage = opened(), opened()

    async def replaced() -> None:
        raise ZeroDivisionError

    await zombie.append("f", 0, b"one\n", ours)
    await storage.append("f", 4, b"two\n", ours)
    for call in (zombie.append("f", 4, b"X", replaced), zombie.seal("f", 4, replaced)):
        with pytest.raises(ZeroDivisionError):
            await call
    if kind == "objects":
        with pytest.raises(OSError, match="exists"):
            await zombie.append("f", 4, b"X", ours)
    assert await read(storage, "f") == b"one\ntwo\n"


@pytest.mark.anyio
async def test_a_file_of_many_parts_stays_whose_it_is_while_it_is_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes longer than a lease; whoever is replaced meanwhile breaks off, and the next one does it."""
    monkeypatch.setattr(object_storage, "HELD", 0.0)
    storage = storages(tmp_path)["objects"]()
    for place in range(20):
        await storage.append("f", 4 * place, b"one\n", ours)
    asked = 0

    async def replaced() -> None:
        nonlocal asked
        asked += 1
        if asked == 10:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await storage.seal("f", 80, replaced)
    assert not (tmp_path / "objects" / "f").exists()
    await storage.seal("f", 80, ours)
    assert (tmp_path / "objects" / "f").read_bytes() == b"one\n" * 20
    assert [path.name for path in (tmp_path / "objects").rglob("*") if path.is_file()] == ["f"]


@pytest.mark.anyio
async def test_a_file_that_goes_meanwhile_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft that gets its name is looked at when it is there no more; what is to be dropped behind it is dropped."""
    storage, old = LocalStorage(tmp_path), [new_file_id() for _ in range(3)]
    for name in old:
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (0, time.time() - NEW - 60))
    is_file, seen = Path.is_file, list[Path]()

    def goes(path: Path) -> bool:
        found = is_file(path)
        if not seen:
            path.unlink()
        seen.append(path)
        return found

    monkeypatch.setattr(Path, "is_file", goes)
    await storage.tidy(())
    assert len(seen) == 3 and os.listdir(tmp_path) == []


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["local", "objects"])
async def test_what_nobody_knows_is_dropped_once_it_is_old(tmp_path: Path, kind: str) -> None:
    """Drafts of killed processes and parts as well; what is new may be on its way, and what is not named as files are here
    lies in the same place for others."""
    storage = storages(tmp_path)[kind]()
    folder = tmp_path / {"local": "files", "objects": "objects"}[kind]
    known, unknown, new, draft = (new_file_id() for _ in range(4))
    parts = [f"{unknown}.parts/{0:015}"] if kind == "objects" else [f".{draft}"]
    for name in (known, unknown, new, *parts, "thesis.odt", "mail/inbox"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
        if name != new:
            os.utime(folder / name, (0, time.time() - NEW - 60))
    await storage.tidy({known})
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {known, new, "thesis.odt", "mail/inbox"}
