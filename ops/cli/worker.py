"""`rockchipllama worker MODEL`: one worker, which holds one model."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli import options


def worker(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id, as the board announces it.")],
    memory_domain: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="The NPU's memory domain the model is put into.", show_default=False),
    ] = None,
    instance: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="Which of its model's workers on this board it is.", show_default=False),
    ] = None,
    redis_url: options.RedisUrl = None,
    models_dir: options.ModelsDir = None,
    data_dir: options.DataDir = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
    config: options.Config = None,
) -> None:
    """Run the worker of one model alone. A board's agent does this for you."""
    options.apply(
        config,
        memory_domain=memory_domain,
        instance=instance,
        redis_url=redis_url,
        models_dir=models_dir,
        data_dir=data_dir,
        log_level=log_level,
        log_format=log_format,
    )
    import sys

    from ops import environment
    from ops.cli import part
    from ops.configuration import load
    from tasks.worker.settings import WorkerSettings

    environment.forget(environment.API_SECRETS | environment.BOARD_SECRETS)
    part.begin()
    load(WorkerSettings)
    _share_a_temporary_folder()

    from tasks.worker.entry import main

    sys.exit(main(model))


def _share_a_temporary_folder() -> None:
    import os
    import tempfile
    from multiprocessing import process

    # Celery's pool keeps counters in a file that it unlinks at once, but in a folder made for it alone, which stays for
    # ever when the process is killed. It takes one that is named here instead; in memory where the system has such.
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else tempfile.gettempdir()
    process.current_process()._config["tempdir"] = shared  # type: ignore[attr-defined]
