"""The application: the one place that puts settings, fronts, middleware and services together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TypeAlias

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.types import Scope

from api import (
    anthropic,
    async_jobs,
    boards,
    console_page,
    docs_page,
    errors,
    health,
    job_events,
    jobs,
    key_routes,
    metrics,
    model_routes,
    ollama,
    openai,
    props,
    queues,
    runtime_settings,
)
from api.auth import Auth
from api.drain import Drain
from api.errors import Renderer
from api.fronts import Front, front_of
from api.leniency import Leniency
from api.needs import Services
from api.openai import responses
from api.origins import Cors
from api.request_log import PROBES, REQUEST, RequestLog
from api.services import open_services
from api.settings import ApiSettings
from tasks.live_settings import LiveSettings
from tasks.settings import TaskSettings
from tasks.tracing import Tracing
from tasks.version import VERSION

FRONTS: tuple[Front, ...] = (openai.FRONT, responses.FRONT, ollama.FRONT, anthropic.FRONT)
"""Every dialect that is spoken. A path that none claims for itself is answered by the first."""

Lifespan: TypeAlias = Callable[[FastAPI], AbstractAsyncContextManager[Services]]
"""Opens and closes what routes need, and yields it."""


def create_app(
    settings: ApiSettings | None = None, tasks_settings: TaskSettings | None = None, lifespan: Lifespan | None = None
) -> FastAPI:
    """The ASGI application. Without `lifespan` it lives on the real queue that `tasks_settings` name."""
    settings = settings or ApiSettings()
    queue = tasks_settings or TaskSettings()
    live = LiveSettings(settings)
    tracing = Tracing(queue.otlp_endpoint, "api") if queue.otlp_endpoint is not None else None
    lifespan = lifespan or (lambda app: open_services(live, queue, tracing))

    def front(scope: Scope) -> Front:
        return front_of(scope, FRONTS)

    def renderer(scope: Scope) -> Renderer:
        render = front(scope).render
        return lambda problem: render(replace(problem, request=scope.get(REQUEST)))

    requests = metrics.HttpRequests()
    app = FastAPI(
        title="RockchipLlama",
        version=VERSION,
        description="Inference on Rockchip NPU boards through one queue, in the dialects that clients already speak.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        # Nothing leaves the machine unless somebody asked for it.
        telemetry={
            "tracing": tracing is not None,
            "tracer_provider": tracing.provider if tracing is not None else None,
            "operation_spans": False,
            "exclude": lambda scope: scope["path"] in PROBES,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },
        middleware=[
            Middleware(RequestLog, front_of=front, count=requests.count),
            Middleware(Cors, settings=settings, render=FRONTS[0].render),
            Middleware(Leniency),
            Middleware(Auth, settings=settings, renderer_of=renderer),
        ],
    )
    app.state.settings = live
    app.state.drain = Drain()
    app.state.requests = requests
    app.state.fronts = FRONTS
    errors.register(app, renderer)
    for each in FRONTS:
        app.include_router(each.asking)
    about_jobs = (jobs, async_jobs, job_events, queues)
    about_boards = (boards, model_routes, runtime_settings)
    for part in (health, metrics, props, *about_jobs, *about_boards, key_routes, console_page, docs_page):
        app.include_router(part.router)
    for each in reversed(FRONTS):
        # The first one last: a path that it shares with others is theirs where they can tell that it is meant for them.
        app.include_router(each.router)
    shapes: tuple[type[BaseModel], ...] = (
        *async_jobs.SHAPES,
        *key_routes.SHAPES,
        *boards.SHAPES,
        *model_routes.SHAPES,
        *(shape for each in FRONTS for shape in each.shapes),
    )
    docs_page.describe(app, shapes, lambda path: front({"path": path, "headers": []}))
    return app
