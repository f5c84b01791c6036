"""`rockchipllama service …`: the service under systemd, which starts it with the machine."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli import options
from ops.program import program

if TYPE_CHECKING:
    from ops.systemd.unit import Unit

app = typer.Typer(help="The service under systemd: started with the machine, and again when it dies or stands still.")


FOLDERS = ("data_dir", "models_dir")
"""The settings that a unit has on its command line, where they do not stand in the file."""


class Kind(StrEnum):
    """What a unit runs: a command of `rockchipllama`."""

    up = "up"
    api = "api"
    board = "board"


Part = Annotated[
    Kind,
    typer.Option(
        help="What it runs: everything on this machine (or the board of the service that it joined), or the API or the board "
        "alone, with a Redis of your own."
    ),
]


@app.command()
def install(
    part: Part = Kind.up,
    user: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Who runs it. Unset: whoever owns the folder of the application.", show_default=False
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Only show the unit, and change nothing.")] = False,
    models_dir: options.ModelsDir = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Have systemd run the service from now on, also after a reboot. Settings come from the file; install anew when the folders
    change."""
    options.apply(config, models_dir=models_dir, data_dir=data_dir)
    from ops import environment
    from ops.systemd import installation

    if not show:
        installation.check()  # before folders are made
    unit = _unit(part.value, user, own=not show)
    kept = environment.INTERNAL | {environment.variable(name) for name in FOLDERS}
    if left := sorted(environment.ours().keys() - kept):
        print(
            f"The service will not have {', '.join(left)} of this environment: its settings stand in the file.",
            file=sys.stderr,
        )
    if show:
        print(unit.text(), end="")
        return
    installation.install(unit)
    print(
        f"{unit.name} runs as {unit.user}, and will after a reboot. What it says: journalctl -u {unit.name} -f\n"
        f"Models are loaded meanwhile; `{program()} service status` says how it does."
    )


@app.command()
def uninstall(part: Part = Kind.up) -> None:
    """Stop the service and take its unit away. Data, models and settings stay."""
    from ops.systemd import installation

    was = installation.uninstall(part.value)
    print("It is stopped, and systemd knows it no more." if was else "No such unit is installed.")


@app.command()
def status(part: Part = Kind.up) -> None:
    """Say whether it runs, and since when. Exit code 1 when it does not."""
    from ops.systemd import installation
    from ops.systemd.unit import unit_name

    found = installation.state(part.value)
    print(sentence(unit_name(part.value), found))
    if found.get("ActiveState") != "active":
        raise typer.Exit(1)


def sentence(name: str, found: dict[str, str]) -> str:
    """What people read of the properties that systemd tells of a unit."""
    if found.get("LoadState") == "not-found":
        return f"{name} is not installed. `sudo {program(by_name=False)} service install` does that."
    state = f"{found.get('ActiveState')} ({found.get('SubState')})"
    lines = [f"{name}: {state} since {found.get('StateChangeTimestamp') or 'ever'}"]
    if found.get("StatusText"):
        lines.append(f"  {found['StatusText']}")
    if found.get("Result") not in ("", None, "success"):
        lines.append(f"  it ended: {found['Result']}; journalctl -u {name} has its last words")
    if found.get("NRestarts", "0") != "0":
        lines.append(f"  started again {found['NRestarts']} times")
    if found.get("UnitFileState") != "enabled":
        lines.append("  it will not be started after a reboot")
    return "\n".join(lines)


def _unit(part: str, user: str | None, *, own: bool) -> Unit:
    import os
    from pathlib import Path
    from urllib.parse import unquote, urlsplit

    from api.settings import ApiSettings
    from ops import configuration, environment
    from ops.systemd import installation
    from ops.systemd.unit import Unit
    from ops.up import store
    from tasks.settings import ROOT, TaskSettings, config_file

    configuration.check()
    settings = configuration.load(TaskSettings)
    found = config_file()
    words = [str(Path(sys.executable).with_name("rockchipllama")), part]
    words += ["--config", str(found.absolute())] if found is not None else []
    for name in FOLDERS:
        if environment.variable(name) in environment.ours():  # what the command line gave stands there as well
            words += [f"--{name.replace('_', '-')}", str(ROOT / getattr(settings, name))]
    if part == "up" and not store.holds_socket(ROOT / settings.data_dir):
        raise installation.ServiceRefused(
            f"The path {settings.data_dir} is too long, or has characters, for a socket in it, through which commands find the "
            "service. Choose another with --data-dir."
        )
    runs = installation.user_for(user, ROOT)
    # The unit's working folder is that of the application, whatever folder this command was typed in.
    folders = [ROOT / settings.data_dir, ROOT / settings.models_dir]
    if own and os.getuid() == 0:
        installation.make_folder(folders[0], runs)
        installation.make_folder(folders[1], runs, read_only=True)
    files = urlsplit(configuration.load(ApiSettings).files_url or "")
    if files.scheme == "file" and part != "board":
        folders.append(Path(unquote(files.path)))
    return Unit(part, tuple(words), ROOT, runs, installation.npu_groups(), tuple(folders))
