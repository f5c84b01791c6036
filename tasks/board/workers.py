"""The worker processes of one board: started, watched, restarted with growing pauses, stopped."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from npu.errors import ModelRefused
from npu.memory_domains import Place
from npu.model import Model
from tasks import worker_lock
from tasks.board.process import Adopted, WorkerProcess, adopt, kill, wait_or_kill
from tasks.instances import instance_name, model_of

log = logging.getLogger("rockchipllama.board")

STEADY = 60.0
"""Seconds a worker must live for its next death to count as its first."""

DOMAIN_OPTION = "--memory-domain"
"""Of a worker's command line, from which the next agent knows it again."""

FIRST_TO_GO = 500
"""`oom_score_adj` of workers: when memory runs out, the kernel ends one of them, whose job goes on, and not the queue."""


@dataclass
class WorkerChild:
    """One worker process, or the intent to have one again at `start_at` (monotonic seconds)."""

    model: Model
    memory_bytes: int
    domain: int | None = None
    """The NPU's memory domain that was chosen for it."""
    number: int = 1
    """Of the workers that its model has on this board."""
    process: WorkerProcess | None = None
    started: float = 0.0
    start_at: float = 0.0
    deaths: int = 0
    last_end: str = ""
    """How it ended the last time, in words."""

    @property
    def name(self) -> str:
        """What the worker is called on this board."""
        return instance_name(self.model.id, self.number)


@dataclass
class Workers:
    """One worker for each model, or several. `tick` is called often by the agent's loop; any method from any thread."""

    command: Callable[[Model], list[str]]
    data_dir: Path
    longest_pause: float
    pass_fds: tuple[int, ...]
    _children: dict[str, WorkerChild] = field(default_factory=dict)
    _leaving: dict[str, WorkerProcess] = field(default_factory=dict)
    """Workers that were told to stop and still live. Their successors start after them."""
    _held: dict[str, WorkerChild | None] = field(default_factory=dict)
    """What is known of those, who hold their memory until they are gone; None of one that another agent left."""
    _aside: int = 0
    """Bytes of memory that something other than a worker takes."""
    _ended: set[str] = field(default_factory=set)
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, model: Model, memory_bytes: int, domain: int | None = None, number: int = 1) -> None:
        """Have a worker of this model from now on, in this memory domain of the NPU. One that is there already stays as it is;
        one of a higher `number` is one more.

        Raises `ModelRefused` once all were stopped: a load that had begun earlier would leave a worker behind.
        """
        with self._lock:
            if self._closed:
                raise ModelRefused(f"The model '{model.id}' cannot be loaded: this board is being stopped.")
            child = self._children.get(instance_name(model.id, number))
            if child is None:
                child = WorkerChild(model, memory_bytes, domain, number)
                self._children[child.name] = child
                self._spawn(child)
            else:
                child.start_at = 0.0  # somebody wants it now: no more waiting after a death

    def adopt(self, model: Model, memory_bytes: int, domain: int | None = None, number: int = 1) -> bool:
        """Take over the worker of this model that an earlier agent left behind; False when there is none, or all were stopped.
        It is in this domain where its command line names none."""
        with self._lock:
            name = instance_name(model.id, number)
            if self._closed:
                return False
            process = adopt(self.data_dir, name)
            if process is None or name in self._children:
                return False
            self._children[name] = WorkerChild(
                model, memory_bytes, _domain_of(process, domain), number, process, started=time.monotonic()
            )
            log.info("adopted the worker of %s pid=%d", name, process.pid)
            return True

    def stop(self, model_id: str, grace: float) -> bool:
        """Stop the workers of a model, also those that an earlier agent left behind; False when there are none.

        Waits at most `grace` seconds, then kills.
        """
        processes, known = self._release(model_id)
        self.end(processes, grace)
        return known or bool(processes)

    def release(self, model_id: str) -> Mapping[str, WorkerProcess]:
        """Have no worker of a model from now on; those that are left, for `end`."""
        return self._release(model_id)[0]

    def stop_behind(self, model_id: str, grace: float, then: Callable[[], None]) -> None:
        """The same without waiting: the model is among the leaving ones at once, and `then` is called when it is gone."""

        def end() -> None:
            try:
                self.end(processes, grace)
            finally:
                then()

        processes, _ = self._release(model_id)
        if processes:
            threading.Thread(target=end, daemon=True).start()
        else:
            then()

    def _release(self, model_id: str) -> tuple[dict[str, WorkerProcess], bool]:
        """The processes that are to be stopped, by the names of the workers, and whether a worker was meant to be there."""
        with self._lock:
            children = {name: child for name, child in self._children.items() if child.model.id == model_id}
            left = {} if children or model_id in map(model_of, self._leaving) else self._left_behind(model_id)
            found = {name: child.process for name, child in children.items() if child.process is not None} | left
            for name in children:
                del self._children[name]
            self._leaving |= found
            self._held |= {name: children.get(name) for name in found}
            return found, bool(children)

    def _left_behind(self, model_id: str) -> dict[str, WorkerProcess]:
        names = [name for name in worker_lock.held(self.data_dir) if model_of(name) == model_id]
        found = {name: adopt(self.data_dir, name) for name in names}
        return {name: process for name, process in found.items() if process is not None}

    def end(self, processes: Mapping[str, WorkerProcess], grace: float) -> None:
        """Stop those that were released. Waits at most `grace` seconds, then kills."""
        try:
            for process in processes.values():
                process.terminate()
            wait_or_kill(processes.values(), grace)
        finally:
            with self._lock:
                for name in processes:
                    del self._leaving[name], self._held[name]
                    self._ended.add(name)

    def stop_all(self, grace: float) -> None:
        """Stop every worker, together, and have none any more."""
        with self._lock:
            self._closed = True
            children, self._children = list(self._children.values()), {}
            leaving = list(self._leaving.values())
            self._ended |= {child.name for child in children}
        living = [child.process for child in children if child.process is not None]
        for process in living:
            process.terminate()
        wait_or_kill([*living, *leaving], grace)

    def kill(self, name: str, pid: int) -> None:
        """End that process of the worker that is called so at once, if it is the one still. `tick` then starts it again, as after
        any death."""
        with self._lock:
            child = self._children.get(name)
            if child is not None and child.process is not None and child.process.pid == pid:
                kill(child.process)

    def living(self) -> dict[str, int]:
        """The name and the process of each worker that runs and was not told to stop."""
        with self._lock:
            return {name: child.process.pid for name, child in self._children.items() if child.process is not None}

    def names(self, model_id: str) -> list[str]:
        """What the workers of a model are called, those that were told to stop included."""
        with self._lock:
            return sorted(name for name in {*self._children, *self._leaving} if model_of(name) == model_id)

    def reserved(self) -> int:
        """Bytes of memory that the models of all workers were estimated at, leaving ones included, and what is set aside."""
        with self._lock:
            return self._aside + sum(child.memory_bytes for child in (*self._children.values(), *self._holding()))

    @contextmanager
    def set_aside(self, memory_bytes: int) -> Iterator[None]:
        """Count that memory as taken within the block."""
        with self._lock:
            self._aside += memory_bytes
        try:
            yield
        finally:
            with self._lock:
                self._aside -= memory_bytes

    def aside(self) -> int:
        """Bytes that are set aside."""
        with self._lock:
            return self._aside

    def held_by_leaving(self) -> int:
        """Bytes of it that will be free once those are gone that were told to stop."""
        with self._lock:
            return sum(child.memory_bytes for child in self._holding())

    def _holding(self) -> list[WorkerChild]:
        return [child for child in self._held.values() if child is not None]

    def places(self, *, leaving: bool) -> dict[str, Place]:
        """Where in the NPU's memory each worker is, by its name, that was given a domain; with `leaving` also those that were
        told to stop."""
        with self._lock:
            children = [*(self._holding() if leaving else ()), *self._children.values()]
            return {child.name: (child.domain, child.memory_bytes) for child in children if child.domain is not None}

    def sizes(self, longer_than: float = 0.0) -> dict[str, int]:
        """What the workers of each model were estimated at together, in bytes, where the first was started more than so many
        seconds ago."""
        now, found = time.monotonic(), dict[str, int]()
        with self._lock:
            for child in sorted(self._children.values(), key=lambda child: child.number):
                if now - child.started >= longer_than or child.model.id in found:
                    found[child.model.id] = found.get(child.model.id, 0) + child.memory_bytes
        return found

    def oldest(self) -> list[str]:
        """The models by when their workers were started."""
        with self._lock:
            children = sorted(self._children.values(), key=lambda child: child.started)
        return list(dict.fromkeys(child.model.id for child in children))

    def has(self, model_id: str) -> bool:
        """Whether there is a worker of this model, or will be again."""
        with self._lock:
            return model_id in self._children

    def leaving(self) -> set[str]:
        """The models whose workers were told to stop and still have their memory. A successor starts when that is free."""
        with self._lock:
            return set(map(model_of, self._leaving))

    def await_leaving(self, engine: str) -> None:
        """Return once no worker of that engine is left that was told to stop; one that another agent left may be of any."""
        while True:
            with self._lock:
                held = [child for child in self._held.values() if child is None or child.model.engine == engine]
            if not held:
                return
            time.sleep(0.05)

    def note(self, model_id: str) -> str | None:
        """What to tell people about a worker that keeps dying; None when all is well."""
        with self._lock:
            child = self._children.get(model_id)
            if child is None or child.deaths == 0:
                return None
            return f"its worker died {child.deaths} times in a row ({child.last_end})"

    def ended(self) -> set[str]:
        """The names of the workers that have ended since this was last asked, in whatever way."""
        with self._lock:
            ended, self._ended = self._ended, set()
        return ended

    def tick(self) -> None:
        """Notice the dead, and start again whoever has waited long enough."""
        now = time.monotonic()
        with self._lock:
            for child in self._children.values():
                if child.process is not None and child.process.poll() is not None:
                    self._bury(child, f"last exit code {child.process.returncode}")
                if child.process is None and now >= child.start_at:
                    self._spawn(child)

    def _bury(self, child: WorkerChild, end: str) -> None:
        now = time.monotonic()
        child.deaths = child.deaths + 1 if now - child.started < STEADY else 1
        child.last_end = end
        child.process = None
        self._ended.add(child.name)
        pause = min(self.longest_pause, 2.0 ** min(child.deaths - 1, 30))
        child.start_at = now + pause
        log.error("the worker of %s is gone (%s); starting it again in %.0f s", child.name, end, pause)

    def _spawn(self, child: WorkerChild) -> None:
        if child.name in self._leaving:
            return  # `tick` tries again: adopting the one that leaves would be the death of the new one
        child.started = time.monotonic()
        try:
            child.process = adopt(self.data_dir, child.name)
            if child.process is not None:
                log.info("adopted the worker of %s pid=%d", child.name, child.process.pid)
                child.domain = _domain_of(child.process, child.domain)
                return
            put = [] if child.domain is None else [DOMAIN_OPTION, str(child.domain)]
            put += ["--instance", str(child.number)] if child.number > 1 else []
            child.process = subprocess.Popen(
                [*self.command(child.model), *put],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=self.pass_fds,
            )
        except OSError as error:
            self._bury(child, f"it could not be started: {error}")
            return
        try:
            Path(f"/proc/{child.process.pid}/oom_score_adj").write_text(str(FIRST_TO_GO))
        except OSError as error:
            log.debug("the kernel may kill the queue before the worker of %s: %s", child.name, error)
        log.info("started a worker of %s pid=%d", child.name, child.process.pid)


def _domain_of(process: Adopted, unless_told: int | None) -> int | None:
    told = process.option(DOMAIN_OPTION)
    return int(told) if told is not None and told.isdecimal() else unless_told


def worker_command(model: Model) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-m", "ops.cli.main", "worker", model.id]
