"""Where the library is looked for, in which order, and what is said when it is nowhere."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from npu.errors import ModelRefused, RuntimeNotFound
from npu.rkllm.library import NAME, find_library

SILENT = ("true",)
"""A loader that knows no libraries."""


class Machine:
    """A tree of its own, with every place a library may lie in."""

    def __init__(self, folder: Path) -> None:
        self.pinned = folder / "project"
        self.fetched = folder / "data/runtime"
        self.root = folder / "root"

    def put(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        return path

    def find(self, explicit: str | None = None, loader: tuple[str, ...] = SILENT) -> Path:
        return find_library(explicit, self.fetched, pinned=self.pinned, root=self.root, loader=loader)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_order(machine: Machine, tmp_path: Path) -> None:
    """Each place counts when those before it are empty."""
    elsewhere = machine.put(tmp_path / "opt" / NAME)
    knows = tmp_path / "ldconfig"
    knows.write_text(
        f"#!/bin/sh\necho '\t{NAME}.1 (libc6) => /nowhere/{NAME}'\necho '\t{NAME} (libc6) => {elsewhere}'\n"
    )
    knows.chmod(0o755)
    loader = (str(knows),)
    assert machine.find(loader=loader) == elsewhere
    for place in (
        machine.root / "usr/local/lib" / NAME,
        machine.root / "usr/lib/aarch64-linux-gnu" / NAME,
        machine.root / "usr/lib" / NAME,
        machine.fetched / "1.2.1b1" / NAME,
        machine.pinned / "1.2.1b1" / NAME,
        machine.pinned / "1.2.1" / platform.machine() / NAME,
        machine.fetched / "1.2.3" / NAME,
        machine.pinned / "1.3.0" / NAME,
        machine.fetched / "v1.10.0" / NAME,
    ):
        machine.put(place)
        assert machine.find(loader=loader) == place
    named = machine.put(tmp_path / "mine.so")
    assert machine.find(str(named), loader) == named


def test_folders_that_are_no_versions_are_left_alone(machine: Machine) -> None:
    """Tables and leftovers lie there, too."""
    for name in ("abi", "latest", "1.3", "1.3.0.part"):
        machine.put(machine.pinned / name / NAME)
    (machine.pinned / "1.3.0").mkdir()
    with pytest.raises(RuntimeNotFound):
        machine.find()


def test_nowhere_is_a_list_of_places_and_what_to_do(machine: Machine) -> None:
    """All of them, and the commands."""
    with pytest.raises(RuntimeNotFound) as refused:
        machine.find(loader=("/no/such/ldconfig", "-p"))
    text = str(refused.value)
    assert isinstance(refused.value, ModelRefused)
    for place in (
        machine.pinned / "VERSION" / NAME,
        machine.fetched / "VERSION" / NAME,
        machine.root / "usr/lib" / NAME,
        machine.root / "usr/lib/aarch64-linux-gnu" / NAME,
        machine.root / "usr/local/lib" / NAME,
        "/no/such/ldconfig -p",
        "ops/fetch-runtime 1.3.0",
        "ROCKCHIPLLAMA_RKLLM_LIBRARY=/path/to/librkllmrt.so",
        "ROCKCHIPLLAMA_RKLLM_LIBRARY=simulator",
    ):
        assert str(place) in text


def test_a_named_one_is_never_replaced_by_another(machine: Machine, tmp_path: Path) -> None:
    """Who named a library does not want whatever else lies about."""
    machine.put(machine.pinned / "1.3.0" / NAME)
    for named in (str(tmp_path / "missing.so"), str(tmp_path / "nul\0.so")):
        with pytest.raises(RuntimeNotFound, match="ROCKCHIPLLAMA_RKLLM_LIBRARY names"):
            machine.find(named)


def test_a_folder_may_be_named(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that holds the file, or a checkout of the vendor's repository, of which this machine's folder is taken."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    checkout = tmp_path / "rknn-llm"
    inside = checkout / "rkllm-runtime/Linux/librkllm_api"
    machine.put(inside / "armhf" / NAME)
    with pytest.raises(RuntimeNotFound, match="names the folder"):
        machine.find(str(checkout))
    found = machine.put(inside / "aarch64" / NAME)
    assert machine.find(str(checkout)) == found
    assert machine.find(str(inside)) == found
    assert machine.find(str(found.parent)) == found
    monkeypatch.setattr(platform, "machine", lambda: "armv7l")
    assert machine.find(str(checkout)) == inside / "armhf" / NAME
