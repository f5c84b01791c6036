"""The command `rockchipllama`: its commands, and how a failure is told."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ops.cli import (
    api,
    backup,
    batch,
    bench,
    board,
    boards,
    chat,
    doctor,
    flower,
    jobs,
    join,
    keys,
    models,
    runtime,
    served_models,
    service,
    settings,
    streams,
    top,
    up,
    worker,
)
from ops.cli.metavars import name_values
from ops.fold import fold
from ops.program import as_typed, program

_ELSEWHERE = {
    "serve": "up",
    "pull": "models pull",
    "list": "models list",
    "ls": "models list",
    "show": "models info",
    "ps": "models loaded",
    "stop": "models unload",
    "rm": "models rm",
}
"""Commands of Ollama, and what does the same here."""


class _Commands(TyperGroup):
    """Names ours to who types Ollama's."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        name_values(self)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in _ELSEWHERE and not ctx.resilient_parsing:
            ctx.fail(
                f"There is no command '{args[0]}'. What it does elsewhere, `{program()} {_ELSEWHERE[args[0]]}` does."
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="rockchipllama",
    cls=_Commands,
    help="Serve language models on Rockchip NPU boards, behind the OpenAI API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


_USAGE = {"ops.configuration:ConfigurationError", "api.auth:BindRefused", "ops.flower.watch:FlowerRefused"}
_FOR_THE_USER = _USAGE | {
    "ops.cli.queue_of_service:QueueAway",
    "ops.systemd.installation:ServiceRefused",
    "ops.up.errors:UpError",
    "ops.demo_model:FetchError",
    "ops.service:ServiceError",
    "ops.batch.prompts:InputError",
    "ops.bench.trace:TraceError",
    "ops.bench.load:LoadError",
    "tasks.api_keys:KeyRefused",
    "tasks.errors:TasksError",
    "npu.errors:NpuError",
}
"""Roots of the errors whose messages are written for the user. By name: a command loads only what it needs."""

_OURS = {"api", "tasks", "npu", "ops"}
"""What is missing of these is a defect; other packages may be left out."""


def _show_version(asked: bool) -> None:
    if asked:
        from tasks.version import VERSION

        print(f"rockchipllama {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("up")(up.up)
app.command("api")(api.api)
app.command("board")(board.board)
app.command("join")(join.join)
app.command("worker")(worker.worker)
app.command("run")(chat.run)
app.command("chat")(chat.chat)
app.command("attach")(jobs.attach)
app.command("why")(jobs.why)
app.command("top")(top.top)
app.command("flower")(flower.flower)
app.command("doctor")(doctor.doctor)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.add_typer(service.app, name="service")
app.add_typer(settings.app, name="settings")
models.app.command("info")(served_models.info)
models.app.command("load")(served_models.load)
models.app.command("unload")(served_models.unload)
models.app.command("loaded")(served_models.loaded)
models.app.command("available")(served_models.available)
app.add_typer(models.app, name="models")
app.add_typer(boards.app, name="boards")
app.add_typer(runtime.app, name="runtime")
app.add_typer(keys.app, name="keys")
app.add_typer(jobs.app, name="jobs")
app.add_typer(batch.app, name="batch")
app.add_typer(bench.app, name="bench")


_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main() -> None:
    """Run one command. Exit codes: 0 as asked, 1 it failed, 2 it was asked wrongly, 130 Ctrl-C."""
    run(app)


def run(command: Callable[[], object]) -> None:
    """Run a command line, and tell its failures in its user's words, with those exit codes."""
    streams.settle()
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # who reads has enough
        streams.let_go()
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is None:
            streams.let_go()
            print(f"rockchipllama: what comes out cannot be written: {error.strerror}.", file=sys.stderr)
            sys.exit(1)
        if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
            print("rockchipllama: what was typed is no text in UTF-8.", file=sys.stderr)
            sys.exit(2)
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] not in _OURS:
            print(
                f"rockchipllama: this needs the package '{error.name}', which is not installed here. A container of one part "
                "holds only what that part needs: the API's has no engines, a board's no API (docs/containers.md).",
                file=sys.stderr,
            )
            sys.exit(1)
        kinds = {f"{kind.__module__}:{kind.__name__}" for kind in type(error).__mro__}
        if not kinds & _FOR_THE_USER:
            raise
        # A traceback would only hide a message that was written to be read.
        for line in f"rockchipllama: {as_typed(str(error))}".split("\n"):
            print(fold(line, 0, sys.stderr), file=sys.stderr)
        sys.exit(2 if kinds & _USAGE or getattr(error, "usage", False) else 1)


if __name__ == "__main__":
    main()
