"""The Celery application that Flower watches: `celery -A ops.flower flower`."""

from __future__ import annotations

from tasks.broker import celery_app
from tasks.settings import TaskSettings, redis_url

app = celery_app(redis_url(TaskSettings()))
