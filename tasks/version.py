"""Which version of the service this is."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from tasks.settings import ROOT


def _version() -> str:
    try:
        return version("rockchipllama")
    except PackageNotFoundError:
        # Run from its folder without being installed.
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])


VERSION = _version()


def differences(boards: Mapping[str, str]) -> dict[str, str]:
    """A sentence for each of these boards that runs another release than this. One that tells none is left out."""
    return {
        board: f"The board '{board}' runs version {version}, and this machine {VERSION}: upgrade the older one."
        for board, version in boards.items()
        if version not in ("", VERSION)
    }
