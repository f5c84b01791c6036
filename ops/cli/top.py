"""`rockchipllama top`: what a running service is at."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli import options
from ops.cli.service_address import service_of


def top(
    once: Annotated[bool, typer.Option("--once", help="Show it once, and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text, once.")] = False,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Watch the boards, queues and jobs of a running service; q leaves. What goes to no terminal is shown once."""
    service = service_of(config, url)
    import sys

    from ops import top as board

    if as_json:
        import json

        print(json.dumps(board.look(service), indent=2))
    elif once or not sys.stdout.isatty():
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
        console.print(board.view(board.look(service), console.width))
    else:
        board.watch(service)
