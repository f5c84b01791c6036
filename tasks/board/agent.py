"""The agent of one board: announces what models lie here, keeps their workers, sweeps, answers commands."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from functools import partial

from redis.exceptions import OutOfMemoryError

from npu.engines.rkllm.trial import clear_trials
from npu.hardware import Memory
from tasks import commands, keys, lifeline, live_settings, logs, presence, systemd
from tasks.at_work import anybody_at_work
from tasks.blobs import drop_forgotten
from tasks.board import staging
from tasks.board.announced import LOOK, Announced
from tasks.board.board_lock import only_agent
from tasks.board.defects import Defects
from tasks.board.demand import Demand
from tasks.board.desk import Desk
from tasks.board.drain import Drain
from tasks.board.governors import Governors
from tasks.board.heat import HOT, Heat
from tasks.board.inventory import Inventory
from tasks.board.keeping import Keeping
from tasks.board.lending import Lending
from tasks.board.loading import GRACE, Loading
from tasks.board.losses import Losses
from tasks.board.machine import node_is_missing, read_machine, since_boot
from tasks.board.pull.neighbours import Neighbours
from tasks.board.pull.shelf import shelf_of
from tasks.board.pulls import Pulls
from tasks.board.room import Room
from tasks.board.runtimes import Runtimes
from tasks.board.settings import BoardSettings
from tasks.board.turns import Turns
from tasks.board.watchdog import Watchdog
from tasks.board.workers import Workers, worker_command
from tasks.connection import UNREACHABLE, Outages, connect, text
from tasks.errors import CommandFailed
from tasks.instances import model_of
from tasks.live_settings import LiveSettings
from tasks.model_events import ModelEvents
from tasks.prompting.setup import setup_of
from tasks.settings import TaskSettings, redis_url
from tasks.sweep import SWEEP, Sweeper
from tasks.version import VERSION

log = logging.getLogger("rockchipllama.board")

ROUND = 0.5
"""Seconds between two rounds of the loop, each of which looks whether a worker has died."""
SOON = 0.2
"""The same while a worker is to be told to load its model, and where it raises governors, without which jobs are slow."""
REST = 2.0
"""Seconds between two looks for models that nobody asks for any more."""
WATCH = 5.0
"""Seconds between two looks at the workers' breaths."""
TIDY = 3600.0
"""Seconds between two looks for files that were sent and that no model was made of."""


class Agent:
    """What the board's agent holds, and its loop."""

    def __init__(self, settings: TaskSettings, board_settings: BoardSettings) -> None:
        self._settings = settings
        self._board_settings = board_settings
        self._board = settings.board_name
        self._setup = setup_of(settings)
        self._url = redis_url(settings)
        self._client = connect(self._url)
        self._heat = Heat()
        self._events = ModelEvents()
        self._leaving = threading.Event()
        self._live = LiveSettings(settings)
        self._workers = Workers(worker_command, settings.data_dir, board_settings.restart_limit, lifeline.fds())
        self._announced = Announced(
            *(self._client, self._board, settings.models_dir, self._setup),
            notes=self._notes,
            gone=lambda model_id: self._loading.dismiss(model_id),
        )
        self._keeping = Keeping(
            *(self._client, self._board, lambda: self._live.now.keep_alive),
            always=lambda: {model.id for model in self._announced.catalog.models if model.pin},
        )
        self._room = Room(settings, board_settings, self._workers, self._keeping)
        self._turns = Turns(self._client, self._board, self._workers, self._keeping, board_settings.room_turn)
        self._loading = Loading(
            *(self._client, settings, board_settings, self._setup, self._announced, self._workers, self._keeping),
            *(self._room, self._turns, self._events, self._leaving),
            drained=lambda: self._drain.is_asked(),
            changing=lambda: self._runtimes.changing,
        )
        self._sweeper = Sweeper(self._client, settings.lease)
        self._watchdog = Watchdog(self._client, self._board, self._workers)
        self._losses = Losses(self._client, self._board, settings.lease)
        self._demand = Demand(
            *(self._client, self._board, lambda: self._announced.catalog, self._workers.has, self._workers.leaving),
            *(self._loading.load_to_help, self._loading.load_for_jobs, board_settings.room_wait),
        )
        self._governors = Governors(board_settings.governors, settings.data_dir)
        self._redis = Outages(log, "the board")
        self._defects = Defects(log, "the board")
        self._began = False
        """It has taken over what an earlier agent left, and loaded the default model."""
        self._drain = Drain(
            *(self._client, self._board, self._workers, self._keeping.asked),
            *(self._loading.dismiss, self._loading.load_again),
        )
        self._started = time.time()
        self._pulse = systemd.Pulse()
        neighbours = Neighbours(self._client, self._board, self._url)
        pulls = Pulls(
            *(self._client, self._board),
            lambda wait: shelf_of(settings, board_settings, wait=wait, neighbours=neighbours),
            self._announced.look_again,
        )
        self._lending = Lending(
            *(lambda: self._announced.catalog, settings.models_dir, self._url, board_settings.lend_port),
        )
        self._inventory = Inventory(settings.models_dir, pulls, self._announced.look_again)
        self._runtimes = Runtimes(
            *(settings, self._setup, lambda: self._announced.catalog, self._workers),
            *(self._loading.fitting, self._loading.load, self._loading.room_for_trial, GRACE),
        )
        self._runtime: presence.Runtime | None = None
        self._breathing = threading.Lock()
        self._desk: Desk | None = None

    def leave(self) -> None:
        """End the loop soon. From any thread, or a signal."""
        self._leaving.set()

    def run(self) -> int:
        """Work until told to leave."""
        systemd.tell("READY=1")  # nothing else of the machine waits for a Redis that may be away for long
        self._survive(self._governors.give_back_an_earlier_agents)
        self._survive(lambda: staging.clear(self._settings.models_dir))
        self._survive(lambda: clear_trials(self._setup.runtime_dir))
        self._tidy()
        while not self._leaving.is_set() and not self._reaches_redis():
            self._pulse.beat()
            self._leaving.wait(1.0)
        self._await_node()
        self._try(self._drain.look)
        self._try(self._look)
        self._desk = Desk(
            self._client,
            self._settings,
            lambda: self._announced.catalog,
            self._loading.load_after_others,
            self._loading.unload,
            self._loading.keep,
            self._change,
        )
        pauses = {
            self._breathe: presence.BREATH,
            self._look: LOOK,
            self._sweep: SWEEP,
            self._watchdog.look: WATCH,
            self._meet: WATCH,
            self._rest: REST,
            self._loading.pause_parking: WATCH,
            self._follow: live_settings.FRESH,
            self._tidy: TIDY,
        }
        due = {task: time.monotonic() + pause for task, pause in pauses.items()} | {self._breathe: 0.0}
        while not self._leaving.wait(SOON if self._governors.able or self._loading.to_tell else ROUND):
            self._survive(self._workers.tick)
            self._survive(lambda: self._governors.look(partial(anybody_at_work, self._settings.data_dir)))
            self._losses.note(self._workers.ended())
            self._try(self._losses.report)
            self._try(self._loading.tell_to_load)
            if self._announced.wanted:
                due[self._look] = 0.0
            if self._loading.unloaded.is_set():
                self._loading.unloaded.clear()
                due[self._meet] = 0.0
            for task, at in due.items():
                if time.monotonic() >= at:
                    due[task] = time.monotonic() + pauses[task]
                    self._try(task)
        systemd.tell("STOPPING=1")
        self._inventory.close()
        self._lending.close()
        self._desk.close()
        self._try(lambda: self._drain.hand_over(at_once=True))
        self._try(self._turns.hurry)
        self._survive(lambda: self._workers.stop_all(GRACE))
        self._survive(self._governors.give_back)
        self._losses.note(self._workers.ended())
        self._try(self._losses.report)
        self._try(lambda: presence.leave(self._client, f"board:{self._board}"))
        return 0

    def _look(self) -> None:
        """Read the models folder, and announce what is there; the first time, begin with it."""
        if not self._announced.look():
            return
        self._runtime = self._runtimes.told()
        if not self._began:
            self._began = True
            try:
                self._loading.take_over()
                self._loading.preload()
            except UNREACHABLE:
                self._began = False  # the next look begins again
                raise

    def _notes(self, model_id: str) -> list[str]:
        said = (self._workers.note(model_id), self._loading.fewer.get(model_id), HOT if self._heat.hot else None)
        return [note for note in said if note]

    def _meet(self) -> None:
        """Load what jobs wait for."""
        self._demand.meet()
        if self._turns.next not in self._demand.no_room:
            self._turns.next = None  # nobody waits for it any more
        for model in self._announced.catalog.models:
            if model.instances > len(self._workers.names(model.id)) and self._workers.has(model.id):
                self._loading.find_room_for_further(model)

    def _rest(self) -> None:
        """Unload what nobody has asked for in its time."""
        for model_id in self._keeping.over(set(map(model_of, self._workers.living()))):
            threading.Thread(target=self._loading.put_away, args=(model_id,), daemon=True).start()

    def _tidy(self) -> None:
        self._survive(lambda: drop_forgotten(self._settings.models_dir))

    def _follow(self) -> None:
        """Obey what is kept of settings for the whole service."""
        live_settings.follow(self._client, self._live)

    def _breathe(self) -> None:
        self._drain.look()
        if self._runtimes.changed:
            self._runtime = self._runtimes.told()
        with self._breathing:
            self._say_how_it_stands()
        self._events.report(self._client)
        self._redis.found()  # said here, for not all that is tried asks Redis anything

    def _tell_of_the_runtime(self) -> None:
        with self._breathing:
            self._runtime = self._runtimes.told()
            self._say_how_it_stands()

    def _say_how_it_stands(self) -> None:
        machine = read_machine(self._heat)
        budget, room = self._room.budget(Memory(machine.memory, machine.memory_available))
        breath = presence.Presence(
            name=f"board:{self._board}",
            board=self._board,
            refused=self._announced.refused,
            unusable=self._announced.unusable,
            stays=self._keeping.stays(),
            residents=self._residents(),
            runtime=self._runtime,
            budget=budget,
            room=room,
            started=self._started,
            version=VERSION,
            machine=machine,
            drained=self._drain.on,
            no_room=self._demand.no_room,
        )
        presence.breathe(self._client, breath)

    def _change(self, command: commands.Changing) -> object:
        """Do what a command says of the board's models or its runtime; its result. Raises `CommandFailed` and `OSError`."""
        if isinstance(command, commands.Lend):
            if not self._board_settings.neighbours:
                why = "This board gives no models to others (`neighbours` is false there)."
                raise CommandFailed(commands.CommandCode.NOT_POSSIBLE, why)
            return self._lending.lend(command)
        if not isinstance(command, commands.UseRuntime):
            return self._inventory.obey(command)
        try:
            return self._runtimes.use(command)
        finally:
            self._loading.unloaded.set()  # jobs may have come meanwhile for what was not loaded before
            self._announced.look_again()
            self._try(self._tell_of_the_runtime)  # who changed it looks at it next

    def _residents(self) -> dict[str, presence.Resident]:
        idle, pinned = self._keeping.idle(), self._keeping.pinned()
        return {
            model: presence.Resident(memory=size, idle=idle.get(model), pinned=model in pinned)
            for model, size in self._workers.sizes().items()
        }

    def _sweep(self) -> None:
        self._sweeper.sweep({field.split("/", 1)[0] for field in map(text, self._client.hkeys(keys.CARDS))})

    def _await_node(self) -> None:
        """Give the NPU's driver the time to show itself, when the machine has only just started."""
        until = self._board_settings.npu_wait
        if self._settings.rkllm_library.startswith("simulator") or since_boot() >= until or not node_is_missing():
            return
        log.warning("the NPU's device file is not there yet, or not open to this user: waiting for it")
        while node_is_missing() and since_boot() < until and not self._leaving.wait(0.5):
            self._pulse.beat()
        if node_is_missing():
            log.error("the NPU cannot be used; `rockchipllama doctor` says what mends that")

    def _reaches_redis(self) -> bool:
        try:
            return bool(self._client.ping())
        except UNREACHABLE as error:
            self._redis.lost(error)
        except Exception as error:
            self._defects.met(error)
        return False

    def _try(self, task: Callable[[], None]) -> None:
        """Do something that needs Redis. The loop goes on whatever comes of it."""
        self._pulse.beat()
        try:
            task()
        except UNREACHABLE as error:
            # A full Redis answers, and lets leases be renewed and breaths be taken: who does neither is gone.
            if not isinstance(error, OutOfMemoryError):
                self._sweeper.lost_redis()
                self._watchdog.forgive()
            self._redis.lost(error)
        except Exception as error:
            self._defects.met(error)

    def _survive(self, task: Callable[[], None]) -> None:
        """Do something that does not need Redis. The loop goes on whatever comes of it."""
        self._pulse.beat()
        try:
            task()
        except Exception as error:
            self._defects.met(error)


def main() -> int:
    """Run the agent until SIGTERM. Raises `BoardRefused`."""
    settings = TaskSettings()
    logs.configure(settings.log_level, settings.log_format)
    with only_agent(settings.data_dir, settings.board_name, redis_url(settings)):
        agent = Agent(settings, BoardSettings())
        signal.signal(signal.SIGTERM, lambda *_: agent.leave())
        signal.signal(signal.SIGINT, lambda *_: agent.leave())
        lifeline.watch(agent.leave)
        log.info("board %s starting", settings.board_name, extra={"models": str(settings.models_dir)})
        return agent.run()
