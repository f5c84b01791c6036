"""`rockchipllama boards …`: the boards of a service, and the tokens that let them in."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli import options, queue_of_service

app = typer.Typer(help="The tokens with which boards join a service.", no_args_is_help=True)


@app.command()
def invite(
    name: Annotated[str, typer.Argument(help="What the token is called, such as kitchen.")],
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Make a token for one more board, and show what to type there, once. For a service that runs with `up --share`."""
    options.apply(config, data_dir=data_dir)
    from ops.up import listen
    from ops.up import tokens as known

    client = queue_of_service.connect()
    host, port = known.listens_on(client)
    token = known.create(client, name)
    print(f"rockchipllama join {token.url(listen.network_address(host), port)}\n\nThis is shown once.")


@app.command()
def tokens(
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """List the tokens that let boards in, by name."""
    options.apply(config, data_dir=data_dir)
    from ops.up import tokens as known

    client = queue_of_service.connect()
    known.listens_on(client)
    for name in known.names(client):
        print(name)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The token's name.")],
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Make a token useless. The boards that joined with it are cut off at once; other boards go on with their jobs."""
    options.apply(config, data_dir=data_dir)
    from ops.configuration import load
    from ops.up import sharing
    from ops.up import tokens as known
    from tasks.settings import TaskSettings

    client = queue_of_service.connect()
    known.listens_on(client)
    known.revoke(client, name)
    sharing.Access(load(TaskSettings).data_dir).forget(name)
    print(f"'{name}' lets nobody in any more.")
