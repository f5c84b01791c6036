"""The models of this board. What these tests need comes from the service's own settings: its models folder, its library."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from npu.catalog import find_models
from npu.engines import Setup, open_engine
from npu.engines.rkllm.engine import RkllmEngine
from npu.engines.rkllm.library import SIMULATOR
from npu.hardware import read_board
from npu.model import Model
from ops.configuration import ConfigurationError, load
from tasks.prompting.setup import setup_of
from tasks.settings import TaskSettings


@cache
def machine() -> tuple[str, Setup | None, tuple[Model, ...]]:
    """Why nothing can be shown here, empty where something can; then how engines are opened, and the models.

    Asked while tests are collected: later on the environment is cleared of our settings.
    """
    try:
        settings = load(TaskSettings)
    except ConfigurationError as error:
        return str(error), None, ()
    if not settings.rkllm_library.startswith(SIMULATOR) and read_board().soc is None:
        return "this machine has no Rockchip NPU", None, ()
    models = tuple(model for model in find_models(settings.models_dir).models if model.engine == "rkllm")
    if not models:
        return f"there is no .rkllm model in {settings.models_dir.name}", None, ()
    setup = setup_of(settings)
    setup.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return "", setup, models


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these are for a board; elsewhere each says why it is left out."""
    for item in items:
        if "tests/device/" in item.nodeid:
            item.add_marker(pytest.mark.npu)
            if machine()[0]:
                item.add_marker(pytest.mark.skip(reason=machine()[0]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of a model run with each."""
    if "model" in metafunc.fixturenames:
        models = machine()[2]
        metafunc.parametrize("model", models or [None], ids=[model.id for model in models] or ["none"], scope="module")


@pytest.fixture(scope="module")
def setup() -> Setup:
    """How engines are opened on this machine."""
    found = machine()[1]
    assert found is not None
    return found


@pytest.fixture(scope="module")
def engine(model: Model, setup: Setup) -> Iterator[RkllmEngine]:
    """The model, loaded once for all its tests."""
    engine = open_engine(model, setup)
    assert isinstance(engine, RkllmEngine)
    yield engine
    engine.close()
