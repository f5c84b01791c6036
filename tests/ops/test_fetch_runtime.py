"""Fetching the vendor's library, from a server on this machine and from checkouts made of files."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from npu.rkllm.abi import v1_2_1, v1_3_0
from npu.rkllm.evidence import NAME
from npu.rkllm.library import find_library
from ops.fetch_runtime import CHECKOUT, LIBRARIES, RECORD, FetchFailed, Library, fetch, find, main
from tasks.board.pull.download import digest
from tests.fakes.file_server import FileServer, serving
from tests.npu.rkllm.libraries import library as compile_library
from tests.npu.rkllm.tables import CC

HERE = platform.machine()
needs_cc = pytest.mark.skipif(CC is None, reason="there is no C compiler")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving("librkllmrt.so") as one:
        yield one


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_library(tmp_path_factory.mktemp("newest"), v1_3_0).read_bytes()


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_library(tmp_path_factory.mktemp("older"), v1_2_1).read_bytes()


def wanted(server: FileServer, sha256: str | None = None, machine: str = HERE, version: str = "1.3.0") -> Library:
    return Library(version, machine, server.url, sha256)


get = partial(fetch, pause=0.0)


@needs_cc
def test_a_library_is_fetched_once_and_found_by_the_engine(
    server: FileServer, newest: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no digest is listed, it is printed and recorded; the second call downloads nothing."""
    server.content = newest
    path = get(wanted(server), tmp_path)
    assert path.read_bytes() == newest
    assert find_library(None, tmp_path, pinned=tmp_path / "none", root=tmp_path, loader=["true"]) == path
    said = capsys.readouterr().out
    assert "trusted this once" in said and digest(path) in said and "It is librkllmrt.so 1.3.0" in said
    row = json.loads((tmp_path / RECORD).read_text())[f"1.3.0/{HERE}"]
    assert row == {"sha256": digest(path), "from": server.url}
    assert get(wanted(server), tmp_path) == path
    assert len(server.asked) == 1
    assert [entry.name for entry in path.parent.iterdir()] == [NAME]


@needs_cc
def test_a_cut_download_goes_on_where_it_ended(server: FileServer, newest: bytes, tmp_path: Path) -> None:
    """Within one call, and in the next call when the first gave up."""
    server.content, server.cuts = newest, [1000, 500]
    assert get(wanted(server), tmp_path).read_bytes() == newest
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]
    server.asked.clear()
    server.cuts = [700, 0, 0, 0, 0, 0]
    with pytest.raises(FetchFailed, match="goes on from there"):
        get(wanted(server, version="1.2.3"), tmp_path / "two")
    server.cuts = []
    with pytest.raises(FetchFailed, match=r"is not librkllmrt\.so 1\.2\.3"):
        get(wanted(server, version="1.2.3"), tmp_path / "two")
    assert server.asked[-1] == "bytes=700-"
    assert not list((tmp_path / "two").rglob(f"{NAME}*")), "nothing that was refused stays"


@needs_cc
def test_a_changed_file_is_refused(server: FileServer, newest: bytes, tmp_path: Path) -> None:
    """The digest of the first time counts, also after the file itself was deleted."""
    server.content = newest
    path = get(wanted(server), tmp_path)
    path.unlink()
    server.content = newest + b"\0"
    with pytest.raises(FetchFailed, match=r"recorded when it was first fetched .*It was deleted"):
        get(wanted(server), tmp_path)
    assert not path.exists()
    server.content = newest
    assert get(wanted(server), tmp_path) == path


@needs_cc
def test_a_listed_digest_is_held_to(
    server: FileServer, newest: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The right one is verified, another refused."""
    server.content = newest
    with pytest.raises(FetchFailed, match=r"libraries.toml lists 0{64}"):
        get(wanted(server, "0" * 64), tmp_path)
    checkout = tmp_path / NAME
    checkout.write_bytes(newest)
    get(wanted(server, digest(checkout)), tmp_path)
    assert "Verified" in capsys.readouterr().out


@needs_cc
def test_a_digest_that_is_asked_for_is_held_to(
    tmp_path: Path, newest: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is given, or `listed`: then a release without one in the table is refused, and not trusted this once."""
    table = tmp_path / "libraries.toml"
    table.write_text(LIBRARIES.read_text() + f'\n[[library]]\nversion = "1.3.0"\nmachine = "{HERE}-test"\nat = "x"\n')
    own = tmp_path / NAME
    own.write_bytes(newest)
    words = ["1.3.0", "--machine", f"{HERE}-test", "--from", str(own), "--data-dir", str(tmp_path / "data"), "--sha256"]
    for asked, sentence in (
        ("listed", "lists no digest of release 1.3.0"),
        ("", "no SHA-256"),
        ("0" * 64, f"--sha256 asks for {'0' * 64}"),
    ):
        assert main([*words, asked], table) == 1
        assert sentence in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob(f"{NAME}*"))
    assert main([*words, digest(own).upper()], table) == 0
    assert f"Verified: SHA-256 {digest(own)}" in capsys.readouterr().out


@needs_cc
def test_the_wrong_release_is_refused_and_what_was_there_stays(
    server: FileServer, newest: bytes, older: bytes, tmp_path: Path
) -> None:
    """It is asked for its version before it gets its name."""
    server.content = older
    path = tmp_path / "1.3.0" / HERE / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(newest)
    with pytest.raises(FetchFailed, match=r"is not librkllmrt\.so 1\.3\.0"):
        get(wanted(server), tmp_path)
    assert path.read_bytes() == newest


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>Not here</html>", "web page"),
        (b"", "empty"),
    ],
)
def test_what_is_no_library_is_refused_with_a_sentence(
    server: FileServer, tmp_path: Path, content: bytes, sentence: str
) -> None:
    """And nothing is left that the next call would go on from."""
    server.content = content
    with pytest.raises(FetchFailed, match=sentence):
        get(wanted(server), tmp_path)
    assert not list(tmp_path.rglob(f"{NAME}*"))


def test_a_file_that_is_not_there(server: FileServer, tmp_path: Path) -> None:
    """The server's answer and the other way are named."""
    server.code = 404
    with pytest.raises(FetchFailed, match=r"404.*--from PATH"):
        get(wanted(server), tmp_path)


@needs_cc
def test_a_library_for_another_machine_is_refused(server: FileServer, newest: bytes, tmp_path: Path) -> None:
    """This machine's library does not pass for a 32-bit board's."""
    server.content = newest
    with pytest.raises(FetchFailed, match="not for armhf"):
        get(wanted(server, machine="armhf"), tmp_path)


@needs_cc
@pytest.mark.parametrize("inside", [f"{CHECKOUT}/{HERE}/{NAME}", f"{HERE}/{NAME}", NAME])
def test_a_checkout_of_ones_own(tmp_path: Path, newest: bytes, inside: str) -> None:
    """The repository, its folder of libraries, or the file; a copy is made, and nobody is asked."""
    own = tmp_path / "own" / inside
    own.parent.mkdir(parents=True)
    own.write_bytes(newest)
    source = own if inside == NAME else tmp_path / "own"
    path = get(Library("1.3.0", HERE, "http://127.0.0.1:1/", None), tmp_path / "data", source)
    own.unlink()
    assert path.read_bytes() == newest


def test_a_checkout_without_it(tmp_path: Path) -> None:
    """Each place is named."""
    with pytest.raises(FetchFailed, match=CHECKOUT):
        get(Library("1.3.0", "aarch64", "http://127.0.0.1:1/", None), tmp_path / "data", tmp_path)


def test_the_table_lists_every_release_that_is_supported() -> None:
    """For aarch64; the address of each names the commit or tag."""
    for abi_version in (*v1_2_1.RUNTIMES, *v1_3_0.RUNTIMES, "1.1.0", "1.1.4", "1.2.0", "1.2.1b1"):
        library = find(abi_version, "aarch64")
        assert library.url.startswith("https://github.com/airockchip/rknn-llm/raw/")
        assert library.url.endswith(f"{CHECKOUT}/aarch64/{NAME}")
    assert find("1.3.0", "armhf").machine == "armhf"


@pytest.mark.parametrize(
    ("version", "machine", "sentence"),
    [
        ("1.0.2", "aarch64", "1.0.x are not supported"),
        ("9.9.9", "aarch64", r"There are 1\.1\.0, .*1\.3\.0"),
        ("1.1.0", "armhf", r"There are 1\.2\.1,"),
        ("1.3.0", "sparc", "simulator"),
        ("9.9.9", "sparc", r"no release 9\.9\.9\."),
    ],
)
def test_what_is_not_published(version: str, machine: str, sentence: str) -> None:
    """The sentence says what there is instead."""
    with pytest.raises(FetchFailed, match=sentence):
        find(version, machine)


@needs_cc
def test_the_command(tmp_path: Path, newest: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """Into the data directory; a failure is a sentence and exit code 1."""
    table = tmp_path / "libraries.toml"
    table.write_text(LIBRARIES.read_text() + f'\n[[library]]\nversion = "1.3.0"\nmachine = "{HERE}-test"\nat = "x"\n')
    own = tmp_path / NAME
    own.write_bytes(newest)
    words = ["v1.3.0", "--machine", f"{HERE}-test", "--from", str(own), "--data-dir", str(tmp_path / "data")]
    assert main(words, table) == 0
    assert (tmp_path / "data/runtime/1.3.0" / f"{HERE}-test" / NAME).read_bytes() == newest
    assert main(["1.0.0", "--machine", "aarch64", "--data-dir", str(tmp_path)]) == 1
    assert "1.0.x are not supported" in capsys.readouterr().err


@needs_cc
@pytest.mark.skipif(HERE == "aarch64", reason="it is this machine's own")
def test_for_a_board_on_another_machine(tmp_path: Path, newest: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """Its kind of code is checked, and that its version was not is said."""
    own = tmp_path / NAME
    own.write_bytes(newest[:18] + (183).to_bytes(2, "little") + newest[20:])
    table = tmp_path / "libraries.toml"
    table.write_text(LIBRARIES.read_text().replace("sha256 =", "# sha256 ="))
    words = ["1.3.0", "--machine", "aarch64", "--from", str(own), "--data-dir", str(tmp_path / "data")]
    assert main(words, table) == 0
    assert (tmp_path / "data/runtime/1.3.0/aarch64" / NAME).is_file()
    assert "could not be checked on this machine" in capsys.readouterr().out
    assert main(["1.3.0", "--machine", "armhf", *words[3:]], table) == 1
    assert "is for aarch64, not for armhf" in capsys.readouterr().err
