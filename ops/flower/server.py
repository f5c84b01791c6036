"""Flower's own server, under the names of its machine alone, and what it shows of a call.

It keeps nothing on the disk. Flower's options in `FLOWER_…` variables win over those here.
"""

from __future__ import annotations

import ast
import contextlib
import signal
from typing import Any

from flower import urls  # type: ignore[import-untyped]
from flower.app import Flower  # type: ignore[import-untyped]
from flower.command import apply_env_options, extract_settings, setup_logging  # type: ignore[import-untyped]
from tornado.httputil import HTTPServerRequest
from tornado.options import options
from tornado.web import RequestHandler

from api.origins import Origins
from api.settings import ApiSettings
from ops.configuration import load
from ops.flower.settings import FlowerSettings
from tasks.broker import celery_app
from tasks.queue import SERVE
from tasks.settings import PREFIX, TaskSettings, redis_url

OFFLINE = 60
"""Seconds after which a worker that is gone is no longer shown; its board starts a new one under the same name."""


def in_words(task: Any) -> Any:
    """A call as people know it: by model, lane and the job it was sent for; its worker says which board serves it."""
    if task.name == SERVE:
        model, lane, job = ast.literal_eval(task.args)
        task.name = f"{model}, {lane}" if lane else f"{model}, a look at its queue"
        task.args = job or "none"
    return task


class Server(Flower):  # type: ignore[misc]
    """What settings and environment make of Flower. Where it asks for no login, a page that points its own name at this
    machine would be shown everything; it is known by that name."""

    def __init__(self, settings: FlowerSettings, address: str, port: int) -> None:
        options.purge_offline_workers = OFFLINE
        # Boards keep their workers, and jobs are cancelled through the API: what Flower would end, nobody would know of.
        options.read_only = True
        options.format_task = in_words
        options.tasks_columns = "name,args,state,received,runtime,worker"
        options.basic_auth = [] if settings.flower_login is None else [settings.flower_login.get_secret_value()]
        apply_env_options()
        options.address, options.port = address, port
        extract_settings()
        self._names = Origins(load(ApiSettings))
        super().__init__(options, celery_app(redis_url(load(TaskSettings))), **urls.settings)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """What answers a request."""
        if not (options.basic_auth or options.auth) and not self._names.knows(request.host):
            return self.get_handler_delegate(request, _Foreign)
        return super().find_handler(request, **kwargs)


class _Foreign(RequestHandler):
    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain")
        self.finish(
            f"Flower does not go by the name '{self.request.host_name[:100]}', and without a login it must be named rightly. "
            f"Call it by its address, add that name to {PREFIX}ALLOWED_HOSTS, or set {PREFIX}FLOWER_LOGIN.\n"
        )


def serve(settings: FlowerSettings, address: str, port: int) -> None:
    """Show what comes to the Redis that the environment names, until Ctrl-C or SIGTERM."""
    server = Server(settings, address, port)
    options.run_parse_callbacks()
    setup_logging()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server.start_http_server()
    with contextlib.suppress(KeyboardInterrupt):
        server.start()
    server.stop()
