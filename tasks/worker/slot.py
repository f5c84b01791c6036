"""Room for one engine: opened on the first use, after the fork, and closed when it broke."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from npu.engine import LockStepEngine, ParkingEngine, TextEngine
from npu.engines import Setup, chat_template, open_engine
from npu.model import Model
from tasks.model_events import ModelEvents
from tasks.prompting.failures import failure
from tasks.prompting.prepare import Preparer

log = logging.getLogger("rockchipllama.worker")


class Slot:
    """The one engine this process may hold."""

    def __init__(self, model: Model, setup: Setup) -> None:
        self.model = model
        self.loading = False
        self.tries = 0
        """How often the model was begun to load."""
        self.problem = ""
        """Why it could not be loaded, the last time."""
        self.loaded_at = 0.0
        """When it last was, by the monotonic clock."""
        self.events = ModelEvents()
        """Its loads that were not counted yet."""
        self.preparer: Preparer
        """Prepares requests for the engine; there once the engine is."""
        self._setup = setup
        self.lock_step: LockStepEngine | None = None
        """The engine, where it answers several prompts by one run. That and the next are looked for once: it takes long."""
        self._parking: ParkingEngine | None = None
        self._engine: TextEngine | None = None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether the engine is open."""
        return self._engine is not None

    @property
    def parks(self) -> bool:
        """Whether the engine keeps what others displace from its cache."""
        engine = self._parking
        return engine is not None and engine.parks

    @property
    def parked(self) -> int:
        """Bytes of memory in which the engine keeps what was displaced from its cache."""
        engine = self._parking
        return engine.parked_bytes if engine is not None else 0

    def park(self) -> float:
        """Have the engine keep what is in its cache, while nobody else uses it. In how many seconds to try again; 0 where that
        would do nothing. Raises `EngineFailed`."""
        engine = self._parking
        return engine.park() if engine is not None else 0.0

    def unpark(self) -> None:
        """Have the engine give that memory back. From any thread."""
        engine = self._parking
        if engine is not None:
            engine.unpark()

    def pause_parking(self, seconds: float) -> None:
        """Have the engine keep nothing more of it for so long. From any thread."""
        engine = self._parking
        if engine is not None:
            engine.pause_parking(seconds)

    def engine(self, on_load: Callable[[], None]) -> TextEngine:
        """The engine; loads the model on the first call, and calls `on_load` when it begins to.

        Raises `ModelRefused` (`OutOfMemory` among it), `EngineFailed`.
        """
        with self._lock:
            engine = self._engine
            if engine is None:
                self.loading, self.problem = True, ""
                self.tries += 1
                on_load()
                try:
                    engine = self._open()
                except Exception as error:
                    self.problem = failure(error).message
                    raise
                finally:
                    self.loading = False
                self._hold(engine)
                self.loaded_at = time.monotonic()
                self.events.loaded(self.model.id)
            return engine

    def _hold(self, engine: TextEngine | None) -> None:
        self._engine = engine
        self._parking = engine if isinstance(engine, ParkingEngine) else None
        self.lock_step = engine if isinstance(engine, LockStepEngine) and engine.slots > 1 else None

    def _open(self) -> TextEngine:
        begun = time.monotonic()
        log.info("loading %s", self.model.id)
        engine = open_engine(self.model, self._setup)
        try:
            template = chat_template(self.model)
        except BaseException:
            engine.close()
            raise
        self.preparer = Preparer(self.model, engine.tokenizer, template, engine.context_length)
        log.info("loaded %s in %.1f s (%s)", self.model.id, time.monotonic() - begun, engine.version)
        return engine

    def close(self, only: TextEngine | None = None) -> None:
        """Close the engine, if there is one, and with `only` if it is that one. The next call of `engine` opens it anew, once
        this one's memory is free."""
        with self._lock:
            if only is not None and only is not self._engine:
                return
            engine = self._engine
            self._hold(None)
            if engine is not None:
                engine.close()
