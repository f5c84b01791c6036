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
    from ops.up import listen
    from tasks import lifeline
    from tasks.api_keys import were_made
    from tasks.settings import TaskSettings
    from tasks.settings import redis_url as redis_url_of

    part.begin()
    lifeline.watch()
    settings = load(ApiSettings)
    from api.auth import check_bind, is_loopback
    from api.server import serve

    # A Redis that is away cannot tell, and a wide address without a key is then refused.
    keys = not is_loopback(settings.host) and were_made(redis_url_of(load(TaskSettings)))
    check_bind(settings, keys=keys)
    inherited = environment.listen_fd()
    if inherited is not None:
        sock = socket.socket(fileno=inherited)
    else:
        sock = listen.listen(settings.host, settings.port)
        print(f"RockchipLlama's API listens on {listen.url(sock)}", flush=True)
    serve(settings, [sock], keys=keys)
