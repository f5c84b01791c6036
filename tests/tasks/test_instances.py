"""Several workers of a model on one board are told apart by their names, and shown as one."""

from __future__ import annotations

import pytest

from npu.model import is_model_id
from tasks.instances import instance_name, model_of, number_of
from tasks.presence import Presence
from tasks.residence import state_on
from tasks.roster import Snapshot


@pytest.mark.parametrize(("number", "name"), [(1, "tiny"), (2, "tiny#2"), (8, "tiny#8")])
def test_a_name_tells_model_and_number(number: int, name: str) -> None:
    """No model is called like a further worker."""
    assert instance_name("tiny", number) == name
    assert (model_of(name), number_of(name)) == ("tiny", number)
    assert is_model_id(name) is (number == 1)


@pytest.mark.parametrize("states", [("loading", "busy"), ("busy", "loading")])
def test_a_model_is_loaded_where_one_of_its_workers_has_it(states: tuple[str, str]) -> None:
    """Whichever of them breathed first."""
    workers = tuple(
        Presence(name=f"tiny#{number}@one", board="one", model="tiny", state=state)
        for number, state in enumerate(states, 1)
    )
    assert state_on(Snapshot(0.0, (), workers, ()), "tiny", "one") == "busy"
