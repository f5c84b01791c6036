"""Names that a shell completes, asked of the running service. One that does not answer at once has none."""

from __future__ import annotations

import typer

from ops.cli.service_address import service_of

PATIENCE = 1.0
"""Seconds; longer, and whoever pressed the key thinks that the shell hangs."""


def models(context: typer.Context, incomplete: str) -> list[str]:
    """The models of the service."""
    return _names(context, incomplete, "models")


def jobs(context: typer.Context, incomplete: str) -> list[str]:
    """The jobs that it lists, for whom it does."""
    return _names(context, incomplete, "jobs")


def boards(context: typer.Context, incomplete: str) -> list[str]:
    """The boards of the service."""
    return _names(context, incomplete, "boards")


def _names(context: typer.Context, incomplete: str, what: str) -> list[str]:
    from ops.configuration import ConfigurationError
    from ops.service import ServiceError

    try:
        service = service_of(context.params.get("config"), context.params.get("url"), PATIENCE)
        match what:
            case "models":
                found = service.models()
            case "boards":
                found = service.living_boards()
            case _:
                found = service.jobs("all", 50)
    except (ServiceError, ConfigurationError):
        return []
    return [each["id"] for each in found if each["id"].startswith(incomplete)]
