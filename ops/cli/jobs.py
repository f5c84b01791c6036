"""`rockchipllama jobs …`, `attach` and `why`: the requests of a running service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ops.cli import completion, options
from ops.cli.service_address import service_of
from ops.program import as_typed, program

HELD = {
    "load": "It goes on by itself. `rockchipllama models loaded` tells how far that is, or why it cannot be loaded.",
    "room": "`rockchipllama models loaded` lists what is loaded; `rockchipllama models unload MODEL` makes room.",
    "board": "`rockchipllama boards` lists those there are; `rockchipllama boards resume NAME` lets a drained one serve again.",
    "queue": "`POST /v1/queue/{model}/resume`, or the console, lets it go on.",
}
"""What can be done where a job waits for that."""


class _Jobs(TyperGroup):
    """Takes the id of a job in the place of a command for the wish to see it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        from tasks.jobs import is_job_id

        if args[0] not in self.commands and is_job_id(args[0]):
            args = ["show", *args]
        elif args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(
                f"'{args[0]}' is neither a command nor the id of a job. `{program()} jobs` lists jobs with their ids."
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Jobs, help="The requests of a running service.")

Job = Annotated[str, typer.Argument(help="The job's id.", autocompletion=completion.jobs)]


@app.callback(invoke_without_command=True)
def jobs(
    context: typer.Context,
    state: Annotated[
        str, typer.Option(help="Only those: active (waiting or running), queued, running, finished, failed, cancelled.")
    ] = "all",
    limit: Annotated[int, typer.Option(min=1, max=200, help="The most that are listed.")] = 50,
    as_json: options.AsJson = False,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """List the jobs that run, wait, and ended lately, the newest first. Needs a key with the scope admin, where keys are made.
    The id of one instead of a command shows that job."""
    if context.invoked_subcommand is not None:
        options.hand_on(context)
        return
    import json

    from ops.fold import fold

    found = service_of(config, url).jobs(state, limit)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print("There are no such jobs.")
    width = max((len(job["model"]) for job in found), default=0)
    for job in found:
        line = f"{job['id']}  {_clock(job['created_at'])}  {job['model']:<{width}}  {job['lane']:<11}  {_stands(job)}"
        print(fold(line, 24))


@app.command()
def show(
    job: Job, as_json: options.AsJson = False, url: options.ServiceUrl = None, config: options.Config = None
) -> None:
    """Show how a job stands, what it waits for, and what can be done. `jobs ID` is the same."""
    import json
    import time

    from ops.fold import fold

    service = service_of(config, url)
    found = service.job(job)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    held = service.why(job)["why"] if found["waits_for"] not in (None, "turn") else None
    for name, value in _facts(found, held, time.time()):
        if value:
            print(fold(f"{name:<9}  {as_typed(value)}", 11))


@app.command()
def cancel(job: Job, url: options.ServiceUrl = None, config: options.Config = None) -> None:
    """End a job, waiting or running."""
    found = service_of(config, url).cancel_job(job)
    print(f"{found['id']} is {found['state']}.")


def attach(
    job: Job, as_json: options.AsJson = False, url: options.ServiceUrl = None, config: options.Config = None
) -> None:
    """Follow a job from its beginning to its end. Leaving ends nothing. Exit code 1 unless it ends well."""
    service = service_of(config, url)
    from ops.chat.attached import follow, show
    from ops.chat.screen import Screen

    screen = Screen()
    if not show(follow(service, job, screen.note), screen, as_json=as_json):
        raise typer.Exit(1)


def why(
    job: Job, as_json: options.AsJson = False, url: options.ServiceUrl = None, config: options.Config = None
) -> None:
    """Show where a job's time went: waits, interruptions, loading, prefill, decode, handling, publish."""
    import json

    from ops.fold import fold

    found = service_of(config, url).why(job)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for part in found["parts"]:
        kind = part["kind"].replace("_", " ")
        where = f" on {part['board']}" if part["board"] else ""
        print(fold(f"{part['ms'] / 1000:10.3f} s  {kind}{where}{': ' + part['why'] if part['why'] else ''}", 14))
    wall = found["wall_ms"]
    if wall is not None:
        print(f"{wall / 1000:10.3f} s  in all, {found['state']}")
    else:
        print(f"It is {found['state']}{': ' + found['why'].rstrip('.') if found['why'] else ''}.")


def _facts(job: dict[str, Any], held: str | None, now: float) -> Iterator[tuple[str, str | None]]:
    """What there is to know of a job at this moment, each fact with its name. `held` is what it waits for, as a sentence."""
    ended = job["ended_at"] is not None
    yield "job", job["id"]
    yield "model", job["model"]
    yield "lane", job["lane"]
    yield "state", _stands(job) if not job["error"] else "failed"
    yield "board", job["board"]
    ago = f", {max(0.0, now - job['created_at']):,.0f} s ago" if not ended else ""
    yield "accepted", _clock(job["created_at"]) + ago
    yield "ended", _clock(job["ended_at"]) if ended else None
    yield "attempts", str(job["attempts"]) if job["attempts"] > 1 else None
    for why in job["interruptions"]:
        yield "broke off", why
    yield "waits for", held
    if job["error"]:
        yield "error", f"{job['error']['message']} ({job['error']['code']})"
    yield "to do", _to_do(job)


def _to_do(job: dict[str, Any]) -> str:
    if job["ended_at"] is not None:
        return f"`rockchipllama why {job['id']}` tells where its time went."
    act = HELD.get(job["waits_for"], "").format(model=job["model"].partition(":")[0])
    return (
        f"{act} `rockchipllama attach {job['id']}` follows it, `rockchipllama jobs cancel {job['id']}` ends it.".strip()
    )


def _clock(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _stands(job: dict[str, Any]) -> str:
    if job["state"] == "queued":
        wait, held = job["estimated_wait"], job["waits_for"]
        words = f"queued, position {job['position']}" + (f", about {wait:.0f} s" if wait is not None else "")
        return words + (f", waits for {held}" if held not in (None, "turn") else "")
    if job["state"] == "running":
        return f"running on {job['board']}, {job['phase']}"
    if job["error"]:
        return f"failed: {job['error']['message']}"
    took = (job["ended_at"] or job["created_at"]) - job["created_at"]
    return f"{job['state']} after {took:.1f} s"
