"""`rockchipllama bench …`: what the service costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure what the service itself costs on this machine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    # A group with one command would otherwise become that command.
    pass


@app.command("overhead")
def overhead(
    quick: Annotated[bool, typer.Option("--quick", help="Measure for about a minute, less exactly.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there, too.", show_default=False)
    ] = None,
) -> None:
    """Start a private service on echo models, and measure what it adds to an engine: time, CPU, memory, disk."""
    import sys

    from ops.bench.run import run

    sys.exit(run(quick=quick, json_file=json_file))
