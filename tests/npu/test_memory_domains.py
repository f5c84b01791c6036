"""Models are put into the NPU's memory so that all of them fit, as far as the simulator knows what fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from npu.engines import Setup, describe, open_engine
from npu.errors import ModelRefused
from npu.manifest import read_manifest
from npu.memory_domains import DOMAIN_BYTES, DOMAINS, Place, choose_domain
from npu.model import Model
from npu.simulator import Profile, SimulatedModel, write_model
from tests.simulators import share_simulators

GIB = 1 << 30
ANY = range(DOMAINS)


@pytest.mark.parametrize(
    ("gib", "allowed", "others", "domain"),
    [
        (3, ANY, [], 0),
        (1, ANY, [(0, GIB)], 1),  # one of its own, though it would fit beside the other
        (6, ANY, [(1, GIB)], 2),  # it goes on in the next one
        (3, ANY, [(0, 6 * GIB)], 2),
        (1, ANY, [(each, 2 * GIB) for each in ANY], 0),  # shared, where there are no more
        (3, ANY, [(each, 2 * GIB) for each in ANY], None),
        (2, (0,), [(0, 2 * GIB)], 0),
        (3, (0,), [(0, 2 * GIB)], None),
        (3, (5,), [], 5),
        (6, (15,), [], None),  # behind the last there is nothing
    ],
)
def test_the_first_domain_in_which_it_fits(
    gib: int, allowed: range | tuple[int, ...], others: list[Place], domain: int | None
) -> None:
    assert choose_domain(gib * GIB, allowed, others) == domain


@pytest.mark.parametrize(
    ("runtime", "option", "domains"), [("1.3.0", {}, ANY), ("1.1.4", {}, (0,)), ("1.3.0", {"memory_domain": 7}, (7,))]
)
def test_which_domains_a_model_may_be_put_into(
    tmp_path: Path, runtime: str, option: dict[str, int], domains: range | tuple[int, ...]
) -> None:
    """Any, unless its manifest names one, or the runtime is known to crash in others than the first."""
    model = replace(simulated(tmp_path / "model"), engine_options=option)
    facts = describe(model, Setup(tmp_path, rkllm_library=f"simulator-{runtime}"))
    assert tuple(facts.memory_domains) == tuple(domains)


def test_two_large_models_are_loaded_beside_each_other(tmp_path: Path) -> None:
    """In the domains that are chosen for them. In one, the second one is refused."""
    share_simulators(tmp_path)
    model = simulated(tmp_path / "model")
    setup = Setup(tmp_path, rkllm_library="simulator-1.3.0")
    allowed, size = describe(model, setup).memory_domains, 3000 << 20
    first = choose_domain(size, allowed, [])
    second = choose_domain(size, allowed, [(first or 0, size)])
    assert size <= DOMAIN_BYTES < 2 * size
    one = open_engine(model, replace(setup, memory_domain=first))
    try:
        with pytest.raises(ModelRefused, match="memory"):
            open_engine(model, replace(setup, memory_domain=first))
        open_engine(model, replace(setup, memory_domain=second)).close()
    finally:
        one.close()


def simulated(folder: Path) -> Model:
    write_model(folder, SimulatedModel(profile=Profile(memory_mb=3000)))
    return replace(read_manifest(folder / "manifest.toml"), engine_options={"self_test": 0})
