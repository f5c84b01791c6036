"""`rockchipllama settings`: every setting, its value, and where that came from."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli import options


def settings(
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
    """Show every setting with its value (secrets masked) and where it came from."""
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


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, (tuple, list, set, frozenset)):
        return ",".join(str(part) for part in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} → {name}" for key, name in value.items()) or "-"
    return str(value)
