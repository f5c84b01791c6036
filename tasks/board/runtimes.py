"""The NPU's runtime on a board: which releases are installed, which is in use, and the change from one to another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from npu.catalog import Catalog
from npu.engines import Setup
from npu.engines.rkllm.library import library_of, named
from npu.engines.rkllm.trial import try_out
from npu.errors import ModelRefused
from npu.model import Model
from npu.rkllm.installed import choose, chosen, find_release, installed, unusable
from npu.rkllm.library import LIBRARY_SETTING, VERSION_SETTING, identify
from tasks.board.workers import Workers
from tasks.commands import BUSY, CommandCode, RuntimeUsed, UseRuntime
from tasks.connection import UNREACHABLE
from tasks.errors import CommandFailed
from tasks.presence import Runtime
from tasks.settings import TaskSettings

log = logging.getLogger("rockchipllama.board")

ENGINE = "rkllm"


class Runtimes:
    """`fitting` is held by whoever loads a model; `load` has one loaded again, and `room` holds the memory for a trial, or raises
    `ModelRefused`. Usable from any thread."""

    def __init__(
        self,
        settings: TaskSettings,
        setup: Setup,
        catalog: Callable[[], Catalog],
        workers: Workers,
        fitting: threading.Lock,
        load: Callable[[Model], object],
        room: Callable[[Model, Setup], AbstractContextManager[None]],
        grace: float,
    ) -> None:
        """Workers that are stopped get `grace` seconds, that for their job in hand included."""
        self._settings = settings
        self._setup = setup
        self._catalog = catalog
        self._workers = workers
        self._fitting = fitting
        self._load = load
        self._room = room
        self._grace = grace
        self._one = threading.Lock()
        self._seen: tuple[list[str], dict[str, str], str | None] = ([], {}, None)
        self.changing = False
        """The NPU is wanted for a trial: no model of its may be loaded. Changed with `fitting` held."""

    def told(self) -> Runtime | None:
        """What a board says of its runtime; None where there is none, and no model that would need one."""
        self._seen = self._there()
        there, faults, _ = self._seen
        if not (there or faults or self._models()):
            return None
        try:
            version = named(library_of(self._setup))
        except (ModelRefused, OSError):
            version = ""  # the models that need it say why
        return Runtime(version=version, installed=tuple(there), unusable=faults)

    @property
    def changed(self) -> bool:
        """Whether something else is installed or chosen than when it was last told."""
        return self._there() != self._seen

    def _there(self) -> tuple[list[str], dict[str, str], str | None]:
        fetched = self._setup.rkllm_fetched
        return list(installed(fetched)), unusable(fetched), chosen(fetched)

    def use(self, wanted: UseRuntime) -> RuntimeUsed:
        """Change to another release: models of the NPU are unloaded, tried with it one by one, and loaded again, with the new
        release when all could be used and with the old one when not. Their jobs wait meanwhile. Raises `CommandFailed`."""
        if not self._one.acquire(blocking=False):
            raise CommandFailed(
                BUSY, "The runtime of this board is being changed already. Try again when that is done."
            )
        try:
            return self._use(wanted)
        finally:
            self._one.release()

    def _use(self, wanted: UseRuntime) -> RuntimeUsed:
        for setting, value in (
            (LIBRARY_SETTING, self._settings.rkllm_library),
            (VERSION_SETTING, self._settings.rkllm_version),
        ):
            if value:
                raise _refused(
                    f"{setting}={value} says which library this board uses. Unset it, and start the board anew."
                )
        version = wanted.version.strip().removeprefix("v")
        fetched = self._setup.rkllm_fetched
        assert fetched is not None
        before = self._now()
        try:
            library = find_release(version, fetched)
            identify(library, version)
            asked = [self._named(wanted.model)] if wanted.model else []
        except ModelRefused as error:
            raise _refused(str(error)) from error
        loaded = self._hold()
        try:
            self._stop(loaded)
            tried = asked or loaded or self._smallest()
            for model in tried:
                log.info("trying %s with the runtime %s", model.id, version)
                problem = self._problem(model, library, version)
                if problem:
                    log.error(
                        "the runtime stays %s, for %s is not usable with %s: %s", before, model.id, version, problem
                    )
                    raise _refused(f"It stays with {before or 'what it had'}: tried with {version}, {problem}")
            choose(fetched, version)
            log.info("the runtime is %s from now on, and was %s", version, before)
        finally:
            with self._fitting:
                self.changing = False
            for model in loaded:
                try:
                    self._load(model)
                except (ModelRefused, *UNREACHABLE) as error:
                    log.warning("%s was loaded before, and was not loaded again: %s", model.id, error)
        return RuntimeUsed(version=version, before=before, tried=tuple(model.id for model in tried))

    def _problem(self, model: Model, library: Path, version: str) -> str:
        """Why the model cannot be used with that release; empty when it can."""
        self._setup.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with self._room(model, replace(self._setup, rkllm_library=str(library), rkllm_version=version)):
                return try_out(model, self._settings.models_dir, library, version, self._setup).problem
        except ModelRefused as error:
            return str(error)

    def _now(self) -> str:
        try:
            return named(library_of(self._setup))
        except ModelRefused:
            return ""

    def _hold(self) -> list[Model]:
        """Let no model of the NPU be loaded from now on; those that are."""
        with self._fitting:
            self.changing = True
            return [model for model in self._models() if self._workers.has(model.id)]

    def _stop(self, models: list[Model]) -> None:
        """Return once the NPU has no model, those included that were leaving already."""
        with ThreadPoolExecutor(max(1, len(models))) as pool:
            list(pool.map(lambda model: self._workers.stop(model.id, self._grace), models))
        self._workers.await_leaving(ENGINE)

    def _models(self) -> list[Model]:
        return [model for model in self._catalog().models if model.engine == ENGINE]

    def _smallest(self) -> list[Model]:
        return sorted(self._models(), key=lambda model: model.size_bytes)[:1]

    def _named(self, name: str) -> Model:
        """The model to try it with. Raises `ModelRefused`."""
        model = self._catalog().find(name)
        if model is None or model.engine != ENGINE:
            raise ModelRefused(f"This board has no model '{name[:100]}' for the NPU, to try the runtime with.")
        return model


def _refused(why: str) -> CommandFailed:
    return CommandFailed(CommandCode.RUNTIME_REFUSED, why)
