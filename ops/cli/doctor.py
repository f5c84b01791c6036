"""`rockchipllama doctor`: what is right and wrong with this machine, and how to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ops.cli import options


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of sentences.")] = False,
    soc: Annotated[
        str | None,
        typer.Option(metavar="CHIP", help="Take this machine's chip for that one, such as rk3588.", show_default=False),
    ] = None,
    acceptance: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Ask this board all that nobody else knows, with that model: an hour, and a report to send us.",
            show_default=False,
        ),
    ] = None,
    report_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where that report goes, instead of the data folder.", show_default=False),
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
    if acceptance is not None:
        if soc is not None:
            raise typer.BadParameter("the acceptance asks the chip that is there", param_hint="--soc")
        from ops.doctor import acceptance_report
        from ops.doctor.acceptance import examine

        done = examine(acceptance, settings, lambda line: print(line, file=sys.stderr, flush=True))
        pages = acceptance_report.write(done, report_dir or settings.data_dir / "acceptance")
        print(
            json.dumps(done.to_json(), indent=2, ensure_ascii=False)
            if as_json
            else f"Written: {pages[0]} and {pages[1]}."
        )
        sys.exit(1 if done.failed else 0)
    if report_dir is not None:
        raise typer.BadParameter("there is a report with --acceptance only", param_hint="--report-dir")
    gathered = facts.gather(settings, soc=soc, library=look_for_library(setup_of(settings)))
    findings = report.examine(gathered)
    if as_json:
        print(json.dumps(report.to_json(gathered, findings), indent=2, ensure_ascii=False))
    else:
        print("\n".join(report.to_text(gathered, findings)))
    sys.exit(report.exit_code(findings))
