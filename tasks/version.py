"""Which version of the service this is."""

from __future__ import annotations

import tomllib
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
