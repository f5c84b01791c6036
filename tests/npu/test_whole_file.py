"""Files that are whole or not there."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from npu.whole_file import set_aside, write_whole


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    """On a full disk what was there stays, and no draft is left."""
    path = tmp_path / "facts.json"
    write_whole(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError):
            write_whole(path, b"new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_every_damaged_one_is_kept(tmp_path: Path) -> None:
    """Under its own name, however many there are in one second."""
    path = tmp_path / "facts.json"
    names = set()
    for turn in range(3):
        path.write_text(str(turn))
        names.add(set_aside(path))
    assert len(names) == 3 and not path.exists()
    assert {name.read_text() for name in names} == {"0", "1", "2"}
    assert all(name.name.startswith("facts.json.damaged-") for name in names)
