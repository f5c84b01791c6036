"""Runs Flower in this process."""

from __future__ import annotations

from api.auth import is_loopback
from ops.flower.settings import FlowerSettings
from ops.up import listen


class FlowerRefused(Exception):
    """Raised when the settings would show the service's calls to everybody who can reach this machine."""


def watch(settings: FlowerSettings) -> None:
    """Show the calls and workers of the Redis that the environment names, until Ctrl-C or SIGTERM.

    Raises `FlowerRefused`, and `PortInUse` when it cannot listen there.
    """
    login = settings.flower_login
    if login is None and not is_loopback(settings.flower_host):
        raise FlowerRefused(
            f"Flower would show everybody who can reach {settings.flower_host} which models are asked for, and when. Set "
            "ROCKCHIPLLAMA_FLOWER_LOGIN to NAME:PASSWORD, or listen on 127.0.0.1."
        )
    # Its own message for a port that is taken is a traceback.
    with listen.listen(settings.flower_host, settings.flower_port, "flower_") as sock:
        host, port = sock.getsockname()[:2]
        print(f"Flower shows workers and calls at {listen.url(sock)}, and never prompts. Ctrl-C stops it.", flush=True)
    from ops.flower.server import serve

    serve(settings, host, port)
