"""The worker process of one model: Celery's parent with one child, wired to what serves. No logic about requests."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import celery.apps.worker
from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import (
    setup_logging,
    task_failure,
    worker_process_init,
    worker_process_shutdown,
    worker_shutting_down,
)

from npu.catalog import find_models
from npu.errors import ModelRefused
from npu.model import Model
from tasks import keys, lifeline, logs, presence, roster, worker_lock
from tasks.broker import celery_app
from tasks.connection import UNREACHABLE, connect
from tasks.instances import instance_name
from tasks.losses import holders, report_loss
from tasks.prompting.cards import card_of
from tasks.prompting.setup import setup_of
from tasks.queue import SERVE
from tasks.settings import TaskSettings, redis_url
from tasks.worker.consumer import Consumer
from tasks.worker.serving import Serving
from tasks.worker.settings import WorkerSettings

log = logging.getLogger("rockchipllama.worker")

HEARTBEAT = 10.0
"""Seconds between two events by which Flower, and nobody else, knows that a worker is there; twice that, and it is away."""


class WorkerProcess:
    """Celery's parent and, after the fork, its child."""

    def __init__(self, model: Model, settings: TaskSettings) -> None:
        self.model = model
        self.settings = settings
        self.url = redis_url(settings)
        self.board = settings.board_name
        self.worker_settings = WorkerSettings()
        self.instance = instance_name(model.id, self.worker_settings.instance)
        self.name = f"{self.instance}@{self.board}"
        self.serving: Serving | None = None
        self.app: Celery = celery_app(self.url)
        # What Redis says when it is full: else the parent would die of it, and its child with the model.
        self.app.conf.broker_channel_error_retry = True
        self._define_tasks()

    def _define_tasks(self) -> None:
        """What the child does with a message; the arguments beside the model are for people who watch."""

        @self.app.task(name=SERVE, bind=True)
        def serve(task: Any, model: str, lane: str = "", job: str = "") -> str:
            assert self.serving is not None
            return self.serving.serve(task.request.id)

    def child_begins(self, **_: Any) -> None:
        """Child: right after the fork. Nothing here may take long; the model loads with the first call."""
        lifeline.watch()
        self.serving = Serving(
            connect(self.url), self.model, self.name, self.board, self.settings, self.worker_settings
        )

    def child_ends(self, **_: Any) -> None:
        """Child: on its way out."""
        if self.serving is not None:
            self.serving.close()

    def child_died(self, task_id: str = "", **_: Any) -> None:
        """Parent: the child died with this call in hand."""
        try:
            client = connect(self.url)
            for holder in holders(client, self.model.id):
                if holder.call == task_id:
                    report_loss(client, self.model.id, holder)
        except UNREACHABLE as error:
            log.error("a lost job could not be reported, its lease will lapse: %s", error)

    def stopping(self, **_: Any) -> None:
        """Parent: no more calls are taken. The child gets its grace and then hands its job back."""
        try:
            connect(self.url).publish(keys.control(self.name), "stop")
        except UNREACHABLE as error:
            log.warning("the child could not be told to stop: %s", error)

    def run(self) -> int:
        """Serve until told to stop."""
        worker_lock.take(self.settings.data_dir, self.instance)
        lifeline.watch()
        # It warns root of pickles, which this application does not accept.
        warnings.filterwarnings("ignore", category=SecurityWarning)
        # What it has to say at a signal it prints past every logger, and past the log format.
        celery.apps.worker.safe_say = lambda *_, **__: None  # type: ignore[attr-defined]
        logging.getLogger("celery").setLevel(logging.WARNING)  # a line for each call would say less than ours per job
        setup_logging.connect(lambda **_: None, weak=False)  # ours is set up already
        worker_process_init.connect(self.child_begins, weak=False)
        worker_process_shutdown.connect(self.child_ends, weak=False)
        worker_shutting_down.connect(self.stopping, weak=False)
        task_failure.connect(self.child_died, weak=False)
        client = connect(self.url)
        roster.announce(client, card_of(self.model, self.board, setup_of(self.settings)))
        worker = self.app.Worker(
            hostname=self.name,
            consumer_cls=Consumer,
            queues=[keys.call_queue(self.model.id)],
            concurrency=1,
            pool="prefork",
            without_gossip=True,
            without_mingle=True,
            heartbeat_interval=HEARTBEAT,
            loglevel=logging.WARNING,
            quiet=True,
        )
        worker.start()
        presence.leave(client, self.name)
        return int(worker.exitcode or 0)


def main(model: str) -> int:
    """Run the worker of the model with this id or name until SIGTERM. Raises `ModelRefused` when there is no such model."""
    settings = TaskSettings()
    logs.configure(settings.log_level, settings.log_format)
    catalog = find_models(settings.models_dir)
    found = catalog.find(model)
    if found is None:
        known = ", ".join(sorted(item.id for item in catalog.models)) or "none"
        raise ModelRefused(f"There is no model '{model}' in {settings.models_dir}. Models there: {known}.")
    log.info("worker of %s starting pid=%d", found.id, os.getpid())
    try:
        return WorkerProcess(found, settings).run()
    except UNREACHABLE as error:
        log.error("the worker of %s cannot reach Redis and leaves: %s", found.id, error)
        return 1
