"""One loaded engine of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from npu.engines import ENGINES, open_engine
from tests.npu.demo import Opened, demo_model


def with_marks(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.model) if name != "echo" else name


@pytest.fixture(scope="module", params=[with_marks(name) for name in ENGINES])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """Each engine of the table in turn, slowed where it is too fast to be caught in the act."""
    model = demo_model(request.param)
    if request.param == "echo":
        model = replace(model, engine_options={"tokens_per_second": 500, "prefill_tokens_per_second": 5000})
    runtime_dir = tmp_path_factory.mktemp("run")
    runtime_dir.chmod(0o700)
    engine = open_engine(model, runtime_dir, context_length=1024)
    yield Opened(engine, model, runtime_dir)
    engine.close()
