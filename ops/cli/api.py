"""`rockchipllama api`: the HTTP side alone."""

from __future__ import annotations

from ops.cli import options


def api(
    host: options.Host = None,
    port: options.Port = None,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    default_model: options.DefaultModel = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
    config: options.Config = None,
) -> None:
    """Run the HTTP API alone; boards that share its Redis serve the models."""
    options.apply(
        config,
        host=host,
        port=port,
        redis_url=redis_url,
        data_dir=data_dir,
        default_model=default_model,
        log_level=log_level,
        log_format=log_format,
    )
    import socket

    from api.settings import ApiSettings
    from ops import environment
    from ops.cli import part
    from ops.configuration import load

    part.begin()
    settings = load(ApiSettings)
    inherited = environment.listen_fd()

    from api.server import serve

    serve(settings, None if inherited is None else socket.socket(fileno=inherited))
