"""`rockchipllama board`: the agent of one board, which finds its models and keeps their workers."""

from __future__ import annotations

from ops.cli import options


def board(
    redis_url: options.RedisUrl = None,
    models_dir: options.ModelsDir = None,
    data_dir: options.DataDir = None,
    default_model: options.DefaultModel = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
    config: options.Config = None,
) -> None:
    """Run this board's agent alone: it announces the models it has and starts their workers."""
    options.apply(
        config,
        redis_url=redis_url,
        models_dir=models_dir,
        data_dir=data_dir,
        default_model=default_model,
        log_level=log_level,
        log_format=log_format,
    )
    import sys

    from ops import environment
    from ops.cli import part
    from ops.configuration import check_library, load
    from tasks.board.settings import BoardSettings
    from tasks.settings import TaskSettings

    environment.forget(environment.API_SECRETS)  # its workers inherit what it has
    part.begin()
    load(BoardSettings)
    check_library(load(TaskSettings))

    from tasks.board.agent import main

    sys.exit(main())
