"""`rockchipllama up`: the whole service on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from ops.cli import join, options


def up(
    host: options.Host = None,
    port: options.Port = None,
    redis_url: options.RedisUrl = None,
    share: Annotated[
        bool, typer.Option("--share", help="Let other boards join, and print the line to type there.")
    ] = False,
    models_dir: options.ModelsDir = None,
    data_dir: options.DataDir = None,
    default_model: options.DefaultModel = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
    config: options.Config = None,
) -> None:
    """Run the whole service on this machine: job queue, API, board and workers. Ctrl-C stops all of it."""
    options.apply(
        config,
        host=host,
        port=port,
        redis_url=redis_url,
        share="true" if share else None,
        models_dir=models_dir,
        data_dir=data_dir,
        default_model=default_model,
        log_level=log_level,
        log_format=log_format,
    )
    import logging
    import sys

    from api.settings import ApiSettings
    from ops import configuration
    from ops.up import joined, listen
    from ops.up.service import Plan, run
    from ops.up.settings import UpSettings
    from ops.up.sharing import TokenRefused
    from tasks import logs
    from tasks.board.settings import BoardSettings
    from tasks.settings import TaskSettings

    configuration.check()
    shared, http = configuration.load(TaskSettings), configuration.load(ApiSettings)
    configuration.check_library(shared)
    logs.configure(shared.log_level, shared.log_format)
    for sentence in configuration.unknown():
        logging.getLogger("rockchipllama.up").warning("%s", sentence)
    up_settings = configuration.load(UpSettings)
    if shared.redis_url is None and joined.redis_url(shared.data_dir) is not None:
        if up_settings.share:
            raise TokenRefused(
                f"This machine takes part in the service at {joined.place(shared.data_dir)}, and cannot share one of its own "
                "as well. `rockchipllama join --forget` ends that.",
                usage=True,
            )
        join.run()
        return
    if shared.redis_url is not None and up_settings.share:
        raise configuration.ConfigurationError(
            "`share` is for the embedded Valkey, and a Redis is named (redis_url): its own users and network settings say who "
            "may join. Leave one of the two out."
        )
    check_keys: Callable[[str], None] | None = None
    if not http.api_keys and not http.trusted_networks and http.host not in ("127.0.0.1", "::1", "localhost"):
        listen.resolve(http.host, http.port)  # a mistyped address is no wide one
        from api.auth import check_bind  # only now: it brings a web framework along, which `up` does not need

        if shared.redis_url or (shared.data_dir / "valkey").is_dir():

            def check_keys(url: str) -> None:
                """Somebody may have made a key, which the queue knows once it runs."""
                from tasks.api_keys import were_made

                check_bind(http, keys=were_made(url))

        else:
            check_bind(http)
    plan = Plan(
        tasks=shared,
        up=up_settings,
        host=http.host,
        port=http.port,
        drain=http.drain,
        trusted_networks=http.trusted_networks,
        preload=configuration.load(BoardSettings).preload,
        check_keys=check_keys,
    )
    sys.exit(run(plan))
