"""`rockchipllama batch …`: many prompts from a file, answered by a running service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli import options
from ops.cli.service_address import service_of
from ops.program import given, program

if TYPE_CHECKING:
    from ops.service import Service

app = typer.Typer(
    help="Have many prompts answered by a running service. Exit code 1 also when some were not.", no_args_is_help=True
)

Input = Annotated[str, typer.Argument(metavar="FILE", help="The input, or - for what is piped in.")]
Batch = Annotated[str, typer.Argument(help="The batch's id.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where the answers go, a line of JSON each.")]
Model = Annotated[str | None, typer.Option(help="The model for requests that name none.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="jsonl (requests as the API takes them), csv or text (a prompt a line). Unset: by name."
    ),
]
Template = Annotated[
    str | None, typer.Option(help="For csv and text: the prompt, with {COLUMN} or {prompt} where the input belongs.")
]
System = Annotated[str | None, typer.Option(help="For csv and text: the system message before each prompt.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="For csv and text: the most tokens of an answer.")]
Window = Annotated[str, typer.Option(help="By when it is to be done: 24h, 90m, 7d, or 'until 07:00'.")]
Plot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Draw how it went, as an SVG: requests done, and tokens a second.", show_default=False
    ),
]


@app.command()
def submit(
    file: Input,
    model: Model = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it until it is over.")] = False,
    form: Format = None,
    template: Template = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    window: Window = "24h",
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Send prompts to be answered, and write the id of their batch, once its lines were checked."""
    service = service_of(config, url)
    made = _submit(service, file, form, model, template, system, max_tokens, window)
    print(made["id"], flush=True)
    if wait:
        _end(_watch(service, made["id"], as_json=False, again=given(url=url, config=config)))
        return
    import sys

    from ops.batch import watch

    found = watch.checked(service, made)
    if found["status"] == "failed":
        print(watch.told(found), file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def watch(
    batch: Batch,
    as_json: options.AsJson = False,
    plot: Plot = None,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Show how far a batch is until it is over: done, failed, tokens a second, boards at work, time left."""
    _end(_watch(service_of(config, url), batch, as_json=as_json, plot=plot, again=given(url=url, config=config)))


@app.command("list")
def list_batches(
    as_json: options.AsJson = False, url: options.ServiceUrl = None, config: options.Config = None
) -> None:
    """List the batches, the newest first."""
    service = service_of(config, url)
    import json
    import time

    from ops.fold import fold

    found = service.batches()
    if as_json:
        print(json.dumps(list(found), indent=2))
        return
    for each in found:
        counts = each["request_counts"]
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(each["created_at"]))
        done = f"{counts['completed']}/{counts['total']}" + (f", {counts['failed']} failed" if counts["failed"] else "")
        print(fold(f"{each['id']}  {made}  {each['status']:<11}  {done}", 4))


@app.command()
def cancel(batch: Batch, url: options.ServiceUrl = None, config: options.Config = None) -> None:
    """Run no more of a batch; what is answered already can be had."""
    found = service_of(config, url).cancel(batch)
    print(f"{found['id']} is {found['status']}.")


@app.command()
def results(
    batch: Batch,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Where they go. Unset: to the standard output."),
    ] = None,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Bring the answers of a batch that is over. A download that broke off goes on where it ended."""
    service = service_of(config, url)
    from ops.batch.results import collect, show

    found = service.batch(batch)
    if out is None:
        show(service, found)
    else:
        _collected(collect(service, found, out))


@app.command()
def run(
    file: Input,
    out: Out,
    model: Model = None,
    form: Format = None,
    template: Template = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    window: Window = "24h",
    plot: Plot = None,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Send prompts, watch them, and bring their answers to a file."""
    service = service_of(config, url)
    import sys

    from ops.batch.results import check_free, collect

    check_free(out)
    _check_plot(plot)
    made = _submit(service, file, form, model, template, system, max_tokens, window)
    again = given(url=url, config=config)
    results = f"{program()} batch results {made['id']}{given(out=out)}{again}"
    print(
        f"Batch {made['id']}. It goes on without this command; then: {results}",
        file=sys.stderr,
        flush=True,
    )
    over = _watch(service, made["id"], as_json=False, plot=plot, again=again)
    _collected(collect(service, over, out))
    _end(over)


def _submit(
    service: Service,
    file: str,
    form: str | None,
    model: str | None,
    template: str | None,
    system: str | None,
    max_tokens: int | None,
    window: str,
) -> dict[str, Any]:
    import sys
    import tempfile

    from ops.batch.prompts import InputError, Wishes, format_of, write

    if file != "-" and not Path(file).exists():
        raise InputError(f"{file} is not there.")
    form = format_of(file, form)
    # Larger inputs than memory are no reason to fail, so they go through a file.
    with tempfile.TemporaryFile() as requests:
        wishes = Wishes(model, template, system, max_tokens)
        if file == "-":
            endpoint, _ = write(sys.stdin.buffer, form, wishes, requests)
        else:
            try:
                with open(file, "rb") as source:
                    endpoint, _ = write(source, form, wishes, requests)
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror}.") from error
        requests.seek(0)
        name = "prompts.jsonl" if file == "-" else Path(file).stem + ".jsonl"
        return service.create(service.upload(name, requests), endpoint, window)


def _watch(service: Service, batch: str, *, as_json: bool, again: str, plot: Path | None = None) -> dict[str, Any]:
    _check_plot(plot)
    import sys

    from ops.batch import watch
    from ops.batch.plot import Moment, svg
    from ops.service import ServiceError

    seen: list[Moment] = []
    try:
        over = watch.watch(service, batch, as_json=as_json, seen=seen)
    except KeyboardInterrupt:
        print(f"{batch} goes on. `{program()} batch watch {batch}{again}` shows it again.", file=sys.stderr)
        raise
    print(watch.told(over), file=sys.stderr, flush=True)
    if plot is not None:
        try:
            plot.write_text(svg(seen, watch.told(over).splitlines()[0]), encoding="utf-8")
        except (OSError, ServiceError) as error:
            # The answers are worth more than their picture.
            print(f"No plot: {error}", file=sys.stderr)
    return over


def _check_plot(plot: Path | None) -> None:
    if plot is not None and plot.suffix.lower() != ".svg":
        raise typer.BadParameter("a plot is an SVG, so its name should end in .svg.", param_hint="--plot")


def _collected(written: list[Path]) -> None:
    import sys

    print(f"Written: {', '.join(map(str, written))}" if written else "Nothing was answered.", file=sys.stderr)


def _end(batch: dict[str, Any]) -> None:
    from ops.batch.watch import went_well

    if not went_well(batch):
        raise typer.Exit(1)
