"""Simulated runtimes, each compiled once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from npu.simulator import SimulatedModel, build
from tests.npu.rkllm.tables import CC
from tests.npu.simulator.runtime import VERSIONS, Runtime

Open = Callable[..., Runtime]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing here works without a compiler."""
    if CC is None:
        for item in items:
            if "tests/npu/simulator" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="no C compiler"))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The library of a version; processes that test side by side share it."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "simulator"
    return lambda version: build(version, cache)


@pytest.fixture
def start(library: Callable[[str], Path], tmp_path: Path) -> Iterator[Open]:
    """Load a model: its keys, the version (1.2.3), and settings of init. It is freed after the test."""
    with ExitStack() as stack:

        def load(model: SimulatedModel | None = None, version: str = "1.2.3", **settings: Any) -> Runtime:
            return stack.enter_context(Runtime(library(version), tmp_path, model, version, **settings))

        yield load


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found
