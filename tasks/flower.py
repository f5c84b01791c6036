"""The Celery application of this machine's settings, for `celery -A tasks.flower flower`."""

from __future__ import annotations

from tasks.broker import celery_app
from tasks.settings import TaskSettings, redis_url

app = celery_app(redis_url(TaskSettings()))
