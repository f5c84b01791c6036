"""Simulated runtimes, each compiled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from npu.simulator import SimulatedModel, build
from tests.npu.rkllm.tables import CC
from tests.npu.simulator.runtime import VERSIONS, Runtime
from tests.simulators import SIMULATORS

Open = Callable[..., Runtime]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing here works without a compiler."""
    if CC is None:
        for item in items:
            if "tests/npu/simulator" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="no C compiler"))


@pytest.fixture(scope="session")
def library() -> Callable[[str], Path]:
    """The library of a version."""
    return lambda version: build(version, SIMULATORS)


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
