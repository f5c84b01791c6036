"""The service on one machine: what is started in which order, what the user is told, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.try_it import try_it
from ops import configuration, environment
from ops.program import program
from ops.up import discovery, listen, sharing, store
from ops.up.advice import Advice
from ops.up.disk import DiskWatch
from ops.up.errors import PortInUse
from ops.up.lock import DataDirLock
from ops.up.models_dir import check_models_dir
from ops.up.output import Terminal
from ops.up.part import Part, now
from ops.up.ready import Probe
from ops.up.saying import capabilities, in_words, say, tell_how_to_join, trial
from ops.up.settings import UpSettings
from ops.up.supervisor import StopAsked, Supervisor
from ops.up.vitals import Vitals
from tasks import carried, lifeline, systemd
from tasks.settings import TaskSettings
from tasks.version import VERSION

log = logging.getLogger("rockchipllama.up")

STORE_PATIENCE = 120.0
"""Seconds the embedded Valkey may take to read its files: an append-only file of 1 GB on an SD card."""
PATIENCE = 30.0
"""Seconds after which a service that is not ready says why."""


@dataclass(frozen=True, slots=True)
class Commands:
    """How the parts are started."""

    api: Sequence[str] = (sys.executable, "-m", "ops.cli.main", "api")
    board: Sequence[str] = (sys.executable, "-m", "ops.cli.main", "board")
    doctor: Sequence[str] = (sys.executable, "-m", "ops.cli.main", "doctor", "--json")


@dataclass(frozen=True, slots=True)
class Plan:
    """What `up` was asked to run."""

    tasks: TaskSettings
    up: UpSettings
    host: str
    port: int
    drain: float = 0.0
    """Seconds the API lets open answers go on when it is stopped."""
    trusted_networks: Sequence[str] = ()
    """Whose clients need no key; when there are any, the others do."""
    preload: bool = True
    """A model is loaded at the start, not with the first request."""
    check_keys: Callable[[str], None] | None = None
    """Called with the Redis' URL once that is up; raises when clients must have keys and none was made."""
    commands: Commands = field(default_factory=Commands)


def run(plan: Plan) -> int:
    """Run everything until it is asked to stop; the exit code. Raises `UpError` when it cannot start or go on."""
    check_models_dir(plan.tasks.models_dir)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(DataDirLock(plan.tasks.data_dir))
        terminal = Terminal()
        stack.callback(terminal.close)
        supervisor = stack.enter_context(Supervisor())
        stack.enter_context(contextlib.suppress(StopAsked))
        lock.wait_for_parts(say, supervisor.turn)
        sock = stack.enter_context(contextlib.closing(listen.listen(plan.host, plan.port)))
        service = _Service(plan, supervisor, lock, terminal, listen.url(sock), listen.network_url(sock))
        lock.write(service.url)
        try:
            service.start(sock.fileno())
            service.serve()
        except StopAsked:
            say("Stopping. (Ctrl-C again: at once.)")
        finally:
            service.stop()
        say("Stopped.")
    return 0


class _Service:
    def __init__(
        self, plan: Plan, supervisor: Supervisor, lock: DataDirLock, terminal: Terminal, url: str, shown_url: str
    ) -> None:
        self.url = url
        self._shown_url = shown_url
        """For people, who may sit at another machine."""
        self._plan = plan
        self._supervisor = supervisor
        self._lock = lock
        self._terminal = terminal
        self._logs = plan.tasks.data_dir / "logs"
        self._probe = Probe(url, plan.preload, supervisor.wake, plan.tasks.redis_url)
        self._began = time.monotonic()
        self._store: Part | None = None
        self._store_socket: Path | None = None
        self._disk: DiskWatch | None = None
        self._parts: list[Part] = []
        self._vitals = Vitals(lambda: store.socket_dir(plan.tasks.data_dir))
        self._access = sharing.Access(plan.tasks.data_dir)
        self._announcement: discovery.Announcement | None = None
        self._advice: Advice | None = None

    def start(self, listen_fd: int) -> None:
        """Store first, since the others need it; then API and board, which do not wait for each other."""
        from ops.up import contact  # here, since a part of npu comes along, which this process is else without

        say(f"RockchipLlama {VERSION}")
        redis_url = self._plan.tasks.redis_url or self._start_store()
        if self._plan.check_keys is not None:
            self._plan.check_keys(redis_url)
        shared = {
            environment.variable("redis_url"): redis_url,
            lifeline.VARIABLE: str(self._supervisor.lifeline),
        }
        if self._plan.tasks.redis_url:
            say(f"  queue   {configuration.without_password(redis_url)}")
        api = {**shared, environment.LISTEN_FD: str(listen_fd)}
        # Models come later, and may be none: the service answers, and says so.
        self._start_part("api", self._plan.commands.api, api, (listen_fd,), secrets=True, on_ready=self._tell_systemd)
        say(f"  api     {self._shown_url}")
        say(f"  clients {contact.clients(self._shown_url)}")
        self._start_part("board", self._plan.commands.board, shared)
        say(f"  engine  {contact.computes(self._plan.tasks)}")
        if contact.is_board(self._plan.tasks):
            self._advice = Advice(self._plan.commands.doctor)
        say(f"  models  {self._plan.tasks.models_dir}")
        say(f"  logs    {self._logs}")

    def serve(self) -> None:
        """Tell when the first model is ready, then keep everything alive. Ends by `StopAsked` or `PartFailed`."""
        self._probe.start()
        told_absent = told_loading = ready = late = False
        while True:
            state = self._probe.state
            absent = self._probe.absent
            if absent and not told_absent:
                told_absent = True
                say(
                    f"Waiting for Redis at {absent}, where nobody answers. "
                    "Start it, or look at ROCKCHIPLLAMA_REDIS_URL; without that, the service brings its own."
                )
            if not ready and state.ready(self._plan.preload):
                ready = True
                self._tell_ready(state.loaded or state.models)
            if not ready and state.loading and not told_loading:
                told_loading = True
                say(f"Loading {', '.join(state.loading)} …")
            waited = time.monotonic() - self._began
            if not ready and not state.loading and not late and waited > PATIENCE:
                late = True
                why = " ".join(state.reasons) or f"{self._logs / 'board.log'} may say why."
                say(f"No model is ready after {waited:.0f} s. {why} Waiting on.")
                self._tell_advice()
                continue  # a model that became ready meanwhile wakes nobody again
            self._vitals.look(self._parts)
            limits = [self._vitals.pause] if self._vitals.pause is not None else []
            if not ready and not late:
                limits.append(max(0.1, PATIENCE - waited))
            self._supervisor.turn(min(limits, default=None))

    def stop(self) -> None:
        """API first (it lets answers end, which needs the workers), then the board with its workers, the store last."""
        self._probe.stop()
        if self._advice is not None:
            self._advice.close()
        order = self._order_of_ends()
        longest = sum(patience for _, patience in order) + lifeline.GRACE + 2.0
        systemd.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(longest * 1e6)}")
        if self._announcement is not None:
            self._announcement.close()
        if self._disk is not None:
            self._disk.stop()
        self._supervisor.stop([each for each in order if each[0] is not self._store])
        if self._store_socket is not None and self._plan.tasks.durability == "disk":
            store.carry(self._store_socket, carried.WRITE)
        self._supervisor.stop([each for each in order if each[0] is self._store])
        # A worker whose agent was killed notices now, and holds its output open until it is gone.
        self._supervisor.let_go()
        if not self._supervisor.drain(lifeline.GRACE + 2.0):
            log.warning("some processes of the service have not ended; the next start waits for them")
        self._vitals.close()
        if self._store_socket is not None:
            store.clean_up(self._store_socket, self._plan.tasks.data_dir)

    def _order_of_ends(self) -> list[tuple[Part, float]]:
        """The parts, in the order in which they are stopped, and the seconds that each may take."""
        patience = self._plan.up.stop_timeout
        order = [
            (part, max(patience, self._plan.drain + 5.0) if part.name == "api" else patience) for part in self._parts
        ]
        return order if self._store is None else [*order, (self._store, patience)]

    def _tell_systemd(self) -> None:
        systemd.tell("READY=1", f"STATUS=Listening at {self._shown_url}")

    def _start_store(self) -> str:
        folder = self._plan.tasks.data_dir / "valkey"
        sock = store.socket_dir(self._plan.tasks.data_dir) / store.SOCKET_NAME
        sock.unlink(missing_ok=True)
        sock.with_name(store.PASSWORD_NAME).unlink(missing_ok=True)
        self._store_socket = sock
        network = self._open_network(sock) if self._plan.up.share else None
        durable = self._plan.tasks.durability == "disk"
        memory = store.memory_limit(store.total_memory(), self._plan.up.store_memory)
        part = store.valkey(
            folder,
            sock,
            memory,
            durable=durable,
            log=self._logs / "valkey.log",
            lifeline=self._supervisor.lifeline,
            lock=self._lock.parts,
            show=self._terminal.show,
            mend=lambda: self._mend_store(folder),
            network=network,
        )
        self._store = part
        if durable and store.lacks_manifest(folder):
            self._mend_store(folder)
        self._supervisor.start(part)
        deadline = now() + STORE_PATIENCE
        while not store.answers(sock):
            self._supervisor.turn(0.02)
            if (ended := part.ended() is not None) or now() > deadline:
                self._supervisor.drain(1.0)
                if not ended or not self._mend_store(folder):
                    raise store.refused(part, folder)
                self._supervisor.start(part)
                deadline = now() + STORE_PATIENCE
        self._supervisor.keep(part)
        store.carry(sock, carried.TAKE)
        kept = f"files in {folder}" if durable else "in memory alone: jobs and API keys are forgotten when it stops"
        say(f"  queue   embedded Valkey, {kept}, at most {memory // 1024**2} MB")
        if durable:
            self._disk = DiskWatch(folder, sock, self._plan.up.disk_reserve * 1024**2, say)
            self._disk.start()
        if network is not None:
            tell_how_to_join(self._access, network.host, network.port)
            self._announce(network)
        return store.url(self._plan.tasks.data_dir)

    def _open_network(self, sock: Path) -> store.Network:
        host, port = self._plan.up.share_host, self._plan.up.share_port
        try:
            listen.listen(host, port).close()  # Valkey's own words for a taken port are for its log
        except PortInUse as error:
            why = getattr(error.__cause__, "strerror", None) or error.__cause__
            raise PortInUse(
                f"The queue cannot be shared on port {port} of {host} ({why}). Choose others with ROCKCHIPLLAMA_SHARE_PORT "
                "and ROCKCHIPLLAMA_SHARE_HOST."
            ) from error
        password = sharing.new_secret()
        sharing.write_private(sock.with_name(store.PASSWORD_NAME), password)
        self._access.prepare(password)
        return store.Network(host, port, self._access.users)

    def _announce(self, network: store.Network) -> None:
        if self._plan.up.announce is False or not discovery.installed():
            return
        self._announcement = discovery.Announcement(
            self._plan.tasks.board_name, network.host, network.port, self._access.digests
        )

    def _mend_store(self, folder: Path) -> bool:
        """Whether damage was found in the store's files, and cut out. Files that are whole are not why it ended."""
        from ops.up.append_only import mend  # with it comes a part of npu, for which there is seldom a need

        mended = False
        try:
            for sentence in mend(folder, store.server_binary()):
                say(sentence)
                mended = True
        except OSError as error:
            log.error("the damaged files in %s cannot be mended: %s", folder, error)
            return False
        return mended

    def _start_part(
        self,
        name: str,
        command: Sequence[str],
        env: dict[str, str],
        fds: tuple[int, ...] = (),
        *,
        secrets: bool = False,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        ear, told = self._vitals.listen_to(name, on_ready)
        if ear is not None:
            self._supervisor.hear(ear)
        part = Part(
            name,
            command,
            log=self._logs / f"{name}.log",
            env={**env, **told},
            fds=(self._supervisor.lifeline, self._lock.parts, *fds),
            show=self._terminal.show,
            secrets=secrets,
        )
        self._parts.append(part)
        self._supervisor.start(part)
        self._supervisor.keep(part)

    def _tell_advice(self) -> None:
        """Once: what would be better on this board."""
        advice, self._advice = self._advice, None
        lines = list(advice.lines(self._supervisor.until)) if advice is not None else []
        if lines:
            say("\n".join([f"What would be better (`{program()} doctor` says why):", *lines]))

    def _tell_ready(self, models: list[dict[str, Any]]) -> None:
        self._tell_advice()
        shown = ", ".join(in_words(model) for model in models[:5])
        systemd.tell(f"STATUS=Listening at {self._shown_url}{', with ' + shown if shown else ''}")
        needs_key = self._probe.state.needs_key
        how = trial(self._shown_url, self._plan.trusted_networks, needs_key=needs_key)
        say(f"Ready after {time.monotonic() - self._began:.1f} s{': ' + shown if shown else ''}. {how}")
        tried = min(
            models,
            key=lambda model: (model.get("id") != self._plan.tasks.default_model, "chat" not in capabilities(model)),
            default={},
        )
        line = try_it(self._shown_url, tried.get("id"), capabilities(tried), key=needs_key)
        say(f"\n  {line}\n\nCtrl-C stops everything.")
