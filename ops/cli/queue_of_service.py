"""The Redis of the service that a command is about: one that is named, was joined, or runs from the data directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis import Redis


class QueueAway(Exception):
    """Raised when it does not answer; the message says what to do."""


def url() -> str:
    """Where it is."""
    from ops.configuration import load
    from ops.up import joined, store
    from tasks.settings import TaskSettings

    settings = load(TaskSettings)
    return settings.redis_url or joined.redis_url(settings.data_dir) or store.url(settings.data_dir)


def connect() -> Redis:
    """A client of it. Raises `QueueAway`."""
    import tasks.connection
    from ops.configuration import without_password

    where = url()
    client = tasks.connection.connect(where)
    try:
        client.ping()
    except tasks.connection.UNREACHABLE as error:
        raise QueueAway(
            f"The service's queue does not answer at {without_password(where)} ({str(error).rstrip('.')}). Start the "
            "service first, or name its Redis with --redis-url or its files with --data-dir."
        ) from error
    return client
