"""`celery`: what of Celery's own command line asks workers, for those of this service.

It takes the place of the script that Celery installs. That one does not start without packages for interactive prompts, which are
left out (`pyproject.toml`), and would have to be told an application, which here is made of the settings.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

_INSTEAD = {
    "worker": "Workers are run by a board's agent, and singly by `rockchipllama worker MODEL`.",
    "purge": "Jobs are ended by `rockchipllama jobs cancel`.",
    "result": "What became of a job is told by `rockchipllama jobs show`.",
    "call": "Jobs are made by clients of the API.",
    "report": "What is where is told by `rockchipllama doctor`.",
}


class _Commands(click.Group):
    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in self.commands:
            known = ", ".join(self.commands)
            ctx.fail(f"Of Celery's commands these ask workers: {known}. {_INSTEAD.get(args[0], '')}".strip())
        return super().resolve_command(ctx, args)


def _refuse_application(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.fail("The application is that of this service: leave -A out.")


@click.group(cls=_Commands)
@click.option("-A", "--app", hidden=True, expose_value=False, callback=_refuse_application)
@click.option(
    "-b", "--broker", "--redis-url", "redis_url", metavar="URL", help="The Redis or Valkey that carries the jobs."
)
@click.option("--data-dir", metavar="FOLDER", type=Path, help="Where the service keeps its files.")
@click.option("-C", "--no-color", is_flag=True, help="Plain text.")
@click.option("-q", "--quiet", is_flag=True, help="Say less.")
@click.pass_context
def _celery(ctx: click.Context, redis_url: str | None, data_dir: Path | None, no_color: bool, quiet: bool) -> None:
    """Ask the workers of this service by the means of Celery."""
    from celery.bin.base import CLIContext

    from ops.cli import options, queue_of_service
    from tasks.broker import celery_app

    options.apply(redis_url=redis_url, data_dir=data_dir)
    if not {"--help", "--list"} & set(sys.argv):
        queue_of_service.connect().close()  # Celery would wait for it without a word
    ctx.obj = CLIContext(app=celery_app(queue_of_service.url()), no_color=no_color, workdir=None, quiet=quiet)


def main() -> None:
    """Run one command, with the exit codes of `rockchipllama`."""
    from celery.bin.control import control, inspect, status
    from celery.bin.events import events

    from ops.cli.main import run

    for command in (inspect, control, status, events):
        _celery.add_command(command)
    run(lambda: _celery(prog_name="celery"))


if __name__ == "__main__":
    main()
