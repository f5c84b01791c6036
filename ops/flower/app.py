"""The Celery application that Flower watches (`celery -A ops.flower.app flower`), and what it shows of a call.

Flower keeps nothing on the disk. Its options on the command line and in `FLOWER_…` variables win over those here.
"""

from __future__ import annotations

import ast
from typing import Any

import flower.options  # type: ignore[import-untyped]  # noqa: F401  # declares the options that are set below
from tornado.options import options

from ops.flower.settings import FlowerSettings
from tasks.broker import celery_app
from tasks.queue import SERVE
from tasks.settings import TaskSettings, redis_url

OFFLINE = 60
"""Seconds after which a worker that is gone is no longer shown; its board starts a new one under the same name."""


def in_words(task: Any) -> Any:
    """A call as people know it: by model, lane and the job it was sent for; its worker says which board serves it."""
    if task.name == SERVE:
        model, lane, job = ast.literal_eval(task.args)
        task.name = f"{model}, {lane}" if lane else f"{model}, a look at its queue"
        task.args = job or "none"
    return task


options.purge_offline_workers = OFFLINE
# Boards keep their workers, and jobs are cancelled through the API: what Flower would end, nobody would know of.
options.read_only = True
options.format_task = in_words
options.tasks_columns = "name,args,state,received,runtime,worker"
# Celery's own command, as containers run it, knows of no settings of ours.
login = FlowerSettings().flower_login
if login is not None:
    options.basic_auth = [login.get_secret_value()]

app = celery_app(redis_url(TaskSettings()))
