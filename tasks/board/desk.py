"""Answers commands to one board. Each model has lanes of its own, so none waits for another's, nor for a generation."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

import redis

from npu.catalog import Catalog
from npu.engines import chat_template, describe, open_tokenizer
from npu.errors import EngineFailed, ModelRefused, OutOfMemory, PromptRefused
from npu.model import Model
from tasks import commands, keys
from tasks.board.defects import Defects
from tasks.board.lanes import Lanes
from tasks.board.room import NoRoomYet
from tasks.connection import UNREACHABLE, Outages
from tasks.envelope import Envelope, NotUnderstood, decode_envelope, refuse, reply
from tasks.errors import CommandFailed
from tasks.events import FailureCode, encode_events
from tasks.prompting.failures import failure, without_folders
from tasks.prompting.prepare import Preparer
from tasks.prompting.setup import setup_of
from tasks.requests import Unreadable, decode_request
from tasks.scripts import FAIL_QUEUED
from tasks.settings import TaskSettings

log = logging.getLogger("rockchipllama.board")

WAITING = {"worker": 32, "text": 256, "prepare": 32, "shelf": 32, "runtime": 1, "lend": 8}
"""Commands of each kind that may wait for one model. A preparation too many is left out: the worker checks the job again."""
PREPARE_PATIENCE = 120.0
"""Seconds a job's preparation waits for its model to load; past that the worker finds out what is wrong."""
TOKENIZER_KEPT = 600.0
"""Seconds for which a model's tokenizer is kept that nobody asks for: one of 150,000 tokens takes 60 MB, and its worker has it
as well."""
AGAIN = 0.25
"""Seconds between two tries of such a preparation."""


class Desk:
    """Listens on the board's command channel. `load`, `unload`, `keep` and `change` are the agent's; the rest is answered
    here."""

    def __init__(
        self,
        client: redis.Redis,
        settings: TaskSettings,
        catalog: Callable[[], Catalog],
        load: Callable[[Model, bool], None],
        unload: Callable[[Model], bool],
        keep: Callable[[str, float], None],
        change: Callable[[commands.Changing], object],
    ) -> None:
        self._client = client
        self._settings = settings
        self._catalog = catalog
        self._load = load
        self._unload = unload
        self._keep = keep
        self._change = change
        self._setup = setup_of(settings)
        self._preparers: dict[str, tuple[tuple[object, ...], Preparer]] = {}
        """Each with what it was made from."""
        self._asked_at: dict[str, float] = {}
        """When each of them was last asked for."""
        self._redis = Outages(log, "the command channel")
        self._defects = Defects(log, "the command channel")
        self._closed = threading.Event()
        self._lanes = Lanes()
        self._listener = threading.Thread(target=self._listen, name="commands", daemon=True)
        self._listener.start()

    def close(self) -> None:
        """Take no more commands. Twice is safe."""
        self._closed.set()
        self._lanes.close()
        self._listener.join(timeout=5)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
                    channel.subscribe(keys.commands(self._settings.board_name))
                    self._redis.found()
                    while not self._closed.is_set():
                        message = channel.get_message(timeout=1.0)
                        if message is not None:
                            self._receive(bytes(message["data"]))
                        self._let_go(time.monotonic())
            except UNREACHABLE as error:
                self._redis.lost(error)
                self._closed.wait(0.5)
            except Exception as error:
                self._defects.met(error)
                self._closed.wait(0.5)

    def _receive(self, data: bytes) -> None:
        """Put a command into its lane."""
        try:
            envelope = decode_envelope(data)
        except NotUnderstood as error:
            log.warning("a command was refused: %s", error)
            refuse(self._client, error)
            return
        model = self._catalog().find(envelope.command.model)
        kind = _kind(envelope.command)
        lane = (kind, model.id if model is not None else None)
        if not self._lanes.submit(lane, partial(self._answer, envelope, time.monotonic()), WAITING[kind]):
            full = f"Too many commands of this kind wait for '{envelope.command.model}' on this board. Try again later."
            self._reply(envelope, code=commands.BUSY, error=full)

    def _answer(self, envelope: Envelope, since: float) -> None:
        """Obey, and reply whatever comes of it: somebody waits."""
        try:
            result = self._obey(envelope.command, since)
        except CommandFailed as error:
            self._reply(envelope, code=error.code, error=without_folders(str(error)))
        except OSError as error:
            log.error("a command failed, the files of %s cannot be read: %s", envelope.command.model, error)
            why = f"The files of '{envelope.command.model}' cannot be read on this board ({error.strerror or error})."
            self._reply(envelope, code=FailureCode.MODEL_UNAVAILABLE, error=why)
        except UNREACHABLE as error:
            log.warning("a command failed, Redis is away: %s", error)
            self._reply(envelope, code=FailureCode.INTERNAL, error="The board lost Redis while it did this. Try again.")
        except Exception as error:
            failed = failure(error)
            if failed.code is FailureCode.INTERNAL:
                log.exception("a command failed")
            self._reply(envelope, code=failed.code, error=failed.message)
        else:
            self._reply(envelope, result)

    def _reply(self, envelope: Envelope, result: object = None, *, code: str = "", error: str = "") -> None:
        try:
            reply(self._client, envelope, result, code=code, error=error)
        except UNREACHABLE as away:
            log.warning("a command went unanswered, Redis is away: %s", away)

    def _obey(self, command: commands.Command, since: float) -> object:
        if isinstance(command, commands.Changing):
            return self._change(command)
        model = self._catalog().find(command.model)
        if model is None:
            raise ModelRefused(f"This board has no model '{command.model}'.")
        match command:
            case commands.Load(by_hand=by_hand):
                try:
                    self._load(model, by_hand)
                except OutOfMemory as error:
                    yet = isinstance(error, NoRoomYet)
                    code = commands.CommandCode.NO_ROOM_YET if yet else commands.CommandCode.DOES_NOT_FIT
                    raise CommandFailed(code, str(error)) from error
                return None
            case commands.Unload():
                return self._unload(model)
            case commands.Keep(seconds=seconds):
                self._keep(model.id, seconds)
                return None
            case commands.Tokenize(text=text, add_special=add_special, parse_special=parse_special):
                return self._preparer(model).tokenize(text, add_special=add_special, parse_special=parse_special)
            case commands.Detokenize(tokens=tokens):
                return self._preparer(model).pieces(tokens)
            case commands.Render(request=request):
                return self._preparer(model).text_of(request)
            case commands.Encode(request=request):
                return self._preparer(model).tokens_of(request)
            case commands.Count(request=request):
                return len(self._preparer(model).tokens_of(request))
            case commands.Describe():
                template = chat_template(model)
                return commands.Description(
                    template=template.source if template is not None else "",
                    sampling=dict(model.sampling_defaults),
                    stop=model.stop,
                    system=model.system,
                )
            case commands.Prepare(job=job):
                return self._prepare(model, job, since)

    def _prepare(self, model: Model, job: str, since: float) -> str:
        """Check a waiting job; fail it if it can never run. `ready`, `failed`, or `gone` when it does not wait any more.

        Some tokenizers come up with their model only. Then all of its preparations wait, in this lane, until it is loaded.
        """
        while True:
            try:
                return self._check(model, job)
            except EngineFailed as error:
                if time.monotonic() - since > PREPARE_PATIENCE or self._closed.wait(AGAIN):
                    raise ModelRefused(
                        f"'{model.id}' was not loaded within {time.monotonic() - since:.0f} s: {error}"
                    ) from error

    def _check(self, model: Model, job: str) -> str:
        state, request = self._client.hmget(keys.job(job), "state", "request")
        if state != b"queued" or request is None:
            return "gone"
        try:
            self._preparer(model).prepare(decode_request(request))  # type: ignore[arg-type]
            return "ready"
        except (PromptRefused, Unreadable) as error:
            failed = encode_events([failure(error)])
            where = [keys.job(job), keys.events(job), keys.waiting(model.id)]
            return "failed" if FAIL_QUEUED.run(self._client, where, job, failed, 0) == 1 else "gone"

    def _let_go(self, now: float) -> None:
        """Keep no tokenizer for long that nobody asks for."""
        for model in [model for model, asked_at in self._asked_at.copy().items() if now - asked_at > TOKENIZER_KEPT]:
            self._asked_at.pop(model, None)
            self._preparers.pop(model, None)

    def _preparer(self, model: Model) -> Preparer:
        self._asked_at[model.id] = time.monotonic()
        facts = describe(model, self._setup)
        # The model's files may change beside its manifest: a tokenizer is put there, or a load tells that the context is shorter.
        state = (model, facts.context_length, facts.chat, facts.completion)
        kept = self._preparers.get(model.id)
        if kept is None or kept[0] != state:
            tokenizer = open_tokenizer(model, self._setup)
            kept = self._preparers[model.id] = (
                state,
                Preparer(model, tokenizer, chat_template(model), facts.context_length),
            )
        return kept[1]


def _kind(command: commands.Command) -> str:
    """What is quick must not wait behind what is slow; loading and unloading one model keep their order."""
    match command:
        case commands.Load() | commands.Unload() | commands.Keep():
            return "worker"
        case (
            commands.Tokenize()
            | commands.Detokenize()
            | commands.Render()
            | commands.Encode()
            | commands.Count()
            | commands.Describe()
        ):
            return "text"
        case commands.Prepare():
            return "prepare"
        case commands.Pull() | commands.PullState() | commands.Delete() | commands.Copy() | commands.Create():
            return "shelf"
        case commands.UseRuntime():
            return "runtime"
        case commands.Lend():
            return "lend"
