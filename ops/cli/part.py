"""How every part of the service begins: settings checked, log set up."""

from __future__ import annotations


def begin() -> None:
    """Call it first in the command of a part. Raises `ConfigurationError`."""
    from ops.configuration import load
    from tasks import logs
    from tasks.settings import TaskSettings

    shared = load(TaskSettings)
    logs.configure(shared.log_level, shared.log_format)
