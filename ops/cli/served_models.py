"""`rockchipllama models info|load|unload`: the models of a running service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from ops.cli import completion, options
from ops.cli.service_address import service_of

Model = Annotated[str, typer.Argument(help="The model's name.", autocompletion=completion.models)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Url = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where the service is.", show_default=False)]


def info(model: Model, as_json: AsJson = False, url: Url = None, config: options.Config = None) -> None:
    """Show what a running service knows of a model: names, engine, context, what it can do."""
    import json

    found = service_of(config, url).model(model)
    print(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


def load(model: Model, url: Url = None, config: options.Config = None) -> None:
    """Have a running service load a model, and wait until it has."""
    service_of(config, url).load(model)
    print(f"'{model}' is loaded.")


def unload(model: Model, url: Url = None, config: options.Config = None) -> None:
    """Have a running service unload a model from all boards; the next request loads it again."""
    service_of(config, url).unload(model)
    print(f"'{model}' is unloaded.")


def _lines(found: dict[str, Any]) -> Iterator[str]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _lines(value)
        elif value not in (None, [], "") and name not in ("object", "created", "owned_by"):
            yield f"{name:<18}  {', '.join(map(str, value)) if isinstance(value, list) else value}"
