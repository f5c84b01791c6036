"""`rockchipllama jobs …`, `attach` and `why`: the requests of a running service."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ops.cli import completion, options
from ops.cli.service_address import service_of

app = typer.Typer(help="The requests of a running service.")

Job = Annotated[str, typer.Argument(help="The job's id.", autocompletion=completion.jobs)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Url = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where the service is.", show_default=False)]


@app.callback(invoke_without_command=True)
def jobs(
    context: typer.Context,
    state: Annotated[
        str, typer.Option(help="Only those: active (waiting or running), queued, running, finished, failed, cancelled.")
    ] = "all",
    limit: Annotated[int, typer.Option(min=1, max=200, help="The most that are listed.")] = 50,
    as_json: AsJson = False,
    url: Url = None,
    config: options.Config = None,
) -> None:
    """List the jobs that run, wait, and ended lately, the newest first. Needs a key with the scope admin, where keys are made."""
    if context.invoked_subcommand is not None:
        return
    import json

    found = service_of(config, url).jobs(state, limit)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print("There are no such jobs.")
    width = max((len(job["model"]) for job in found), default=0)
    for job in found:
        print(f"{job['id']}  {_clock(job['created_at'])}  {job['model']:<{width}}  {job['lane']:<11}  {_stands(job)}")


@app.command()
def cancel(job: Job, url: Url = None, config: options.Config = None) -> None:
    """End a job, waiting or running."""
    found = service_of(config, url).cancel_job(job)
    print(f"{found['id']} is {found['state']}.")


def attach(job: Job, as_json: AsJson = False, url: Url = None, config: options.Config = None) -> None:
    """Follow a job from its beginning to its end. Leaving ends nothing. Exit code 1 unless it ends well."""
    service = service_of(config, url)
    from ops.chat.attached import follow, show

    if not show(follow(service, job), as_json=as_json):
        raise typer.Exit(1)


def why(job: Job, as_json: AsJson = False, url: Url = None, config: options.Config = None) -> None:
    """Show where a job's time went: waits, interruptions, loading, prefill, decode, the rest."""
    import json

    found = service_of(config, url).why(job)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for part in found["parts"]:
        where = f" on {part['board']}" if part["board"] else ""
        print(f"{part['ms'] / 1000:10.3f} s  {part['kind']}{where}{': ' + part['why'] if part['why'] else ''}")
    wall = found["wall_ms"]
    if wall is not None:
        print(f"{wall / 1000:10.3f} s  in all, {found['state']}")
    else:
        print(f"It is {found['state']}{': ' + found['why'].rstrip('.') if found['why'] else ''}.")


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
