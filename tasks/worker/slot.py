"""Room for one engine: opened on the first use, after the fork, and closed when it broke."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from npu.engine import ParkingEngine, TextEngine
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
        self._engine: TextEngine | None = None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether the engine is open."""
        return self._engine is not None

    @property
    def parks(self) -> bool:
        """Whether the engine keeps what others displace from its cache."""
        engine = self._engine
        return isinstance(engine, ParkingEngine) and engine.parks

    @property
    def parked(self) -> int:
        """Bytes of memory in which the engine keeps what was displaced from its cache."""
        engine = self._engine
        return engine.parked_bytes if isinstance(engine, ParkingEngine) else 0

    def park(self) -> float:
        """Have the engine keep what is in its cache, while nobody else uses it. In how many seconds to try again; 0 where that
        would do nothing. Raises `EngineFailed`."""
        engine = self._engine
        return engine.park() if isinstance(engine, ParkingEngine) else 0.0

    def unpark(self) -> None:
        """Have the engine give that memory back. From any thread."""
        engine = self._engine
        if isinstance(engine, ParkingEngine):
            engine.unpark()

    def pause_parking(self, seconds: float) -> None:
        """Have the engine keep nothing more of it for so long. From any thread."""
        engine = self._engine
        if isinstance(engine, ParkingEngine):
            engine.pause_parking(seconds)

    def engine(self, on_load: Callable[[], None]) -> TextEngine:
        """The engine; loads the model on the first call, and calls `on_load` when it begins to.

        Raises `ModelRefused` (`OutOfMemory` among it), `EngineFailed`.
        """
        with self._lock:
            if self._engine is None:
                self.loading, self.problem = True, ""
                self.tries += 1
                on_load()
                try:
                    self._engine = self._open()
                except Exception as error:
                    self.problem = failure(error).message
                    raise
                finally:
                    self.loading = False
                self.loaded_at = time.monotonic()
                self.events.loaded(self.model.id)
            return self._engine

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
            engine, self._engine = self._engine, None
            if engine is not None:
                engine.close()
