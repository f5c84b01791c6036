"""`rockchipllama backup` and `restore`, on files that a real Valkey writes meanwhile."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis

from ops import environment
from ops.backup import BackupRefused, backup, restore
from ops.cli import backup as cli
from ops.program import program
from ops.up.append_only import File, read_manifest
from ops.up.errors import AlreadyRunning
from ops.up.lock import DataDirLock
from ops.up.store import FOLDER, MANIFEST, SOCKET_NAME, server_binary, socket_dir
from tasks.connection import connect
from tests.stack import eventually


@contextmanager
def valkey(data_dir: Path, writes: str = "yes", sock: Path | None = None) -> Iterator[redis.Redis]:
    """A server on the files of a data directory."""
    sock = sock or data_dir / "s"
    folder = data_dir / "valkey"
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--port", "0", "--dir", str(folder), "--appendonly", writes, "--aof-load-truncated", "no", "--save", ""]
    command = [str(server_binary()), *options, "--unixsocket", str(sock)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        client = connect(f"unix://{sock}")

        def answers() -> bool:
            assert server.poll() is None
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

        try:
            eventually(answers, what="Valkey")
            yield client
        finally:
            server.kill()


def test_what_was_acknowledged_is_in_it_while_more_comes_and_files_are_replaced(tmp_path: Path) -> None:
    """Ten backups under writing and rewriting: each opens, and has all that was there when it began."""
    written = 0
    over = threading.Event()
    with valkey(tmp_path / "from") as client:

        def write() -> None:
            nonlocal written
            while not over.is_set():
                client.eval("redis.call('SET', KEYS[1], 1) redis.call('SET', KEYS[1] .. 'b', 1)", 1, f"k{written + 1}")
                written += 1
                if written % 50 == 0 and not client.info("persistence")["aof_rewrite_in_progress"]:
                    client.bgrewriteaof()

        writing = threading.Thread(target=write)
        writing.start()
        begun = []
        try:
            for turn in range(10):
                eventually(lambda turn=turn: written >= 30 * (turn + 1), what="some writes")
                begun.append(written)
                backup(tmp_path / "from", None, tmp_path / f"{turn}.tar.gz")
        finally:
            over.set()
            writing.join()
    assert (tmp_path / "0.tar.gz").stat().st_mode & 0o777 == 0o600
    for turn in (0, 3, 6, 9):
        restore(tmp_path / f"{turn}.tar.gz", tmp_path / f"to{turn}")
        with valkey(tmp_path / f"to{turn}") as client:
            assert client.exists(*(f"k{index}" for index in range(1, begun[turn] + 1))) == begun[turn]
            assert client.dbsize() % 2 == 0


@pytest.mark.parametrize("look", [1, 2])
def test_files_that_are_replaced_at_the_worst_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """After the list was read, or after the files were opened: those of one moment are kept."""
    with valkey(tmp_path / "from") as client:
        client.set("kept", 1)
        looks = 0

        def read_and_replace(manifest: Path) -> list[File] | None:
            nonlocal looks
            looks += 1
            if looks != look:
                return read_manifest(manifest)
            before = read_manifest(manifest)
            client.bgrewriteaof()
            eventually(lambda: not (manifest.parent / "appendonly.aof.1.incr.aof").exists(), what="other files")
            return before if look == 1 else read_manifest(manifest)

        monkeypatch.setattr("ops.backup.read_manifest", read_and_replace)
        backup(tmp_path / "from", None, tmp_path / "a.tar.gz")
        monkeypatch.undo()
        assert looks > 2
    assert restore(tmp_path / "a.tar.gz", tmp_path / "to") == []
    with valkey(tmp_path / "to") as client:
        assert client.get("kept") == b"1"


def test_half_a_command_at_the_end_is_cut_off(tmp_path: Path) -> None:
    """The last bytes may have been written while they were read."""
    command = b"*3\r\n$3\r\nSET\r\n$4\r\nkept\r\n$1\r\n1\r\n"
    (tmp_path / "a.tar.gz").write_bytes(packed(LISTED, (*INCREMENT[:2], command + command[:20])))
    [said] = restore(tmp_path / "a.tar.gz", tmp_path / "to")
    assert "the last 20 of its 50 bytes could not be read" in said
    with valkey(tmp_path / "to") as client:
        assert client.get("kept") == b"1"


def test_by_command_with_the_settings(tmp_path: Path) -> None:
    """It says where the settings are; nothing of another time is mixed in."""
    (tmp_path / "mine.toml").write_text("queue_limit = 7\n")
    with valkey(tmp_path / "from") as client:
        client.set("kept", 1)

        def run(*words: str) -> str:
            command = [sys.executable, "-m", "ops.cli.main", *words, "--config", str(tmp_path / "mine.toml")]
            return subprocess.run(
                command, env=environment.for_child({}), capture_output=True, text=True, check=True
            ).stdout

        archive = str(tmp_path / "a.tar.gz")
        assert "keep it as you keep those" in run("backup", archive, "--data-dir", str(tmp_path / "from"))
    said = run("restore", archive, "--data-dir", str(tmp_path / "to"))
    assert str(tmp_path / "to/rockchipllama.toml") in said
    assert (tmp_path / "to/rockchipllama.toml").read_text() == "queue_limit = 7\n"
    assert sorted(path.name for path in (tmp_path / "to/valkey").iterdir()) == [FOLDER]
    with valkey(tmp_path / "to") as client:
        assert client.get("kept") == b"1"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with valkey(tmp_path / "from") as client:
        client.set("kept", 1)
        backup(tmp_path / "from", None, tmp_path / "a.tar.gz")
    return tmp_path / "a.tar.gz"


def test_nothing_is_overwritten(archive: Path, tmp_path: Path) -> None:
    """Neither a backup, nor a queue, nor one that a service uses; and what is not there is not kept."""
    with pytest.raises(BackupRefused, match="there already"):
        backup(tmp_path / "from", None, archive)
    with pytest.raises(BackupRefused, match="Move that folder away"):
        restore(archive, tmp_path / "from")
    with pytest.raises(BackupRefused, match="no queue to be kept"):
        backup(tmp_path / "empty", None, tmp_path / "b.tar.gz")
    with DataDirLock(tmp_path / "used"), pytest.raises(AlreadyRunning):
        restore(archive, tmp_path / "used")
    assert not (tmp_path / "b.tar.gz").exists() and not (tmp_path / "used/valkey").exists()


def test_what_is_in_memory_alone_is_refused(archive: Path, tmp_path: Path) -> None:
    """Files of an earlier time are no backup of what runs now; once it stands, they are kept."""
    with valkey(tmp_path / "from", "no", socket_dir(tmp_path / "from") / SOCKET_NAME) as client:
        client.set("unkept", 1)
        with pytest.raises(BackupRefused, match="in memory alone"):
            backup(tmp_path / "from", None, tmp_path / "b.tar.gz")
    assert not list(tmp_path.glob("*b.tar.gz*"))
    backup(tmp_path / "from", None, tmp_path / "b.tar.gz")


def test_one_that_writes_again_is_waited_for(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a full disk the files are of an earlier time until all is written anew, though Valkey says that it writes."""
    with valkey(tmp_path / "from", sock=socket_dir(tmp_path / "from") / SOCKET_NAME) as client:
        client.mset({f"k{index}": 1 for index in range(100)})
        client.config_set("appendonly", "no")
        client.set("later", 1)
        client.config_set("rdb-key-save-delay", 10_000_000)  # microseconds
        client.config_set("appendonly", "yes")
        with monkeypatch.context() as patched:
            patched.setattr("ops.backup.REWRITE_PATIENCE", 0.1)
            with pytest.raises(BackupRefused, match="earlier time until that is done"):
                backup(tmp_path / "from", None, tmp_path / "b.tar.gz")

        def goes_on(_: float) -> None:
            monkeypatch.undo()
            client.config_set("rdb-key-save-delay", 0)
            [writer] = psutil.Process(client.info("server")["process_id"]).children()
            writer.kill()  # Valkey begins anew, at once and without that delay

        monkeypatch.setattr("ops.backup.time.sleep", goes_on)
        backup(tmp_path / "from", None, tmp_path / "b.tar.gz")
    restore(tmp_path / "b.tar.gz", tmp_path / "to")
    with valkey(tmp_path / "to") as client:
        assert client.get("later") == b"1"


def test_the_files_of_batches_are_in_it(tmp_path: Path) -> None:
    """All but drafts; none that is there already is overwritten, and the queue's folder has none of them."""
    files = tmp_path / "from/files"
    files.mkdir(parents=True)
    for name in ("file-in", "file-out", ".file-draft"):
        (files / name).write_text(name)
    with valkey(tmp_path / "from") as client:
        client.set("kept", 1)
        backup(tmp_path / "from", None, tmp_path / "a.tar.gz")
    (tmp_path / "to/files").mkdir(parents=True)
    (tmp_path / "to/files/file-out").write_text("file-out, and more")
    restore(tmp_path / "a.tar.gz", tmp_path / "to")
    brought = {path.name: path.read_text() for path in (tmp_path / "to/files").iterdir()}
    assert brought == {"file-in": "file-in", "file-out": "file-out, and more"}
    assert not (tmp_path / "to/valkey" / FOLDER / "files").exists()
    with valkey(tmp_path / "to") as client:
        assert client.get("kept") == b"1"


def packed(*members: tuple[str, bytes, bytes]) -> bytes:
    """An archive of (name, type, content)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


LISTED = (MANIFEST, tarfile.REGTYPE, b"file appendonly.aof.1.incr.aof seq 1 type i\n")
INCREMENT = ("appendonly.aof.1.incr.aof", tarfile.REGTYPE, b"")


@pytest.mark.parametrize(
    "content",
    [
        b"no archive",
        packed(),
        packed(LISTED),
        packed(LISTED, INCREMENT, ("more", tarfile.REGTYPE, b"")),
        packed(LISTED, INCREMENT, INCREMENT),
        packed(LISTED, INCREMENT, ("../rockchipllama.toml", tarfile.REGTYPE, b"")),
        packed(LISTED, INCREMENT, ("rockchipllama.toml", tarfile.SYMTYPE, b"")),
        packed(LISTED, INCREMENT, ("files/../x", tarfile.REGTYPE, b"")),
        packed(LISTED, ("appendonly.aof.1.incr.aof", tarfile.REGTYPE, os.urandom(9000)))[:5000],
    ],
    ids=["none", "empty", "incomplete", "more", "twice", "outside", "link", "outside-files", "cut"],
)
def test_what_is_no_backup_is_refused(tmp_path: Path, content: bytes) -> None:
    """In one sentence, and nothing is left of it."""
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(BackupRefused, match=r"a\.tar\.gz") as refused:
        restore(tmp_path / "a.tar.gz", tmp_path / "to")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "to/valkey").exists()
    assert not (tmp_path / "rockchipllama.toml").exists()


def test_what_is_typed_next_names_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`up` alone would begin another service, without what was brought back."""
    monkeypatch.setenv("ROCKCHIPLLAMA_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("ops.backup.restore", lambda *_: [])
    cli.restore(tmp_path / "a.tar.gz")
    assert f"`{program()} up` goes on" in capsys.readouterr().out
    cli.restore(tmp_path / "a.tar.gz", data_dir=tmp_path / "my data")
    assert f"`{program()} up --data-dir '{tmp_path}/my data'` goes on" in capsys.readouterr().out
