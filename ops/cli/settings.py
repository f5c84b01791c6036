"""`rockchipllama settings`: every setting, its value, and where that came from; and those of a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ops.cli import options

app = typer.Typer(help="Show every setting; or show and change those of a running service.")


@app.callback(invoke_without_command=True)
def settings(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    host: options.Host = None,
    port: options.Port = None,
    redis_url: options.RedisUrl = None,
    models_dir: options.ModelsDir = None,
    data_dir: options.DataDir = None,
    default_model: options.DefaultModel = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
    config: options.Config = None,
) -> None:
    """Show every setting with its value (secrets masked) and where it came from. The commands `live`, `set` and `unset` are
    about what can be changed while the service runs, and need a key with the scope admin."""
    if context.invoked_subcommand is not None:
        options.hand_on(context)
        return
    options.apply(
        config,
        host=host,
        port=port,
        redis_url=redis_url,
        models_dir=models_dir,
        data_dir=data_dir,
        default_model=default_model,
        log_level=log_level,
        log_format=log_format,
    )
    import json
    import sys

    from ops import configuration

    settled = configuration.settle()
    for sentence in configuration.unknown():
        print(f"warning: {sentence}", file=sys.stderr)
    if as_json:
        rows = {
            item.setting.name: {"value": item.value, "source": item.source, "variable": item.setting.variable}
            for item in settled
        }
        print(json.dumps(rows, indent=2, default=str))
        return
    name_width = max(len(item.setting.name) for item in settled)
    shown = {item.setting.name: _shown(item.value) for item in settled}
    value_width = min(48, max(len(value) for value in shown.values()))
    owner = None
    for item in settled:
        if item.setting.owner is not owner:
            owner = item.setting.owner
            print(f"\n{owner.title or owner.__name__}" if item is not settled[0] else owner.title)
        name = item.setting.name
        print(f"  {name:<{name_width}}  {shown[name]:<{value_width}}  {item.source}")


@app.command("live")
def show_live(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Show what can be changed while the service runs, and who changed it."""
    from ops.cli.service_address import service_of

    _print_live(service_of(config, url).settings(), as_json)


@app.command("set", context_settings={"ignore_unknown_options": True})  # a value may be below zero
def set_live(
    name: Annotated[str, typer.Argument(help="The setting, as `settings live` names it.")],
    value: Annotated[str, typer.Argument(help="Its value from now on, in every process of the service.")],
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Change a setting of the running service. It outlasts restarts, until it is unset."""
    import json

    try:
        given = json.loads(value, parse_constant=_no_number)
    except ValueError:
        given = value
    _change(name, given, url, config)


@app.command("unset")
def unset_live(
    name: Annotated[str, typer.Argument(help="The setting, as `settings live` names it.")],
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Take a change back: each process goes by what it was started with."""
    _change(name, None, url, config)


def _no_number(word: str) -> None:
    """Python takes NaN for JSON, which nobody else does."""
    raise ValueError(word)


def _change(name: str, value: object, url: str | None, config: Path | None) -> None:
    from ops.cli.service_address import service_of

    shown = service_of(config, url).change_settings({name: value})
    _print_live([item for item in shown if item["name"] == name], as_json=False)


def _print_live(shown: list[dict[str, Any]], as_json: bool) -> None:
    import json
    import time

    from ops.fold import fold

    if as_json:
        print(json.dumps(shown, indent=2))
        return
    name_width = max(len(item["name"]) for item in shown)
    values = [_shown(item["value"], item.get("unit")) for item in shown]
    value_width = max(map(len, values))
    for item, value in zip(shown, values, strict=True):
        source = ""
        if item["changed_by"] is not None:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(item["changed_at"]))
            source = f"  by {item['changed_by']}, {when}; was {_shown(item['own'], item.get('unit'))}"
        print(fold(f"{item['name']:<{name_width}}  {value:<{value_width}}{source}".rstrip(), name_width + 2))


def _shown(value: object, unit: str | None = None) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if unit is not None and value is not None:
        return f"{value} {unit}"
    if value in (None, ""):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()  # as it is written
    if isinstance(value, (tuple, list, set, frozenset)):
        return ",".join(str(part) for part in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} → {name}" for key, name in value.items()) or "-"
    return str(value)
