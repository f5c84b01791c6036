"""`rockchipllama bench load` and `bench fleet`: how a service bears the load of many people, and how many boards one needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ops.bench.trace import Ask

TRAFFIC = "open-webui, home-assistant, or a file with a request a line."
Users = Annotated[int, typer.Option(min=1, max=10_000, help="How many people use it; a file has its own.")]
Seed = Annotated[int, typer.Option(help="Another number is other traffic of the same kind; a file stays as it is.")]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the figures there, too.", show_default=False, callback=options.to_write
    ),
]


def load(
    trace: Annotated[str, typer.Option(metavar="NAME|FILE", help=TRAFFIC)] = "open-webui",
    users: Users = 4,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=1440, help="For how long they come; a file has its own times.")
    ] = 5.0,
    model: Annotated[str | None, typer.Option(help="Which model they ask.", show_default=False)] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Answers as long as the trace says, by ignore_eos; slower on some engines.")
    ] = False,
    seed: Seed = 1,
    save_trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the traffic there with its real lengths, for `bench fleet`.",
            show_default=False,
            callback=options.to_write,
        ),
    ] = None,
    json_file: JsonFile = None,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Have many people use a running service at once: how long they wait, where answers stall, whether it is fair."""
    import sys

    from ops.bench import trace as traces
    from ops.bench.load import measure
    from ops.bench.served import replay, rows, summary
    from ops.cli.service_address import address_of

    asks = traces.named(trace, users, minutes * 60, seed)
    last = max(ask.at for ask in asks)
    print(
        f"{len(asks):,} requests of {len({ask.user for ask in asks}):,} users within {last / 60:.1f} minutes, to "
        f"{model or 'the default model'}; it takes as long as they are answered.",
        file=sys.stderr,
    )
    served, stopped = measure(*address_of(config, url), model, asks, exact=exact)
    if stopped:
        print(
            f"Stopped: these are the figures of the {len(served):,} of {len(asks):,} requests that had ended.",
            file=sys.stderr,
        )
    found = {**_traffic(trace, minutes / 60, seed, asks), "stopped": stopped, **summary(served)}
    _print([rows(found)])
    if save_trace is not None:
        traces.write(save_trace, replay(served))
    _write(json_file, "bench load", found)
    if stopped:
        raise typer.Exit(130)
    if found["answered"] < found["requests"]:
        raise typer.Exit(1)


def fleet(
    boards: Annotated[
        str, typer.Option(metavar="N[,N…]", help="How many boards; several numbers are compared.")
    ] = "1,2,4",
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHIP:MODEL[:DTYPE]",
            help="How fast a board is, by the vendor's figures; of several, boards have them in turn.",
            show_default="rk3588:qwen3-0.6b",
        ),
    ] = None,
    trace: Annotated[str, typer.Option("--load", metavar="NAME|FILE", help=TRAFFIC)] = "open-webui",
    users: Users = 10,
    own_keys: Annotated[
        bool, typer.Option("--own-keys", help="Each user shows an API key of their own, so that they take turns.")
    ] = False,
    hours: Annotated[
        float, typer.Option(min=0.01, max=168, help="For how long they come; a file has its own times.")
    ] = 1.0,
    seed: Seed = 1,
    json_file: JsonFile = None,
    config: options.Config = None,
) -> None:
    """Reckon how so many boards would serve some traffic: nothing is run but the queue, in virtual time."""
    options.apply(config)
    from npu.errors import ModelRefused
    from ops.bench import trace as traces
    from ops.bench.fleet import profile_named, reckon
    from ops.bench.served import rows
    from ops.configuration import load as load_settings
    from tasks.settings import TaskSettings

    numbers = _numbers(boards)
    names = profile or ["rk3588:qwen3-0.6b"]
    try:
        profiles = [profile_named(name) for name in names]
    except ModelRefused as error:
        raise typer.BadParameter(str(error), param_hint="--profile") from error
    asks = traces.named(trace, users, hours * 3600, seed)
    settings = load_settings(TaskSettings)
    found = [
        reckon(asks, [profiles[place % len(profiles)] for place in range(count)], settings, own_keys=own_keys)
        for count in numbers
    ]
    print(f"{len(asks):,} requests of {len({ask.user for ask in asks}):,} users; boards like {', '.join(names)}\n")
    _print([rows(each) for each in found], [f"{count} board{'s' * (count > 1)}" for count in numbers])
    _write(
        json_file,
        "bench fleet",
        {**_traffic(trace, hours, seed, asks), "profiles": names, "own_keys": own_keys, "fleets": found},
    )


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(1 <= count <= 1000 for count in found):
        raise typer.BadParameter(
            f"'{text}' should be a number of boards, or several with commas, each from 1 to 1000.",
            param_hint="--boards",
        )
    return found


def _traffic(trace: str, hours: float, seed: int, asks: Sequence[Ask]) -> dict[str, Any]:
    from ops.bench.trace import is_file

    of_its_own = is_file(trace)
    return {
        "traffic": {
            "trace": trace,
            "users": len({ask.user for ask in asks}),
            "minutes": round(asks[-1].at / 60 if of_its_own else hours * 60, 2),
            "seed": None if of_its_own else seed,
        }
    }


def _print(columns: list[list[tuple[str, str]]], heads: list[str] | None = None) -> None:
    """Figures for people: a line each, or each fleet's after the other."""
    for place, column in enumerate(columns):
        if heads is not None:
            print(("" if place == 0 else "\n") + heads[place])
        width = max(len(what) for what, _ in column)
        for what, value in column:
            print(f"{'  ' if heads is not None else ''}{what:<{width}}  {value}")


def _write(path: Path | None, command: str, found: dict[str, Any]) -> None:
    if path is None:
        return
    import json
    from datetime import UTC, datetime

    from tasks.version import VERSION

    head = {
        "schema": 1,
        "command": command,
        "version": VERSION,
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path.write_text(json.dumps({**head, **found}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
