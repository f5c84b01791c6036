"""`rockchipllama doctor`: what is right and wrong with this machine, and how to mend it."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli import options


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of sentences.")] = False,
    soc: Annotated[
        str | None,
        typer.Option(metavar="CHIP", help="Take this machine's chip for that one, such as rk3588.", show_default=False),
    ] = None,
    redis_url: options.RedisUrl = None,
    models_dir: options.ModelsDir = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Say what is right and what is wrong with this machine, its models and settings. Exit code 1: there is a problem."""
    options.apply(config, redis_url=redis_url, models_dir=models_dir, data_dir=data_dir)
    import json
    import sys

    from npu.hardware import soc_named
    from ops.configuration import load
    from ops.doctor import facts, report
    from ops.doctor.library import look_for_library
    from tasks.prompting.setup import setup_of
    from tasks.settings import TaskSettings

    if soc is not None:
        try:
            soc_named(soc)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--soc") from error
    settings = load(TaskSettings)
    gathered = facts.gather(settings, soc=soc, library=look_for_library(setup_of(settings)))
    findings = report.examine(gathered)
    if as_json:
        print(json.dumps(report.to_json(gathered, findings), indent=2, ensure_ascii=False))
    else:
        print("\n".join(report.to_text(gathered, findings)))
    sys.exit(report.exit_code(findings))
