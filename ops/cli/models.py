"""`rockchipllama models …`: the models on this machine's disk."""

from __future__ import annotations

import typer

from ops.cli import options

app = typer.Typer(help="Look after the models on this machine's disk.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    # A group with one command would otherwise become that command.
    pass


@app.command("fetch-demo")
def fetch_demo(
    models_dir: options.ModelsDir = None,
    if_none: bool = typer.Option(False, "--if-none", help="Only when there is no model yet, besides echo."),
    config: options.Config = None,
) -> None:
    """Download the demo model, SmolLM2-135M-Instruct (Apache-2.0, 93 MB). Goes on where a broken download ended."""
    options.apply(config, models_dir=models_dir)
    from ops import demo_model
    from ops.configuration import load
    from tasks.settings import TaskSettings

    demo_model.fetch(load(TaskSettings).models_dir, if_none=if_none)
