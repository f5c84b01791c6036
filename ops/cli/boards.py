"""`rockchipllama boards …`: the boards of a service, and the tokens that let them in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ops.cli import completion, options, queue_of_service
from ops.cli.service_address import named_service, service_of
from ops.program import elsewhere, given, program

app = typer.Typer(help="The boards of a service, and the tokens with which they join.")

Board = Annotated[str, typer.Argument(help="The board's name.", autocompletion=completion.boards)]


@app.callback(invoke_without_command=True)
def boards(
    context: typer.Context,
    as_json: options.AsJson = False,
    url: options.ServiceUrl = None,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """List the boards of a running service: what each is, what it has, how fast that has lately been. Where no service is named,
    its Redis is asked."""
    if context.invoked_subcommand is not None:
        options.hand_on(context)
        return
    import json

    service = named_service(config, url, redis_url=redis_url, data_dir=data_dir)
    found = service.living_boards() if service is not None else _in_redis(redis_url, data_dir)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from ops.fold import fold

    for line in lines_of(found):
        print(fold(line, 4))


def _in_redis(redis_url: str | None, data_dir: Path | None) -> list[dict[str, Any]]:
    options.apply(redis_url=redis_url, data_dir=data_dir)
    from tasks.boards import overview
    from tasks.roster import read_roster

    return overview(read_roster(queue_of_service.connect()))


def lines_of(found: list[dict[str, Any]]) -> Iterator[str]:
    """The list for people: each board with its models below it, and what is wrong with all of them together."""
    if not found:
        yield f"No board is there. `{program()} board` starts one."
    for board in found:
        load, heat, memory = board["npu_load"], board["temperature"], board["memory"]
        facts = [
            board["soc"] or board["machine"],
            board["driver"] and f"driver {board['driver']}",
            load and f"NPU {' '.join(f'{core} %' for core in load)}",
            heat and f"{heat:.0f} °C",
            "slowed down by heat" if board["hot"] else None,
            memory and f"{memory['available'] >> 20} of {memory['total'] >> 20} MiB free",
            f"version {board['version'] or 'unknown'}",
            "drained" if board["drained"] else None,
        ]
        yield f"{board['id']}: {', '.join(fact for fact in facts if fact)}"
        for model in board["models"]:
            engine = model["engine_version"] or model["engine"]  # the version says which engine it is of
            speed = model["decode_tps"] and f", {model['decode_tps']:.1f} tokens/s"
            yield f"  {model['id']}: {model['state']}, {engine}{speed or ''}"
        for why in dict.fromkeys(board["refused"].values()):
            yield f"  cannot be used: {why}"
    versions = sorted({board["version"] or "unknown" for board in found})
    if len(versions) > 1:
        yield f"These boards run different versions ({', '.join(versions)}): upgrade the older ones."


@app.command()
def drain(name: Board, url: options.ServiceUrl = None, config: options.Config = None) -> None:
    """Have a board hand its jobs to other boards and serve nothing, until it is resumed; also when it is started anew. Needs a
    key with the scope admin, where keys are made."""
    service = service_of(config, url)
    board = service.drain_board(name)["id"]
    resume = f"{program()} boards resume {board}{given(url=url, config=config)}"
    print(f"'{board}' hands over what it is at, and serves nothing until `{resume}`.")
    if alone := nobody_else_has(service.living_boards(), board):
        print(
            f"No other board that serves has {', '.join(alone)}: jobs wait until then, and new questions are refused."
        )


def nobody_else_has(boards: list[dict[str, Any]], drained: str) -> list[str]:
    """The models of a board that no other one serves."""
    served = {
        model["id"] for each in boards if each["id"] != drained and not each["drained"] for model in each["models"]
    }
    return [
        model["id"] for each in boards if each["id"] == drained for model in each["models"] if model["id"] not in served
    ]


@app.command()
def resume(name: Board, url: options.ServiceUrl = None, config: options.Config = None) -> None:
    """Let a drained board serve again. It loads what it had loaded before. Needs such a key as well."""
    print(f"'{service_of(config, url).resume_board(name)['id']}' serves again.")


@app.command()
def forget(
    name: Annotated[str, typer.Argument(help="The board's name.")],
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Have the service know nothing more of a board that has gone for good, such as its models. Needs such a key as well."""
    service_of(config, url).forget_board(name)
    print(f"'{name}' is forgotten.")


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
    print(f"{elsewhere()} join {token.url(listen.network_address(host), port)}\n\nThis is shown once.")


@app.command()
def tokens(
    as_json: options.AsJson = False,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """List the tokens that let boards in, by name."""
    options.apply(config, data_dir=data_dir)
    from ops.up import tokens as known

    client = queue_of_service.connect()
    known.listens_on(client)
    names = known.names(client)
    if as_json:
        import json

        print(json.dumps([{"name": name} for name in names], indent=2))
        return
    for name in names:
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
