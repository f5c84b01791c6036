"""`rockchipllama join`: this machine as one more board of a service that runs elsewhere."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ops.cli import options

VARIABLE = "JOIN_URL"
"""The environment variable that may hold the URL, where a command line is kept: in a container."""


def join(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            envvar=VARIABLE,
            help="What `up --share` printed there; of it NAME.SECRET alone, and the service is looked for in the local "
            "network. Unset: what was joined before.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What this board is called. Unset: the machine's host name.", show_default=False
        ),
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Be no part of it any more, and end.")] = False,
    models_dir: options.ModelsDir = None,
    data_dir: options.DataDir = None,
    default_model: options.DefaultModel = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
    config: options.Config = None,
) -> None:
    """Join a service that runs on another machine, with this machine's models. The URL is kept: later, `join` or `up` will do."""
    options.apply(
        config,
        board_name=name,
        models_dir=models_dir,
        data_dir=data_dir,
        default_model=default_model,
        log_level=log_level,
        log_format=log_format,
    )
    from ops import configuration, environment
    from ops.up import joined
    from ops.up.models_dir import check_models_dir
    from ops.up.sharing import TokenRefused
    from tasks.settings import TaskSettings

    settings = configuration.load(TaskSettings)
    if forget:
        from tasks.board.board_lock import holder

        if not joined.forget(settings.data_dir):
            print("This machine has joined nothing.")
        elif (pid := holder(settings.data_dir)) is None:
            print("This machine takes part in nothing any more.")
        else:
            print(
                f"From the next start on this machine takes part in nothing. The board that runs (process {pid or 'unknown'}) "
                "goes on until it is stopped."
            )
        return
    check_models_dir(settings.models_dir)
    if url is not None:
        from ops.up import joining  # only now: `up` asks for the rest alone

        given = url
        if "://" not in url:
            url = joining.found(url)
        for problem in joining.keep(settings.data_dir, url, settings.board_name):
            print(problem, flush=True)
        environment.forget({VARIABLE})  # workers need it as little
        _begin_anew(given)
    elif joined.redis_url(settings.data_dir) is None:
        raise TokenRefused("This machine has joined nothing yet: add the URL that `rockchipllama up --share` prints.")
    run()


def _begin_anew(token: str) -> None:
    """Become the same command without the token: everybody on this machine can read the command lines of its processes."""
    words = [word for word in sys.orig_argv[1:] if word != token]
    if len(words) < len(sys.orig_argv) - 1:  # else it came from elsewhere
        os.execv(sys.executable, [sys.executable, *words])


def run() -> None:
    """Run this machine's board for the service that was joined."""
    from ops.cli.board import board
    from ops.configuration import load
    from ops.up import joined
    from ops.up.models_dir import check_models_dir
    from tasks.board.board_lock import only_agent
    from tasks.settings import TaskSettings

    settings = load(TaskSettings)
    check_models_dir(settings.models_dir)
    url = joined.redis_url(settings.data_dir)
    assert url is not None
    with only_agent(settings.data_dir, settings.board_name, url):
        away = joined.knock(settings.data_dir)
    place = joined.place(settings.data_dir)
    if away is None:
        begins = f"The board '{settings.board_name}' takes part in the service at {place}"
    else:
        begins = (
            f"Nobody answers at {place} ({away}). The board '{settings.board_name}' takes part once the service does"
        )
    print(f"{begins}, with the models in {settings.models_dir}. Ctrl-C leaves it.", flush=True)
    options.apply(redis_url=url)
    board()
