"""`rockchipllama runtime …`: the NPU's runtime on the boards of a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ops.cli import options
from ops.cli.service_address import service_of

app = typer.Typer(help="The NPU's runtime on the boards of a running service.", no_args_is_help=True)


@app.command("list")
def list_runtimes(
    as_json: options.AsJson = False,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """List the release that each board uses, and those that are installed there."""
    import json

    found = {board["id"]: board["runtime"] for board in service_of(config, url).living_boards()}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for board, told in found.items():
        print(f"{board}: {_line(told)}")
        for version, why in (told or {}).get("unusable", {}).items():
            print(f"  {version} cannot be used: {why}. `ops/fetch-runtime {version}` there fetches it.")


@app.command()
def use(
    version: Annotated[str, typer.Argument(help="The release, such as 1.2.3; `ops/fetch-runtime` installs it.")],
    board: Annotated[
        str | None, typer.Option(metavar="NAME", help="On this board; may be left out where there is one.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Try it with this model, instead of those that are loaded, or the smallest.")
    ] = None,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Have a board use another release, if its models can be used with it. Jobs wait meanwhile, and lose nothing."""
    service = service_of(config, url)
    name = board or _only_one([each["id"] for each in service.living_boards()], config)
    done = service.use_runtime(name, version, model)
    tried = ", ".join(done["tried"]) or "no model, for it has none for the NPU"
    before = f", and had {done['before']}" if done["before"] else ""
    print(f"'{name}' uses the runtime {done['version']}{before}. It was tried with {tried}.")


def _line(told: dict[str, Any] | None) -> str:
    if told is None:
        return "no NPU's runtime"
    others = ", ".join(told["installed"])
    return f"{told['version'] or 'none that can be used'}" + (f" (installed: {others})" if others else "")


def _only_one(boards: list[str], config: Path | None) -> str:
    """The board that is meant where none is named: the only one, else this machine's."""
    from ops.configuration import load
    from tasks.settings import TaskSettings

    options.apply(config)
    here = load(TaskSettings).board_name
    if len(boards) == 1 or here in boards:
        return boards[0] if len(boards) == 1 else here
    raise typer.BadParameter(f"name one of {', '.join(boards) or 'none'}", param_hint="--board")
