"""The agent of one board: announces what models lie here, keeps their workers, sweeps, answers commands."""

from __future__ import annotations

import difflib
import logging
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import cast

import msgspec
from redis.exceptions import OutOfMemoryError

from npu.catalog import Catalog, find_models
from npu.engines import Facts, describe
from npu.errors import ModelRefused
from npu.model import LoadWhen, Model
from tasks import commands, keys, lifeline, live_settings, logs, roster, systemd, worker_lock
from tasks.at_work import anybody_at_work
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
from tasks.board.losses import Losses
from tasks.board.machine import node_is_missing, read_machine, since_boot
from tasks.board.pull.neighbours import Neighbours
from tasks.board.pull.shelf import shelf_of
from tasks.board.pulls import Pulls
from tasks.board.room import MakingRoom, NoRoomYet, Room
from tasks.board.runtimes import ENGINE, Runtimes
from tasks.board.settings import BoardSettings
from tasks.board.turns import Turns
from tasks.board.unparking import Unparking
from tasks.board.watchdog import Watchdog
from tasks.board.workers import Workers, worker_command
from tasks.card import Card
from tasks.connection import UNREACHABLE, Outages, connect, text
from tasks.errors import CommandFailed
from tasks.instances import instance_name, model_of, number_of
from tasks.live_settings import LiveSettings
from tasks.model_events import ModelEvents, Unload
from tasks.prompting.cards import card_of
from tasks.prompting.failures import without_folders
from tasks.prompting.setup import setup_of
from tasks.settings import TaskSettings, redis_url
from tasks.standing import Gate, read_gate
from tasks.sweep import SWEEP, Sweeper
from tasks.version import VERSION

log = logging.getLogger("rockchipllama.board")

LOOK = 10.0
"""Seconds between two looks into the models folder."""
REST = 2.0
"""Seconds between two looks for models that nobody asks for any more."""
WATCH = 5.0
"""Seconds between two looks at the workers' breaths."""
MOST_REFUSED, LONGEST_REFUSAL = 50, 500
"""Names of files that cannot be used, and characters of the reason, that a breath takes along."""
GRACE = 15.0
"""Seconds a worker gets to stop, its own grace for the job in hand included."""


class Agent:
    """What the board's agent holds, and its loop."""

    def __init__(self, settings: TaskSettings, board_settings: BoardSettings) -> None:
        self._settings = settings
        self._board_settings = board_settings
        self._board = settings.board_name
        self._setup = setup_of(settings)
        self._url = redis_url(settings)
        self._client = connect(self._url)
        self._catalog = Catalog(())
        self._problems: set[str] = set()
        self._announced: set[str] = set()
        self._chats: set[str] = set()
        """Those of them that can chat."""
        self._refused: dict[str, str] = {}
        """Names of models whose files cannot be used, and why."""
        self._workers = Workers(worker_command, settings.data_dir, board_settings.restart_limit, lifeline.fds())
        self._sweeper = Sweeper(self._client, settings.lease)
        self._watchdog = Watchdog(self._client, self._board, self._workers)
        self._losses = Losses(self._client, self._board, settings.lease)
        self._demand = Demand(
            *(self._client, self._board, lambda: self._catalog, self._workers.has, self._workers.leaving),
            *(self.load_to_help, self._load_for_jobs, board_settings.room_wait),
        )
        self._live = LiveSettings(settings)
        self._keeping = Keeping(
            *(self._client, self._board, lambda: self._live.now.keep_alive),
            always=lambda: {model.id for model in self._catalog.models if model.pin},
        )
        self._room = Room(settings, board_settings, self._workers, self._keeping)
        self._turns = Turns(
            *(self._client, self._board, self._workers, self._keeping, board_settings.room_turn),
        )
        self._heat = Heat()
        self._events = ModelEvents()
        self._governors = Governors(board_settings.governors, settings.data_dir)
        self._redis = Outages(log, "the board")
        self._defects = Defects(log, "the board")
        self._fitting = threading.Lock()
        self._to_load: set[str] = set()
        """Workers that are still to be told to load: each listens a moment after it was started."""
        self._fewer: dict[str, str] = {}
        """What there is to say of models that have fewer workers than their manifest asks for."""
        self._began = False
        """It has taken over what an earlier agent left, and loaded the default model."""
        self._drain = Drain(self._client, self._board, self._workers, self._dismiss, self._load_again)
        self._started = time.time()
        self._leaving = threading.Event()
        self._unparking = Unparking(self._client, self._board, self._leaving)
        self._pulse = systemd.Pulse()
        self._unloaded = threading.Event()
        """A model was unloaded: jobs may wait for it, and need not wait for the next look as well."""
        self._looked = threading.Condition()
        self._looks_asked = self._looks_done = 0
        neighbours = Neighbours(self._client, self._board, self._url)
        pulls = Pulls(
            *(self._client, self._board),
            lambda wait: shelf_of(settings, board_settings, wait=wait, neighbours=neighbours),
            self.look_again,
        )
        self._lending = Lending(lambda: self._catalog, settings.models_dir, self._url, board_settings.lend_port)
        self._inventory = Inventory(settings.models_dir, pulls, self.look_again)
        self._runtimes = Runtimes(
            *(settings, self._setup, lambda: self._catalog, self._workers, self._fitting, self.load, GRACE),
        )
        self._runtime: roster.Runtime | None = None
        self._desk: Desk | None = None

    def leave(self) -> None:
        """End the loop soon. From any thread, or a signal."""
        self._leaving.set()

    def run(self) -> int:
        """Work until told to leave."""
        systemd.tell("READY=1")  # nothing else of the machine waits for a Redis that may be away for long
        self._survive(self._governors.give_back_an_earlier_agents)
        while not self._leaving.is_set() and not self._reaches_redis():
            self._pulse.beat()
            self._leaving.wait(1.0)
        self._await_node()
        self._try(self._drain.look)
        self._try(self._look)
        self._desk = Desk(
            self._client,
            self._settings,
            lambda: self._catalog,
            self.load_after_others,
            self.unload,
            self._keeping.ask,
            self._change,
        )
        pauses = {
            self._breathe: roster.BREATH,
            self._look: LOOK,
            self._sweep: SWEEP,
            self._watchdog.look: WATCH,
            self._meet: WATCH,
            self._rest: REST,
            self._follow: live_settings.FRESH,
        }
        due = {task: time.monotonic() + pause for task, pause in pauses.items()} | {self._breathe: 0.0}
        while not self._leaving.wait(0.2):
            self._survive(self._workers.tick)
            self._survive(lambda: self._governors.look(partial(anybody_at_work, self._settings.data_dir)))
            self._losses.note(self._workers.ended())
            self._try(self._losses.report)
            self._try(self._tell_to_load)
            if self._looks_asked > self._looks_done:
                due[self._look] = 0.0
            if self._unloaded.is_set():
                self._unloaded.clear()
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
        self._try(lambda: roster.leave(self._client, f"board:{self._board}"))
        return 0

    def look_again(self) -> None:
        """Have the models folder read now. Returns once what is there was announced, or soon when that cannot be done."""
        with self._looked:
            self._looks_asked += 1
            mine = self._looks_asked
            self._looked.wait_for(lambda: self._looks_done >= mine, timeout=LOOK)

    def load(self, model: Model) -> None:
        """Have a worker of `model`, with its model loaded, beside the others. Raises `OutOfMemory` with the figures when it does
        not fit."""
        self._load(model, in_place=False)

    def load_to_help(self, model: Model) -> None:
        """The same for jobs that wait. Raises `ModelRefused` also for a model that they do not load."""
        self._refuse_manual(model)
        self._load(model, in_place=False)

    def load_in_place(self, model: Model, by_hand: bool = False) -> None:
        """The same, but others that nobody uses are unloaded where it takes their memory. `by_hand` it is not for jobs.

        Raises `MakingRoom` while they are, and `NoRoomYet` when there is something to do for them first.
        """
        if not by_hand:
            self._refuse_manual(model)
        self._load(model, in_place=True)

    def _load_for_jobs(self, model: Model, waited: float | None) -> None:
        """The same for jobs that have waited so many seconds for room: then those that always have something to do give way.
        None where others may still have room."""
        self._refuse_manual(model)
        self._load(model, in_place=True, waited=waited)

    def _meet(self) -> None:
        """Load what jobs wait for."""
        self._demand.meet()
        if self._turns.next not in self._demand.no_room:
            self._turns.next = None  # nobody waits for it any more
        for model in self._catalog.models:
            if model.instances > len(self._workers.names(model.id)) and self._workers.has(model.id):
                self._find_room_for_further(model)

    def _find_room_for_further(self, model: Model) -> None:
        """Another model may have gone since it was loaded; for whom jobs wait, that one is worth it."""
        if self._drain.on or self._turns.next is not None or not self._client.zcard(keys.waiting(model.id)):
            return
        try:
            facts = describe(model, self._setup)
        except (ModelRefused, OSError):
            return  # what is wrong with its files was told
        with self._fitting:
            if self._workers.has(model.id):
                self._start_further(model, facts)

    def _refuse_manual(self, model: Model) -> None:
        if model.load is LoadWhen.MANUAL and not self._workers.has(model.id):
            raise ModelRefused(
                f"'{model.id}' is not loaded, and requests do not load it (`load = \"manual\"` in its manifest). "
                f"`rockchipllama models load {model.id}` does."
            )

    def load_after_others(self, model: Model, by_hand: bool = False) -> None:
        """The same, once those models are gone that are being unloaded. Where others are busy it returns at once: jobs wait for
        room, and a look for them loads the model. `by_hand` no job waits, and it raises `NoRoomYet`."""
        while True:
            try:
                return self.load_in_place(model, by_hand)
            except MakingRoom:
                if self._leaving.wait(0.1):
                    raise
            except NoRoomYet as wait:
                if by_hand:
                    raise
                return log.info("%s", wait)

    def _load(self, model: Model, *, in_place: bool, waited: float | None = None) -> None:
        if self._drain.on:
            raise ModelRefused(
                f"The board '{self._board}' is drained and serves nothing; `rockchipllama boards resume` ends that."
            )
        facts = describe(model, self._setup)
        needed, domains = facts.memory_bytes, facts.memory_domains
        with self._fitting:  # two at once would both find the same room
            if self._runtimes.changing and model.engine == ENGINE:
                raise NoRoomYet(f"The runtime of this board is being changed, and '{model.id}' is loaded after that.")
            # Where the same model is being unloaded, it is that one's memory that its successor gets.
            successor = self._workers.has(model.id) or model.id in self._workers.leaving()
            if self._turns.next not in (None, model.id) and not self._workers.has(model.id):
                raise NoRoomYet(f"'{self._turns.next}' is loaded first, whose jobs have waited for room.")
            if not successor and not self._unparking.until(lambda: self._room.fits(needed, domains)):
                if not in_place:
                    raise self._room.refusal(model, needed, domains)
                giving_way = self._turns.giving_way(model.id, waited) if waited is not None else {}
                for other in self._room.in_the_way(model, needed, domains, giving_way):
                    log.info("%s is unloaded to make room for %s", other, model.id)
                    patience = 0.0
                    if other in giving_way:
                        self._turns.next = model.id
                    if giving_way.get(other) and waited is not None:
                        # Its job in hand has as long as the others' jobs can wait.
                        patience = max(0.0, self._board_settings.room_wait - waited)
                        self._turns.tell(other, patience)
                    self._load_no_more(other)
                    self._keeping.forget(other)
                    self._events.unloaded(other, Unload.ROOM)
                    self._workers.stop_behind(other, GRACE + patience, self._unloaded.set)
                raise MakingRoom(f"Other models are being unloaded to make room for '{model.id}'.")
            self._workers.start(model, needed, self._room.domain(model, needed, domains))
            if self._turns.next == model.id:
                self._turns.next = None
            self._start_further(model, facts)
        self._to_load.add(model.id)

    def _start_further(self, model: Model, facts: Facts) -> None:
        """Have as many workers of a model as its manifest says, as far as they fit beside all that is loaded."""
        for number in range(2, model.instances + 1):
            name = instance_name(model.id, number)
            if name in self._workers.names(model.id):
                continue
            if not self._room.fits(facts.memory_bytes, facts.memory_domains, once_more=model.id):
                refusal = self._room.refusal(model, facts.memory_bytes, facts.memory_domains)
                note = f"It has {number - 1} of the {model.instances} workers that its manifest asks for. {refusal}"
                if model.id not in self._fewer:
                    log.warning("%s: %s", model.id, note)
                self._fewer[model.id] = note
                return
            domain = self._room.domain(model, facts.memory_bytes, facts.memory_domains, number)
            self._workers.start(model, facts.memory_bytes, domain, number)
            self._to_load.add(name)
        self._fewer.pop(model.id, None)

    def unload(self, model: Model) -> None:
        """Stop the workers of `model`; a job in hand gets the worker's grace."""
        self._load_no_more(model.id)
        if self._workers.has(model.id):
            self._events.unloaded(model.id, Unload.ASKED)
        self._workers.stop(model.id, GRACE)
        self._keeping.forget(model.id)
        self._unloaded.set()

    def _rest(self) -> None:
        """Unload what nobody has asked for in its time."""
        for model_id in self._keeping.over(set(map(model_of, self._workers.living()))):
            log.info("nobody asks for %s any more: it is unloaded", model_id)
            self._events.unloaded(model_id, Unload.IDLE)
            threading.Thread(target=self._put_away, args=(model_id,), daemon=True).start()

    def _follow(self) -> None:
        """Obey what is kept of settings for the whole service."""
        live_settings.follow(self._client, self._live)

    def _put_away(self, model_id: str) -> None:
        """Unload a model, and load it again at once when somebody has asked for it meanwhile, and its queue is not paused: others
        would wait for that to be noticed."""
        model = self._catalog.find(model_id)
        self._keeping.forget(model_id)
        self._workers.stop(model_id, GRACE)
        try:
            paused = read_gate(cast("bytes | None", self._client.hget(keys.GATES, model_id))) is Gate.PAUSED
            if model is not None and not paused and self._client.zcard(keys.waiting(model_id)):
                self.load(model)
        except (*UNREACHABLE, ModelRefused, OSError) as error:
            log.warning("%s is wanted again, and was not loaded: %s", model_id, error)

    def _tell_to_load(self) -> None:
        for name in tuple(self._to_load):
            if self._client.publish(keys.control(f"{name}@{self._board}"), "load"):
                self._to_load.discard(name)

    def _load_no_more(self, model_id: str) -> None:
        self._fewer.pop(model_id, None)
        for name in tuple(self._to_load):
            if model_of(name) == model_id:
                self._to_load.discard(name)

    def _take_over(self) -> None:
        """Adopt the workers an earlier agent left behind when it was killed: nobody else would end or restart them."""
        models = {model.id: model for model in self._catalog.models}
        for name in worker_lock.held(self._settings.data_dir):
            model = models.get(model_of(name))
            if model is None:
                log.info("the model %s is gone", model_of(name))
                self._dismiss(model_of(name))
            elif self._workers.adopt(model, *self._footprint(model), number_of(name)):
                self._to_load.add(name)

    def _footprint(self, model: Model) -> tuple[int, int | None]:
        """What a model takes, and the NPU's memory domain that it is in where nobody chose another."""
        try:
            facts = describe(model, self._setup)
        except (ModelRefused, OSError):
            return 0, None  # what is wrong with its files was told; its worker holds it all the same
        return facts.memory_bytes, facts.memory_domains[0] if facts.memory_domains else None

    def _dismiss(self, model_id: str) -> None:
        self._keeping.forget(model_id)
        self._load_no_more(model_id)
        if self._workers.has(model_id):
            self._events.unloaded(model_id, Unload.GONE)
        # Its last job gets the worker's grace, for which this loop must not wait.
        threading.Thread(target=self._workers.stop, args=(model_id, GRACE), daemon=True).start()

    def _preload(self) -> None:
        """Load the models that are to be there from the start, and the default model; where there are none, the first that can
        be loaded."""
        wanted = self._settings.default_model
        candidates = [
            model for model in self._catalog.models if model.id in self._announced and model.load is not LoadWhen.MANUAL
        ]
        if wanted:
            default = self._catalog.find(wanted)
            if default is None:
                near = difflib.get_close_matches(wanted.lower(), [model.id for model in candidates], n=1, cutoff=0.3)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                log.error("the default model '%s' is not in %s.%s", wanted, self._settings.models_dir, hint)
            else:
                candidates = [default]
        if not self._board_settings.preload or self._drain.on:
            return
        named = [
            model for model in self._catalog.models if model.load is LoadWhen.PRELOAD and model.id in self._announced
        ]
        for model in named:
            self._try_to_load(model)
        if named and not wanted:
            return
        # Most come to chat; and an echo is for trying things out: whoever has another model means that one.
        # One made of another may have a role to play, and comes after that.
        ids = {model.id for model in candidates}
        for model in sorted(
            candidates, key=lambda model: (model.id not in self._chats, model.base in ids, model.engine == "echo")
        ):
            if self._try_to_load(model):
                return

    def _try_to_load(self, model: Model) -> bool:
        try:
            self.load(model)
        except (ModelRefused, OSError) as error:
            log.error("%s", error)
            return False
        return True

    def _look(self) -> None:
        """Read the models folder, and announce what is there."""
        asked = self._looks_asked
        try:
            self._announce()
        finally:
            with self._looked:
                self._looks_done = asked
                self._looked.notify_all()

    def _announce(self) -> None:
        problems: list[str] = []
        found = self._read_models(problems)
        for problem in problems:
            if problem not in self._problems:
                log.warning("%s", problem)
        self._problems = set(problems)
        if found is None:
            return
        for card in found.values():
            if card is not None:
                roster.announce(self._client, card)
        announced = set(found)
        for model_id in sorted(announced - self._announced):
            log.info("found the model %s", model_id)
        for model_id in sorted(self._announced - announced):
            log.info("the model %s is gone", model_id)
            self._dismiss(model_id)
        self._announced = announced
        self._runtime = self._runtimes.told()
        self._chats = {card.id for card in found.values() if card is not None and card.chats}
        roster.withdraw(self._client, self._board, announced)
        if not self._began:
            self._began = True
            self._take_over()
            self._preload()

    def _read_models(self, problems: list[str]) -> dict[str, Card | None] | None:
        """The card of each model here, None for one that is known and cannot be read now. None when nothing can be read.

        Adds what is wrong to `problems`. A disk that fails is no outage of Redis, though both are `OSError`s; models on
        it stay announced, for a worker may hold them in memory.
        """
        folder = self._settings.models_dir
        try:
            self._catalog = find_models(folder)
        except OSError as error:
            problems.append(f"The models folder {folder} cannot be read ({error}). What was found there before stays.")
            return None
        problems += [*self._catalog.problems, *self._catalog.clashes]
        found: dict[str, Card | None] = {}
        refused = dict(self._catalog.refused)
        for model in self._catalog.models:
            try:
                card = card_of(model, self._board, self._setup)
            except ModelRefused as error:
                # A file that is still being copied is no problem yet; one from the future is not, on a board in 1970.
                if abs(time.time() - model.created) > LOOK:
                    problems.append(str(error))
                    refused |= dict.fromkeys((model.id, *map(str.lower, model.names)), str(error))
                continue
            except OSError as error:
                problems.append(f"The model {model.id} in {model.folder} cannot be read ({error}).")
                if model.id in self._announced:
                    found[model.id] = None
                continue
            said = (self._workers.note(model.id), self._fewer.get(model.id), HOT if self._heat.hot else None)
            notes = [note for note in said if note]
            found[model.id] = msgspec.structs.replace(card, notes=(*card.notes, *notes))
        shown = tuple(refused.items())[:MOST_REFUSED]
        self._refused = {name: without_folders(why)[:LONGEST_REFUSAL] for name, why in shown}
        return found

    def _breathe(self) -> None:
        self._drain.look()
        budget, room = self._room.budget()
        breath = roster.Presence(
            name=f"board:{self._board}",
            board=self._board,
            refused=self._refused,
            stays=self._keeping.stays(),
            residents=self._residents(),
            runtime=self._runtime,
            budget=budget,
            room=room,
            started=self._started,
            version=VERSION,
            machine=read_machine(self._heat),
            drained=self._drain.on,
            no_room=self._demand.no_room,
        )
        roster.breathe(self._client, breath)
        self._events.report(self._client)
        self._redis.found()  # said here, for not all that is tried asks Redis anything

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
            self._unloaded.set()  # jobs may have come meanwhile for what was not loaded before
            self.look_again()

    def _residents(self) -> dict[str, roster.Resident]:
        idle, pinned = self._keeping.idle(), self._keeping.pinned()
        return {
            model: roster.Resident(memory=size, idle=idle.get(model), pinned=model in pinned)
            for model, size in self._workers.sizes().items()
        }

    def _load_again(self, before: set[str]) -> None:
        """Load what was loaded before a drain, or what is loaded at a start."""
        for model in [model for model in self._catalog.models if model.id in before]:
            try:
                self.load(model)
            except (ModelRefused, OSError) as error:
                log.warning("%s was loaded before the drain, and was not loaded again: %s", model.id, error)
        if not before:
            self._preload()

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
