"""Which models of a board have workers: started for who asks, unloaded when nobody does or for others, taken over from before."""

from __future__ import annotations

import difflib
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import redis

from npu.engines import Facts, Setup, describe
from npu.errors import ModelRefused, OutOfMemory
from npu.model import LoadWhen, Model
from tasks import keys, worker_lock
from tasks.board.announced import Announced
from tasks.board.keeping import Keeping
from tasks.board.process import WorkerProcess
from tasks.board.room import MakingRoom, NoRoomYet, Room
from tasks.board.runtimes import ENGINE
from tasks.board.settings import BoardSettings
from tasks.board.turns import Turns
from tasks.board.unparking import Unparking
from tasks.board.workers import Workers
from tasks.connection import UNREACHABLE
from tasks.instances import instance_name, model_of, number_of
from tasks.model_events import ModelEvents, Unload
from tasks.settings import TaskSettings
from tasks.standing import Gate, read_gate

log = logging.getLogger("rockchipllama.board")

GRACE = 15.0
"""Seconds a worker gets to stop, its own grace for the job in hand included."""


class Loading:
    """Starts and stops the workers of one board. Usable from any thread."""

    def __init__(
        self,
        client: redis.Redis,
        settings: TaskSettings,
        board_settings: BoardSettings,
        setup: Setup,
        here: Announced,
        workers: Workers,
        keeping: Keeping,
        room: Room,
        turns: Turns,
        events: ModelEvents,
        leaving: threading.Event,
        drained: Callable[[], bool],
        changing: Callable[[], bool],
    ) -> None:
        """`leaving` is set when the board leaves. `drained` tells whether it is to serve nothing, and `changing` whether its
        runtime is being changed."""
        self._client = client
        self._settings = settings
        self._board_settings = board_settings
        self._board = settings.board_name
        self._setup = setup
        self._here = here
        self._workers = workers
        self._keeping = keeping
        self._room = room
        self._turns = turns
        self._events = events
        self._leaving = leaving
        self._drained = drained
        self._changing = changing
        self._unparking = Unparking(client, self._board, leaving)
        self.fitting = threading.Lock()
        """Held by whoever looks for room and takes it, or gives it back: what was seen holds until it is acted upon."""
        self.unloaded = threading.Event()
        """A model was unloaded: jobs may wait for it, and need not wait for the next look as well."""
        self.fewer: dict[str, str] = {}
        """What there is to say of models that have fewer workers than their manifest asks for."""
        self._to_load: set[str] = set()
        """Workers that are still to be told to load: each listens a moment after it was started."""

    def load(self, model: Model) -> None:
        """Have a worker of `model`, with its model loaded, beside the others. Raises `OutOfMemory` with the figures when it does
        not fit."""
        self._load(model, in_place=False)

    def load_to_help(self, model: Model) -> None:
        """The same for jobs that wait. Raises `ModelRefused` also for a model that they do not load."""
        self._load(model, in_place=False, for_jobs=True)

    def load_in_place(self, model: Model, by_hand: bool = False) -> None:
        """The same, but others that nobody uses are unloaded where it takes their memory. `by_hand` it is not for jobs.

        Raises `MakingRoom` while they are, and `NoRoomYet` when there is something to do for them first.
        """
        self._load(model, in_place=True, for_jobs=not by_hand)

    def load_for_jobs(self, model: Model, waited: float | None) -> None:
        """The same for jobs that have waited so many seconds for room: then those that always have something to do give way.
        None where others may still have room."""
        self._load(model, in_place=True, for_jobs=True, waited=waited)

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

    def _load(self, model: Model, *, in_place: bool, for_jobs: bool = False, waited: float | None = None) -> None:
        if self._drained():
            raise ModelRefused(
                f"The board '{self._board}' is drained and serves nothing; `rockchipllama boards resume {self._board}` ends that."
            )
        facts = describe(model, self._setup)
        needed, domains = facts.memory_bytes, facts.memory_domains
        with self.fitting:  # two at once would both find the same room
            if for_jobs and model.load is LoadWhen.MANUAL and not self._workers.has(model.id):
                raise ModelRefused(
                    f"'{model.id}' is not loaded, and requests do not load it (`load = \"manual\"` in its manifest). "
                    f"`rockchipllama models load {model.id}` does."
                )
            if self._changing() and model.engine == ENGINE:
                raise NoRoomYet(f"The runtime of this board is being changed, and '{model.id}' is loaded after that.")
            # Where the same model is being unloaded, it is that one's memory that its successor gets.
            successor = self._workers.has(model.id) or model.id in self._workers.leaving()
            another = self._turns.next not in (None, model.id) and not self._workers.has(model.id)
            if another and (waited is None or not self._turns.overtakes(model.id)):
                raise NoRoomYet(f"'{self._turns.next}' is loaded first, whose jobs have waited for room.")
            if not successor and not self._unparking.until(
                lambda parked: self._room.fits(needed, domains, given_back=parked)
            ):
                if not in_place:
                    raise self._room.refusal(model, needed, domains)
                giving_way = self._turns.giving_way(model.id, waited) if waited is not None else {}
                for other in self._in_the_way(model, needed, domains, giving_way):
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
                    self._workers.stop_behind(other, GRACE + patience, self.unloaded.set)
                raise MakingRoom(f"Other models are being unloaded to make room for '{model.id}'.")
            if not self._workers.has(model.id):
                self._unparking.pause(promised=True)
            self._workers.start(model, needed, self._room.domain(model, needed, domains))
            if self._turns.next == model.id:
                self._turns.next = None
            self._start_further(model, facts)
            self._to_load.add(model.id)
            self._keeping.wanted(model.id)

    def _in_the_way(self, model: Model, needed: int, domains: Sequence[int], giving_way: Collection[str]) -> list[str]:
        here = self._workers.sizes(), self._workers.leaving()
        try:
            return self._room.in_the_way(model, needed, domains, giving_way)
        except OutOfMemory as error:
            # What is unloaded during that look may be counted as in the way by one part of it, and as gone by another.
            if here != (self._workers.sizes(), self._workers.leaving()):
                raise MakingRoom(f"Other models were unloaded while room was looked for '{model.id}'.") from error
            if isinstance(error, NoRoomYet):
                raise
            if self._changing():  # a trial takes memory that will be free again
                raise NoRoomYet(
                    f"A runtime is being tried on this board, and whether there is room for '{model.id}' is seen after that."
                ) from error
            raise

    @contextmanager
    def room_for_trial(self, model: Model, setup: Setup) -> Iterator[None]:
        """Memory for `model` beside what is loaded, without a worker, within the block; what is being unloaded is waited for.
        Raises `OutOfMemory` with the figures where there is none, and `ModelRefused`."""
        needed = describe(model, setup).memory_bytes
        with ExitStack() as held:
            while True:
                leaving = self._workers.held_by_leaving()  # before the look: what goes meanwhile is free at the next
                with self.fitting:
                    if self._unparking.until(lambda parked: self._room.fits(needed, given_back=parked)):
                        held.enter_context(self._workers.set_aside(needed))
                        self._unparking.pause(promised=True)
                        break
                    refusal = self._room.refusal(model, needed)
                if not leaving or self._leaving.wait(0.1):
                    raise refusal
            yield

    def _start_further(self, model: Model, facts: Facts) -> None:
        """Have as many workers of a model as its manifest says, as far as they fit beside all that is loaded."""
        for number in range(2, model.instances + 1):
            name = instance_name(model.id, number)
            if name in self._workers.names(model.id):
                continue
            if not self._room.fits(facts.memory_bytes, facts.memory_domains, once_more=model.id):
                refusal = self._room.refusal(model, facts.memory_bytes, facts.memory_domains)
                note = f"It has {number - 1} of the {model.instances} workers that its manifest asks for. {refusal}"
                if model.id not in self.fewer:
                    log.warning("%s: %s", model.id, note)
                self.fewer[model.id] = note
                return
            domain = self._room.domain(model, facts.memory_bytes, facts.memory_domains, number)
            self._unparking.pause(promised=True)
            self._workers.start(model, facts.memory_bytes, domain, number)
            self._to_load.add(name)
        self.fewer.pop(model.id, None)

    def find_room_for_further(self, model: Model) -> None:
        """Another model may have gone since it was loaded; for whom jobs wait, that one is worth it."""
        if self._drained() or self._turns.next is not None or not self._client.zcard(keys.waiting(model.id)):
            return
        try:
            facts = describe(model, self._setup)
        except (ModelRefused, OSError):
            return  # what is wrong with its files was told
        with self.fitting:
            if self._workers.has(model.id) and not (self._changing() and model.engine == ENGINE):
                self._start_further(model, facts)

    def unload(self, model: Model) -> bool:
        """Stop the workers of `model`, whether it had any; a job in hand gets the worker's grace."""
        with self.fitting:
            known = self._workers.has(model.id)
            if known:
                self._events.unloaded(model.id, Unload.ASKED)
            released = self._release(model.id)
        self._workers.end(released, GRACE)
        self.unloaded.set()
        return known or bool(released)

    def keep(self, model_id: str, seconds: float) -> None:
        """Have it stay so long after its last job, or after this; below 0 for ever."""
        with self.fitting:  # else it may be unloaded by who has seen that it need not stay
            self._keeping.ask(model_id, seconds)

    def put_away(self, model_id: str) -> None:
        """Unload a model whose time is over, unless somebody has asked for it meanwhile; who asks while it goes has it loaded
        again at once, where its queue is not paused and jobs may load it: others would wait for that to be noticed."""
        model = self._here.catalog.find(model_id)
        with self.fitting:
            if not self._keeping.is_over(model_id):
                return
            log.info("nobody asks for %s any more: it is unloaded", model_id)
            self._events.unloaded(model_id, Unload.IDLE)
            released = self._release(model_id)
        self._workers.end(released, GRACE)
        try:
            paused = read_gate(cast("bytes | None", self._client.hget(keys.GATES, model_id))) is Gate.PAUSED
            if model is not None and not paused and self._client.zcard(keys.waiting(model_id)):
                self.load_to_help(model)
        except (*UNREACHABLE, ModelRefused, OSError) as error:
            log.warning("%s is wanted again, and was not loaded: %s", model_id, error)

    def _release(self, model_id: str) -> Mapping[str, WorkerProcess]:
        """Know nothing more of the model, `fitting` held; its workers, which are still to be ended."""
        self._keeping.forget(model_id)
        self._load_no_more(model_id)
        return self._workers.release(model_id)

    def tell_to_load(self) -> None:
        leaving = self._workers.leaving()
        for name in tuple(self._to_load):
            # One that leaves listens still, and would hear what is said to its successor.
            if model_of(name) not in leaving and self._client.publish(keys.control(f"{name}@{self._board}"), "load"):
                self._to_load.discard(name)

    @property
    def to_tell(self) -> bool:
        """Whether a worker is still to be told to load its model."""
        return bool(self._to_load)

    def pause_parking(self) -> None:
        """Have no worker park anything while a model is loaded or tried here. Raises what the client raises."""
        self._unparking.pause(promised=bool(self._to_load) or self._workers.aside() > 0)

    def _load_no_more(self, model_id: str) -> None:
        self.fewer.pop(model_id, None)
        for name in tuple(self._to_load):
            if model_of(name) == model_id:
                self._to_load.discard(name)

    def take_over(self) -> None:
        """Adopt the workers an earlier agent left behind when it was killed: nobody else would end or restart them."""
        models = {model.id: model for model in self._here.catalog.models}
        for name in worker_lock.held(self._settings.data_dir):
            model = models.get(model_of(name))
            if model is None:
                log.info("the model %s is gone", model_of(name))
                self.dismiss(model_of(name))
            elif self._workers.adopt(model, *self._footprint(model), number_of(name)):
                self._to_load.add(name)

    def _footprint(self, model: Model) -> tuple[int, int | None]:
        """What a model takes, and the NPU's memory domain that it is in where nobody chose another."""
        try:
            facts = describe(model, self._setup)
        except (ModelRefused, OSError):
            return 0, None  # what is wrong with its files was told; its worker holds it all the same
        return facts.memory_bytes, facts.memory_domains[0] if facts.memory_domains else None

    def dismiss(self, model_id: str) -> None:
        with self.fitting:
            self._keeping.forget(model_id)
            self._load_no_more(model_id)
            if self._workers.has(model_id):
                self._events.unloaded(model_id, Unload.GONE)
            # Its last job gets the worker's grace, for which this loop must not wait.
            self._workers.stop_behind(model_id, GRACE, self.unloaded.set)

    def preload(self) -> None:
        """Load the models that are to be there from the start, and the default model; where there are none, the first that can
        be loaded."""
        wanted = self._settings.default_model
        candidates = [
            model
            for model in self._here.catalog.models
            if model.id in self._here.ids and model.load is not LoadWhen.MANUAL
        ]
        if wanted:
            default = self._here.catalog.find(wanted)
            if default is None:
                near = difflib.get_close_matches(wanted.lower(), [model.id for model in candidates], n=1, cutoff=0.3)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                log.error("the default model '%s' is not in %s.%s", wanted, self._settings.models_dir, hint)
            else:
                candidates = [default]
        if not self._board_settings.preload or self._drained():
            return
        named = [
            model
            for model in self._here.catalog.models
            if model.load is LoadWhen.PRELOAD and model.id in self._here.ids
        ]
        for model in named:
            self._try_to_load(model)
        if named and not wanted:
            return
        # Most come to chat; and an echo is for trying things out: whoever has another model means that one.
        # One made of another may have a role to play, and comes after that.
        ids = {model.id for model in candidates}
        for model in sorted(
            candidates, key=lambda model: (model.id not in self._here.chats, model.base in ids, model.engine == "echo")
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

    def load_again(self, before: Mapping[str, float | None]) -> None:
        """Load what was loaded before a drain, to stay for as long as was asked then; or what is loaded at a start."""
        for model in [model for model in self._here.catalog.models if model.id in before]:
            try:
                self.load(model)
                if (seconds := before[model.id]) is not None:
                    self.keep(model.id, seconds)
            except (ModelRefused, OSError) as error:
                log.warning("%s was loaded before the drain, and was not loaded again: %s", model.id, error)
        if not before:
            self.preload()
