"""Answers commands to one board: a few threads, none of which ever waits for a generation."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import redis

from npu.catalog import Catalog
from npu.engines import chat_template, describe, open_tokenizer
from npu.errors import EngineFailed, ModelRefused, PromptRefused
from npu.model import Model
from tasks import commands, keys
from tasks.connection import UNREACHABLE, Outages
from tasks.events import FailureCode, encode_events
from tasks.prompting.failures import failure
from tasks.prompting.prepare import Preparer
from tasks.requests import Unreadable, decode_request
from tasks.scripts import FAIL_QUEUED
from tasks.settings import TaskSettings

log = logging.getLogger("rockchipllama.board")

THREADS = 4
PREPARE_PATIENCE = 120.0
"""Seconds a job's preparation waits for its model to load; past that the worker finds out what is wrong."""
AGAIN = 0.25
"""Seconds between two tries of such a preparation."""


class _NotYet(Exception):
    """The model's tokenizer comes up with the model, which is still loading."""


class Desk:
    """Listens on the board's command channel. `load` and `unload` are the agent's; the rest is answered here."""

    def __init__(
        self,
        client: redis.Redis,
        settings: TaskSettings,
        catalog: Callable[[], Catalog],
        load: Callable[[Model], None],
        unload: Callable[[Model], None],
        context_length: int | None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._catalog = catalog
        self._load = load
        self._unload = unload
        self._context_length = context_length
        self._preparers: dict[str, tuple[Model, Preparer]] = {}
        self._postponed: deque[tuple[float, commands.Envelope]] = deque()
        """Preparations to try again, with the moment they came: they must not hold a thread while a model loads."""
        self._redis = Outages(log, "the command channel")
        self._closed = threading.Event()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="desk")
        self._listener = threading.Thread(target=self._listen, name="commands", daemon=True)
        self._listener.start()

    def close(self) -> None:
        """Take no more commands. Twice is safe."""
        self._closed.set()
        self._listener.join(timeout=5)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                with self._client.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
                    channel.subscribe(keys.commands(self._settings.board_name))
                    self._redis.found()
                    while not self._closed.is_set():
                        message = channel.get_message(timeout=AGAIN if self._postponed else 1.0)
                        if message is not None:
                            self._threads.submit(self._receive, bytes(message["data"]))
                        else:
                            for _ in range(len(self._postponed)):
                                since, envelope = self._postponed.popleft()
                                self._threads.submit(self._answer, envelope, since)
            except UNREACHABLE as error:
                self._redis.lost(error)
                self._closed.wait(0.5)

    def _receive(self, data: bytes) -> None:
        try:
            envelope = commands.decode_envelope(data)
        except msgspec.DecodeError as error:
            log.warning("a command of another version was ignored: %s", error)
            return
        self._answer(envelope, time.monotonic())

    def _answer(self, envelope: commands.Envelope, since: float) -> None:
        result: object = None
        code = error_text = ""
        try:
            result = self._obey(envelope.command)
        except _NotYet as error:
            if time.monotonic() - since < PREPARE_PATIENCE:
                self._postponed.append((since, envelope))
                return
            code, error_text = FailureCode.MODEL_UNAVAILABLE, str(error)
        except UNREACHABLE as error:
            log.warning("a command went unanswered, Redis is away: %s", error)
            return
        except Exception as error:
            failed = failure(error)
            code, error_text = failed.code, failed.message
            if failed.code is FailureCode.INTERNAL:
                log.exception("a command failed")
        try:
            commands.reply(self._client, envelope, result, code=code, error=error_text)
        except UNREACHABLE as error:
            log.warning("a command went unanswered, Redis is away: %s", error)

    def _obey(self, command: commands.Command) -> object:
        model = self._catalog().find(command.model)
        if model is None:
            raise ModelRefused(f"This board has no model '{command.model}'.")
        match command:
            case commands.Load():
                self._load(model)
                return None
            case commands.Unload():
                self._unload(model)
                return None
            case commands.Tokenize(text=text, add_special=add_special):
                return self._preparer(model).tokenize(text, add_special=add_special)
            case commands.Render(messages=messages, template_options=options):
                return self._preparer(model).render(
                    messages, {name: msgspec.json.decode(raw) for name, raw in options.items()}
                )
            case commands.Prepare(job=job):
                return self._prepare(model, job)

    def _prepare(self, model: Model, job: str) -> str:
        """Check a waiting job; fail it if it can never run. `ready`, `failed`, or `gone` when it does not wait any more."""
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
        except EngineFailed as error:
            raise _NotYet(f"'{model.id}' was not loaded within {PREPARE_PATIENCE:.0f} s: {error}") from error

    def _preparer(self, model: Model) -> Preparer:
        kept = self._preparers.get(model.id)
        if kept is None or kept[0] != model:
            context_length = describe(model, self._context_length).context_length
            tokenizer = open_tokenizer(model, self._settings.data_dir / "run")
            kept = self._preparers[model.id] = (
                model,
                Preparer(model, tokenizer, chat_template(model), context_length),
            )
        return kept[1]
