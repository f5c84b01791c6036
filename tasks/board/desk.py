"""Answers commands to one board: a few threads, none of which ever waits for a generation."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec
import redis

from npu.catalog import Catalog
from npu.engines import chat_template, describe, open_tokenizer
from npu.errors import EngineFailed, ModelRefused, NpuError, PromptRefused
from npu.model import Model
from tasks import commands, keys
from tasks.connection import UNREACHABLE
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
                    while not self._closed.is_set():
                        message = channel.get_message(timeout=1.0)
                        if message is not None:
                            self._threads.submit(self._answer, bytes(message["data"]))
            except UNREACHABLE as error:
                log.warning("the command channel lost Redis, trying again: %s", error)
                self._closed.wait(0.5)

    def _answer(self, data: bytes) -> None:
        try:
            envelope = commands.decode_envelope(data)
        except msgspec.DecodeError as error:
            log.warning("a command of another version was ignored: %s", error)
            return
        try:
            result = self._obey(envelope.command)
        except NpuError as error:
            failed = failure(error)
            commands.reply(self._client, envelope, code=failed.code, error=failed.message)
        except UNREACHABLE as error:
            log.warning("a command went unanswered, Redis is away: %s", error)
        except Exception as error:
            log.exception("a command failed")
            commands.reply(self._client, envelope, code=FailureCode.INTERNAL, error=failure(error).message)
        else:
            commands.reply(self._client, envelope, result)

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
        give_up = time.monotonic() + PREPARE_PATIENCE
        while True:
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
            except EngineFailed:
                # Its tokenizer comes up with the model.
                if time.monotonic() > give_up or self._closed.wait(0.2):
                    raise

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
