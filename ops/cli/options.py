"""The options that several commands share. Each stands for a setting, and wins over environment and file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The TOML file with settings.", show_default=False),
]
ServiceUrl = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where the service is.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Host = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="The address the API listens on.", show_default=False)
]
Port = Annotated[int | None, typer.Option(metavar="NUMBER", help="The port the API listens on.", show_default=False)]
RedisUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The Redis or Valkey that carries the jobs.", show_default=False),
]
ModelsDir = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the models lie.", show_default=False)]
DataDir = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where the service keeps its files.", show_default=False)
]
DefaultModel = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="The model for requests that name none.", show_default=False),
]
LogLevel = Annotated[
    str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.", show_default=False)
]
LogFormat = Annotated[str | None, typer.Option(metavar="FORMAT", help="text or json.", show_default=False)]


def to_write(path: Path | None) -> Path | None:
    """Of an option that names a file for what comes out: found wrong at once, and not when all has been done."""
    if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise typer.BadParameter(f"{path} cannot be written: a folder has that name, or there is none for it.")
    return path


def hand_on(context: typer.Context) -> None:
    """Have the options that stand before a command count for it; one that it does not know is refused."""
    group, name = context.command, context.invoked_subcommand or ""
    assert isinstance(group, TyperGroup)
    known = {each.name for each in group.commands[name].params}
    given: dict[str, object] = {}
    for each in group.params:
        source = context.get_parameter_source(each.name or "")
        if source is None or source.name != "COMMANDLINE":
            continue
        if each.name not in known:
            context.fail(f"{each.opts[0]} is no option of `{context.info_name} {name}`.")
        given[each.name or ""] = context.params[each.name or ""]
    context.default_map = {name: given}


def refuse_beside(named: str, **given: object) -> None:
    """Have nobody believe that these options of this machine count where another's service is `named`."""
    for name, value in given.items():
        if value is not None:
            raise typer.BadParameter(f"is about this machine, and {named} about a service.", param_hint=option(name))


def option(parameter: str) -> str:
    """How it is typed."""
    return f"--{parameter.replace('_', '-')}"


def apply(config: Path | None = None, **given: str | int | Path | None) -> None:
    """Put what the command line gave where every process of the service reads it."""
    from ops import environment  # here, because it brings the settings along, which `--help` does not need

    if config is not None:
        environment.put(environment.CONFIG, str(config.absolute()))
    environment.give({name: value.absolute() if isinstance(value, Path) else value for name, value in given.items()})
