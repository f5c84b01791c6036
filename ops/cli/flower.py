"""`rockchipllama flower`: the calls of a service and its workers, in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli import options


def flower(
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The address it listens on.", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="The port it listens on.", show_default=False)
    ] = None,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Show the calls and workers of a running service in a browser, without their prompts, and keep nothing of them."""
    options.apply(config, flower_host=host, flower_port=port, redis_url=redis_url, data_dir=data_dir)
    from ops import environment
    from ops.cli import queue_of_service
    from ops.configuration import load
    from ops.flower.settings import FlowerSettings
    from ops.flower.watch import watch

    settings = load(FlowerSettings)
    queue_of_service.connect().close()
    environment.put(environment.variable("redis_url"), queue_of_service.url())
    watch(settings)
