"""One model in the RKLLM runtime: runs it on a thread of its own, and hands out what it says, in order and to the last word.

Nothing here relies on what the vendor leaves open: which thread calls back, which state follows an abort or none at all,
whether an abort is heard before a run has begun, whether a callback comes late.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from ctypes import CDLL
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from npu.errors import EngineFailed
from npu.rkllm.abi import Abi, Answer, Loaded, Mode, Perf, Result, Run, Settings, State, Tokens
from npu.rkllm.abi.refusals import path_for_c

log = logging.getLogger("rockchipllama.rkllm")

LAST_WORD = 1.0
"""Seconds the runtime gets to say FINISH after its call has returned; some builds may say it from another thread."""
DEAF = 2.0
"""Seconds after an abort from which on callbacks also answer PAUSE: this runtime does not hear aborts. One that was told of
heard them after 1.4 s (issue 400), and a pause it did not need would cost it its cache."""
STOP_PATIENCE = 30.0
"""Seconds a run gets to end when its handle is closed: a prefill hears nothing until it is through."""
FILL: Final = Tokens((0,))
"""What a slot reads that nobody needs: the runtime wants an input for each of them in every run."""
_NUMBERS: Final = 2**31 - 1
"""Run numbers travel as a pointer, which may have 32 bits."""

Take = Callable[[tuple[Result, ...]], object]
"""Makes of one callback's results what is handed on; called inside the callback, so rows of floats must be copied here."""


def _as_they_are(results: tuple[Result, ...]) -> object:
    return results


class Call:
    """One run under way. Iterate it once: what `take` made of each callback, each as it comes.

    After the last one `perf` has the runtime's figures, where it gave any, and `stopped` says whether somebody ended it.
    """

    def __init__(self, handle: Handle, run: Run, limit: int | None, take: Take, pause: bool) -> None:
        self.run = run
        self.perf: Perf | None = None
        self.stopped = False
        self.paused = False
        """It ended by a pause, so the next run may go on from here: clear the cache first, unless that is wanted."""
        self._handle = handle
        self._limit = limit
        self._take = take
        self._pauses = pause
        self._count = 0
        self._stopped_at = 0.0
        self._last_state: State | None = None
        self._terminal = threading.Event()
        self._heard: SimpleQueue[object] = SimpleQueue()

    def __iter__(self) -> Iterator[object]:
        """Raises `EngineFailed` at the end when the run failed and nobody had asked for its end."""
        while (item := self._heard.get()) is not _OVER:
            if isinstance(item, EngineFailed):
                raise item
            yield item

    def stop(self) -> None:
        """Have it end soon: at the next token, and never inside a prefill. From any thread, at any time, twice."""
        self.stopped = True
        self._handle.abort(self)

    def hear(self, state: State, results: tuple[Result, ...]) -> Answer:
        """One callback of the library. Only what cannot block or raise belongs here."""
        if state is State.FINISH or state is State.ERROR:
            self._last_state = state
            if results:
                self.perf = results[0].perf
            self._terminal.set()
            return Answer.CONTINUE
        if self.stopped:
            # Said again, for an abort that came before the run had begun may have been lost.
            self._stopped_at = self._stopped_at or time.monotonic()
            self._handle.abort_from_callback()
            if (
                time.monotonic() - self._stopped_at < DEAF
                or self.run.keep_history
                or Answer.PAUSE not in self._handle.abi.CAPABILITIES.answers
            ):
                return Answer.CONTINUE
            self.paused = True
            return Answer.PAUSE
        self._count += 1
        self._heard.put(self._take(results))
        if self._limit is not None and self._count >= self._limit:
            self.stopped = True
            if self._pauses:
                self.paused = True
                return Answer.PAUSE
            self._handle.abort_from_callback()
        # What was wanted of the rows is copied. Where the runtime cannot be told so, this is CONTINUE.
        return Answer.RELEASE if results[0].hidden is not None else Answer.CONTINUE

    def settle(self, status: int) -> None:
        """The library's call has returned: wait a moment for a last word that comes from another thread."""
        if status == 0 and not self.stopped:
            self._terminal.wait(LAST_WORD)

    def over(self, status: int = 0, error: Exception | None = None) -> None:
        """Nothing more will be heard."""
        if error is not None:
            self._heard.put(EngineFailed(f"The request could not be given to the RKLLM runtime: {error}"))
        elif not self.stopped and (status != 0 or self._last_state is State.ERROR or self._is_unfinished):
            said = "reported an error" if self._last_state is State.ERROR else f"returned {status}"
            said += ", and never said that it had finished," if self._is_unfinished else ""
            self._heard.put(
                EngineFailed(
                    f"The RKLLM runtime {said} in the middle of a request. Its own words are in the worker's log; "
                    "the model is loaded anew."
                )
            )
        self._heard.put(_OVER)

    @property
    def _is_unfinished(self) -> bool:
        # A row may be all that is said of a run that gives rows.
        return self._last_state is None and self.run.mode is Mode.GENERATE


_OVER = object()


def _not_loaded() -> EngineFailed:
    return EngineFailed("This model is not loaded. Open the engine anew.")


class Handle:
    """A loaded model. One run at a time; whoever owns it sees to that. In a forked child it does nothing."""

    def __init__(self, lib: CDLL, abi: Abi, settings: Settings) -> None:
        """Load the model: seconds to a minute. `status` says whether that worked; unless it is 0, only `close` it."""
        self.abi: Final = abi
        self._owner = os.getpid()
        self._call: Call | None = None
        self._ending = threading.Lock()
        """Held while an abort is under way from outside a run, so that it cannot fall upon the next one."""
        self._closing = False
        """No further run begins."""
        self._beginning = threading.Lock()
        """Held while a run is put in line, and while that changes."""
        self._numbers = itertools.count(1)
        self._work: SimpleQueue[Call | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loaded: Loaded | None = abi.init(lib, settings, self._on_result)
        self.status: Final = self._loaded.status
        if self.status == 0:
            self._thread = threading.Thread(target=self._serve, name="rkllm", daemon=True)
            self._thread.start()

    @property
    def loaded(self) -> Loaded:
        """For calls of the family beside a run. Raises `EngineFailed` once closed."""
        if self._loaded is None or self.status != 0:
            raise _not_loaded()
        return self._loaded

    def start(self, run: Run, *, limit: int | None = None, take: Take = _as_they_are, pause: bool = False) -> Call:
        """Begin a run, of which the first inputs are enough. Raises `EngineFailed` once closed.

        It ends by itself after `limit` callbacks: by an abort, which may be heard some tokens later, or with `pause` at
        once, where the family has that answer and no history is kept.
        """
        fill = [FILL] * (self.loaded.slots - len(run.inputs))
        run = replace(run, inputs=[*run.inputs, *fill], number=next(self._numbers) % _NUMBERS + 1)
        call = Call(self, run, limit, take, pause)
        with self._beginning:
            if self._closing:  # since it was looked at above: nobody would ever come to this run
                raise _not_loaded()
            self._work.put(call)
        return call

    def abort(self, call: Call) -> None:
        """Abort `call` if it is the one that runs; from any thread but the library's."""
        with self._ending:
            if self._call is call and self._loaded is not None:
                self._loaded.lib.rkllm_abort(self._loaded.handle)

    def abort_from_callback(self) -> None:
        """Abort the run that is calling back. It cannot have ended, so no lock is needed, and none may be waited for."""
        if self._loaded is not None:
            self._loaded.lib.rkllm_abort(self._loaded.handle)

    def clear(self) -> bool:
        """Forget what earlier runs left in the cache; False when the runtime refused."""
        return self.abi.clear_cache(self.loaded) == 0

    def cache_size(self, slot: int = 0) -> int | None:
        """Tokens in the cache of a slot; None where the runtime cannot tell."""
        sizes = self.abi.cache_sizes(self.loaded)
        return sizes[slot] if sizes else None

    def load_adapter(self, path: Path, name: str, scale: float) -> int:
        """Load a LoRA adapter for `Run.adapter`, before the first run; the library's status, 0 when it is there.

        Raises `ModelRefused` on a path or name that C cannot read.
        """
        return self.abi.load_adapter(self.loaded, path, name, scale)

    def load_prompt_cache(self, path: Path) -> bool:
        """Have the runs that come find in a file what they begin with; False when the runtime did not take it.

        Another one must be released first. Nobody documents a check, so it must be this model's, with this context.
        """
        status: int = self.loaded.lib.rkllm_load_prompt_cache(self.loaded.handle, path_for_c(path))
        return status == 0

    def release_prompt_cache(self) -> bool:
        """Forget the file that was loaded; False when the runtime refused."""
        status: int = self.loaded.lib.rkllm_release_prompt_cache(self.loaded.handle)
        return status == 0

    def close(self) -> None:
        """Free the model, after the run in hand has ended. Twice is safe. Raises `EngineFailed` when that run will not end:
        freeing under its feet would crash, so the process is to be given up."""
        if os.getpid() != self._owner or self._loaded is None:
            return
        with self._beginning:
            self._closing = True
        if self._thread is not None:
            call = self._call
            if call is not None:
                call.stop()
            self._work.put(None)
            self._thread.join(STOP_PATIENCE)
            if self._thread.is_alive():
                raise EngineFailed(f"The RKLLM runtime did not end its run within {STOP_PATIENCE:.0f} s.")
        loaded, self._loaded = self._loaded, None
        if loaded.status == 0:
            loaded.lib.rkllm_destroy(loaded.handle)

    def _serve(self) -> None:
        while (call := self._work.get()) is not None:
            with self._ending:
                self._call = None if call.stopped or self._closing else call
            status, broken = 0, None
            if self._call is not None:
                try:
                    status = self.abi.infer(self.loaded, call.run)
                    call.settle(status)
                except Exception as error:
                    broken = error
            with self._ending:
                self._call = None
            call.over(status, broken)

    def _on_result(self, state: State, results: tuple[Result, ...], number: int) -> Answer:
        call = self._call
        if call is None or number not in (0, call.run.number):
            log.debug("a late callback of an earlier run was dropped")
            return Answer.CONTINUE
        return call.hear(state, results)
