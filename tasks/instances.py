"""The names of a model's workers on one board: that of the first is the model's, further ones have a number behind it."""

from __future__ import annotations

MARK = "#"
"""No id of a model has one."""


def instance_name(model: str, number: int) -> str:
    """What the worker of this number is called, counted from 1."""
    return model if number == 1 else f"{model}{MARK}{number}"


def model_of(name: str) -> str:
    """The model of the worker that is called so."""
    return name.partition(MARK)[0]


def number_of(name: str) -> int:
    """Its number."""
    return int(name.partition(MARK)[2] or 1)
