"""`doctor --acceptance MODEL`: everything that only this board can tell, asked and measured unattended, for one report."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from npu.catalog import find_models
from npu.engines.rkllm.acceptance import material_of
from npu.engines.rkllm.facts import read_loaded
from npu.engines.rkllm.library import library_of
from npu.errors import ModelRefused
from npu.model import Model
from npu.rkllm.acceptance import MEASURES, QUESTIONS, Ended, Found, Question, ask
from npu.rkllm.library import Identity
from ops import environment
from ops.doctor import report
from ops.doctor.device_tests import DeviceTests, run_device_tests
from ops.doctor.facts import Facts, gather
from ops.doctor.library import look_for_library
from tasks.prompting.setup import setup_of
from tasks.settings import TaskSettings
from tasks.version import VERSION

FORMAT = 1
"""Raised when a program that reads the report would have to be changed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, with what came of it."""

    question: Question
    found: Found


@dataclass(frozen=True, slots=True)
class Acceptance:
    """All that was found out. Nothing in it names this machine, its owner, or where anything lies on its disk."""

    taken: str
    """When, in UTC."""
    seconds: float
    machine: dict[str, Any]
    library: dict[str, Any]
    model: dict[str, Any]
    findings: tuple[str, ...]
    """What the doctor had to say besides: level and code."""
    questions: tuple[Asked, ...]
    measures: tuple[Asked, ...]
    device_tests: DeviceTests

    @property
    def failed(self) -> bool:
        """Whether the model cannot be used here, or something of ours is broken."""
        load = next((asked.found for asked in self.measures if asked.found.name == "load"), None)
        broken = any(asked.found.ended is Ended.BROKEN for asked in (*self.questions, *self.measures))
        return broken or load is None or not load.rows or self.device_tests.failed

    def to_json(self) -> dict[str, Any]:
        """One object."""
        return {
            "format": FORMAT,
            "program": VERSION,
            "taken": self.taken,
            "seconds": self.seconds,
            "machine": self.machine,
            "library": self.library,
            "model": self.model,
            "findings": list(self.findings),
            "questions": [_entry(asked) for asked in self.questions],
            "measures": [_entry(asked) for asked in self.measures],
            "device_tests": asdict(self.device_tests),
        }


def examine(name: str, settings: TaskSettings, tell: Callable[[str], None]) -> Acceptance:
    """Ask and measure all of it, which takes an hour on a board; `tell` is given a line for each step.

    Raises `ModelRefused` when there is no such model for the NPU, or no library to run it.
    """
    begun = time.monotonic()
    setup = setup_of(settings)
    model = _model(name, settings)
    material = material_of(model, setup)
    facts = gather(settings, library=look_for_library(setup))
    inherited = environment.for_child({}, without=environment.API_SECRETS)

    def put(questions: tuple[Question, ...]) -> tuple[Asked, ...]:
        asked = []
        for question in questions:
            found = ask(question, material, inherited)
            tell(f"{question.name}: {found.answer or f'{len(found.rows)} measured'} ({found.seconds:.1f} s)")
            asked.append(Asked(question, found))
        return tuple(asked)

    questions, measures = put(tuple(QUESTIONS)), put(tuple(MEASURES))
    tests = run_device_tests(inherited)
    tell(f"tests/device: {tests.summary()}")
    return Acceptance(
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - begun, 1),
        machine=_machine(facts),
        library=_library(library_of(setup)),
        # After the tests, which loaded it as the service does.
        model=_about(model, material.context_length, settings),
        findings=tuple(f"{finding.level} {finding.code}" for finding in report.examine(facts)),
        questions=questions,
        measures=measures,
        device_tests=tests,
    )


def _model(name: str, settings: TaskSettings) -> Model:
    catalog = find_models(settings.models_dir)
    there = [model.id for model in catalog.models if model.engine == "rkllm"]
    model = catalog.find(name)
    if model is None or model.engine != "rkllm":
        what = f"{model.id} does not run on the NPU" if model is not None else f"There is no model {name!r}"
        raise ModelRefused(
            f"{what}, so there is nothing to ask of it. Models for the NPU in {settings.models_dir}: "
            f"{', '.join(there) or 'none'}."
        )
    return model


def _machine(facts: Facts) -> dict[str, Any]:
    board = facts.board
    return {
        "board": board.model,
        "chip": board.soc.name if board.soc is not None else None,
        "compatible": board.compatible,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "cores": board.cores,
        "big_cores": board.big_cores,
        "memory": asdict(board.memory),
        "driver": board.npu.driver.version,
        "clocks": [asdict(clock) for clock in board.clocks],
        "temperatures": dict(board.temperatures),
        "container": board.container,
    }


def _library(identity: Identity) -> dict[str, Any]:
    return {
        "file": identity.path.name,
        "sha256": identity.digest,
        "version": identity.version,
        "called_as": identity.family.RUNTIMES[0],
    }


def _about(model: Model, context_length: int, settings: TaskSettings) -> dict[str, Any]:
    loaded = read_loaded(model, setup_of(settings))
    return {
        "id": model.id,
        "file": Path(model.path).name if model.path is not None else None,
        "size_bytes": model.size_bytes,
        "context_length": context_length,
        "last_load": asdict(loaded.last_load()) if loaded is not None else None,
        "self_test": asdict(loaded.self_test) if loaded is not None and loaded.self_test is not None else None,
    }


def _entry(asked: Asked) -> dict[str, Any]:
    return {"asks": asked.question.asks, **asdict(asked.found)}
