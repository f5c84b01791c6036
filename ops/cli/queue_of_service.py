"""The Redis of the service that a command is about: one that is named, was joined, or runs from the data directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis import Redis


class QueueAway(Exception):
    """Raised when it does not answer; the message says what to do."""


def connect() -> Redis:
    """A client of it. Raises `QueueAway`."""
    import tasks.connection
    from ops.configuration import load, without_password
    from ops.up import joined, store
    from tasks.settings import TaskSettings

    settings = load(TaskSettings)
    url = settings.redis_url or joined.redis_url(settings.data_dir) or store.url(settings.data_dir)
    client = tasks.connection.connect(url)
    try:
        client.ping()
    except tasks.connection.UNREACHABLE as error:
        raise QueueAway(
            f"The service's queue does not answer at {without_password(url)} ({error}). Start the "
            "service first, or name its Redis with --redis-url or its files with --data-dir."
        ) from error
    return client
