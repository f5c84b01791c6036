"""The running service that a command asks, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from ops.cli import options

if TYPE_CHECKING:
    from ops.service import Service


def service_of(config: Path | None, url: str | None, patience: float | None = None) -> Service:
    """The one at `url`, else the one that the settings name, else this machine's. `patience` is as `Service` has it."""
    from ops.service import Service

    return Service(*address_of(config, url), patience)


def named_service(config: Path | None, url: str | None, **own: object) -> Service | None:
    """The one at `url`, or that the settings name; None where none is named, and this machine's is meant. `own` are options that
    name the latter's parts, and win over the settings. Raises `typer.BadParameter` where one of them is given beside `url`."""
    if url is not None:
        options.refuse_beside("--url", **own)
    options.apply(config, service_url=url)
    from ops.client_settings import ClientSettings
    from ops.configuration import load

    given = any(value is not None for value in own.values())
    return None if given or load(ClientSettings).service_url is None else service_of(config, url)


def address_of(config: Path | None, url: str | None) -> tuple[str, str | None]:
    """Where that service is, and the key to show it, if there is one. Raises `typer.BadParameter` for an address of another
    protocol."""
    options.apply(config, service_url=url)
    from ops.client_settings import ClientSettings
    from ops.configuration import load, without_password

    settings = load(ClientSettings)
    where = settings.service_url or _local()
    scheme, separator, _ = where.partition("://")
    if not separator:
        where = f"http://{where}"
    elif scheme.lower() not in ("http", "https"):
        raise typer.BadParameter(
            f"the service speaks http or https, and not {scheme}.", param_hint="--url or ROCKCHIPLLAMA_SERVICE_URL"
        )
    if not _is_address(where):
        raise typer.BadParameter(
            f"'{without_password(where)}' is no address of a service, such as http://192.168.1.5:8080.",
            param_hint="--url or ROCKCHIPLLAMA_SERVICE_URL",
        )
    key = settings.service_key.get_secret_value() if settings.service_key is not None else None
    return where, key


def _is_address(url: str) -> bool:
    import httpx

    try:
        parts = httpx.URL(url)
        urlsplit(url)  # which httpx does not ask, and what shows addresses does
        parts.raw_host.decode("ascii").encode("idna")  # as Python asks for its address: labels are bounded
        return bool(parts.host) and (parts.port is None or parts.port < 65536)
    except (httpx.InvalidURL, ValueError):
        return False


def _local() -> str:
    """Where the service of this machine's data directory listens; where none runs from it, where the settings have one listen."""
    from api.settings import ApiSettings
    from ops.configuration import load
    from ops.up.lock import served
    from tasks.settings import TaskSettings

    running = served(load(TaskSettings).data_dir)
    if running is not None:
        return running
    local = load(ApiSettings)
    host = "127.0.0.1" if local.host in ("0.0.0.0", "::", "localhost") else local.host
    return f"http://{f'[{host}]' if ':' in host else host}:{local.port}"
