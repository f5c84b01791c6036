"""`rockchipllama keys …`: API keys for people and programs.

Where no service is named, it goes to the Redis of the one that runs here: somebody must get in when nobody has a key yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli import options
from ops.cli.service_address import named_service
from ops.program import program

if TYPE_CHECKING:
    from ops.cli.key_book import KeyBook

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
Url = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Where the service is; it wants an administrator's key.", show_default=False),
]


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
    as_json: options.AsJson = False,
    url: Url = None,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Make a key and show it, once: only its digest is kept. From the first key on, clients need one. Items of batches are not
    limited."""
    import json
    import sys

    from tasks.api_keys import Scope

    scopes = scope or ["inference", "batch"]
    for word in scopes:
        if word not in set(Scope):
            raise typer.BadParameter(f"'{word}' is none; there are {', '.join(Scope)}.", param_hint="--scope")
    book = _book(config, url, redis_url, data_dir)
    before = book.keys()
    key = book.create_key(name, scopes, _limits(requests, tokens, jobs))
    if as_json:
        print(json.dumps(key))
    else:
        may = f"may: {', '.join(key['scopes'])}.{_allowed(key)}"
        print(f"{key['key']}\n\nThis is shown once. '{key['name']}' ({key['id']}) {may}")
    if not before:
        print(
            f"Clients need a key now; commands take one from ROCKCHIPLLAMA_SERVICE_KEY.{_no_admin(scopes)}",
            file=sys.stderr,
        )


@app.command("list")
def list_keys(
    as_json: options.AsJson = False,
    url: Url = None,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """List the keys that were made, by name; those in ROCKCHIPLLAMA_API_KEYS are not among them."""
    import json
    import time

    from ops.fold import fold

    found = sorted(_book(config, url, redis_url, data_dir).keys(), key=lambda key: key["name"])
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print(f"There are no keys. `{program()} keys create NAME` makes one.")
        return
    width = max(len(key["name"]) for key in found)
    for key in found:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key["created"]))
        line = f"{key['id']}  {key['name']:<{width}}  {made}  {','.join(key['scopes'])}{_in_words(key['limits'])}"
        print(fold(line, 14))


@app.command()
def limit(
    name: Annotated[str, typer.Argument(help="The key's name or id.")],
    requests: Requests = None,
    tokens: Tokens = None,
    jobs: Jobs = None,
    url: Url = None,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Let a key ask for so much from now on, within two seconds; what is left out is not limited any more."""
    key = _book(config, url, redis_url, data_dir).limit_key(name, _limits(requests, tokens, jobs))
    print(f"'{key['name']}' ({key['id']}){_in_words(key['limits']) or '  no limits'}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name or id.")],
    url: Url = None,
    redis_url: options.RedisUrl = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Make a key useless, within two seconds. Jobs that it began run on."""
    import sys

    book = _book(config, url, redis_url, data_dir)
    before = book.keys()
    key = book.revoke_key(name)
    print(f"'{key['name']}' ({key['id']}) opens nothing any more.")
    if [each["id"] for each in before] == [key["id"]]:
        print(
            "It was the last one. Unless the settings name keys or trusted networks, whoever is on the service's machine may do "
            f"everything again without a key, and nobody else anything. `{program()} keys create NAME` makes one.",
            file=sys.stderr,
        )


def _book(config: Path | None, url: str | None, redis_url: str | None, data_dir: Path | None) -> KeyBook:
    service = named_service(config, url, redis_url=redis_url, data_dir=data_dir)
    if service is not None:
        return service
    options.apply(redis_url=redis_url, data_dir=data_dir)
    from ops.cli.key_book import InRedis

    return InRedis()


def _no_admin(scopes: list[str]) -> str:
    if "admin" in scopes:
        return ""
    return (
        f" This one lets them change nothing: `{program()} keys create NAME --scope admin` on the service's machine makes one "
        "that does."
    )


def _limits(requests: int | None, tokens: int | None, jobs: int | None) -> dict[str, int]:
    given = {"requests": requests, "tokens": tokens, "jobs": jobs}
    return {name: limit for name, limit in given.items() if limit is not None}


def _allowed(key: dict[str, Any]) -> str:
    words = _in_words(key["limits"]).strip()
    return f" At most {words}." if words else ""


def _in_words(limits: dict[str, Any] | None) -> str:
    if limits is None:
        return ""
    words = (("requests", "requests/min"), ("tokens", "tokens/min"), ("jobs", "at once"))
    return "  " + ", ".join(f"{limits[name]} {what}" for name, what in words if limits[name] is not None)
