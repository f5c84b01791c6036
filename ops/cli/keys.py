"""`rockchipllama keys …`: API keys for people and programs.

It goes to the service's Redis itself, not through the API: whoever runs the service must get in when nobody has a key yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ops.cli import options, queue_of_service

if TYPE_CHECKING:
    from redis import Redis

    from tasks.limits import Limits

app = typer.Typer(help="Make, list and revoke API keys of a running service.", no_args_is_help=True)

Requests = Annotated[
    int | None, typer.Option("--requests", min=1, help="The most requests a minute.", show_default=False)
]
Tokens = Annotated[
    int | None,
    typer.Option("--tokens", min=1, help="The most tokens a minute, of prompts and answers.", show_default=False),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="The most requests at once, waiting or running.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, such as open-webui.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it allows: inference, batch, admin; may be repeated. Unset: inference and batch."),
    ] = None,
    requests: Requests = None,
    tokens: Tokens = None,
    jobs: Jobs = None,
    as_json: AsJson = False,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Make a key and show it, once: only its digest is kept. From the first key on, clients need one. Items of batches are not
    limited."""
    options.apply(config, redis_url=redis_url, data_dir=data_dir)
    import json

    from tasks import api_keys

    try:
        scopes = [api_keys.Scope(word) for word in scope or ("inference", "batch")]
    except ValueError as error:
        raise typer.BadParameter(f"{error}; there are {', '.join(api_keys.Scope)}.", param_hint="--scope") from error
    with_client = _client()
    key, plain = api_keys.create(with_client, name, scopes, _limits(requests, tokens, jobs))
    if as_json:
        print(json.dumps({**_shown(key), "key": plain}))
    else:
        print(f"{plain}\n\nThis is shown once. '{key.name}' ({key.id}) may: {', '.join(sorted(key.scopes))}.")


@app.command("list")
def list_keys(
    as_json: AsJson = False,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """List the keys that were made, by name; those in ROCKCHIPLLAMA_API_KEYS are not among them."""
    options.apply(config, redis_url=redis_url, data_dir=data_dir)
    import json
    import time

    from tasks import api_keys

    found = api_keys.listing(_client())
    if as_json:
        print(json.dumps([_shown(key) for key in found]))
        return
    if not found:
        print("There are no keys. `.venv/bin/rockchipllama keys create NAME` makes one.")
        return
    width = max(len(key.name) for key in found)
    for key in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created))
        print(f"{key.id}  {key.name:<{width}}  {made}  {','.join(sorted(key.scopes))}{_in_words(key.limits)}")


@app.command()
def limit(
    name: Annotated[str, typer.Argument(help="The key's name or id.")],
    requests: Requests = None,
    tokens: Tokens = None,
    jobs: Jobs = None,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Let a key ask for so much from now on, within two seconds; what is left out is not limited any more."""
    options.apply(config, redis_url=redis_url, data_dir=data_dir)
    from tasks import api_keys

    key = api_keys.limit(_client(), name, _limits(requests, tokens, jobs))
    print(f"'{key.name}' ({key.id}){_in_words(key.limits) or '  no limits'}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name or id.")],
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Make a key useless, within two seconds. Jobs that it began run on."""
    options.apply(config, redis_url=redis_url, data_dir=data_dir)
    from tasks import api_keys

    key = api_keys.revoke(_client(), name)
    print(f"'{key.name}' ({key.id}) opens nothing any more.")


def _client() -> Redis:
    from redis.exceptions import NoPermissionError

    from tasks import keys
    from tasks.api_keys import KeyRefused

    client = queue_of_service.connect()
    try:
        client.exists(keys.API_KEYS)
    except NoPermissionError as error:
        raise KeyRefused(
            "API keys are made, listed and revoked where the service runs; this machine is a board of it and no more."
        ) from error
    return client


def _limits(requests: int | None, tokens: int | None, jobs: int | None) -> Limits | None:
    from tasks.limits import Limits

    return Limits(requests=requests, tokens=tokens, jobs=jobs) if requests or tokens or jobs else None


def _in_words(limits: Limits | None) -> str:
    if limits is None:
        return ""
    words = (
        (limits.requests, "requests/min"),
        (limits.tokens, "tokens/min"),
        (limits.jobs, "at once"),
    )
    return "  " + ", ".join(f"{count} {what}" for count, what in words if count is not None)


def _shown(key: object) -> dict[str, object]:
    from msgspec.structs import asdict

    from tasks.api_keys import ApiKey

    assert isinstance(key, ApiKey)
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "created": key.created,
        "limits": asdict(key.limits) if key.limits is not None else None,
    }
