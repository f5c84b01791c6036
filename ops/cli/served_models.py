"""`rockchipllama models info|load|unload|loaded|available`: the models of a running service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from ops.cli import completion, options
from ops.cli.service_address import service_of

Model = Annotated[str, typer.Argument(help="The model's name.", autocompletion=completion.models)]
UNSAID = {"object", "created", "owned_by", "max_model_len", "meta", "notes", "last_load", "self_test"}
"""Of a model's entry: what says nothing to people, or is said by something else there."""


def info(
    model: Model, as_json: options.AsJson = False, url: options.ServiceUrl = None, config: options.Config = None
) -> None:
    """Show what a running service knows of a model: names, engine, context, what it can do."""
    import json

    found = service_of(config, url).model(model)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from ops.fold import fold

    for line in _lines(found):
        print(fold(line, 18))


def load(
    model: Model,
    board: Annotated[
        str | None, typer.Option(metavar="NAME", help="On this board, not on the one where it suits best.")
    ] = None,
    keep_alive: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long it stays after its last job, such as 30m; -1 is for ever."),
    ] = None,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Have a board of a running service load a model, and wait until it has."""
    done = service_of(config, url).load(model, board, _time(keep_alive))
    print(f"'{done['id']}' is loaded on '{done['board']}'.")


def unload(
    model: Model,
    board: Annotated[str | None, typer.Option(metavar="NAME", help="From this board, not from all.")] = None,
    url: options.ServiceUrl = None,
    config: options.Config = None,
) -> None:
    """Have a running service unload a model; the next request loads it again."""
    done = service_of(config, url).unload(model, board)
    where = ", ".join(f"'{name}'" for name in done["boards"])
    print(f"'{done['id']}' is unloaded from {where}." if where else f"'{done['id']}' is loaded nowhere.")


def loaded(as_json: options.AsJson = False, url: options.ServiceUrl = None, config: options.Config = None) -> None:
    """List the models that the boards of a running service have loaded."""
    import json

    found = service_of(config, url).loaded()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from ops.fold import fold

    for line in map(_resident, found) if found else ["No model is loaded."]:
        print(fold(line, 4))


def available(as_json: options.AsJson = False, url: options.ServiceUrl = None, config: options.Config = None) -> None:
    """List the models that the boards of a running service have: which they could load, and why not the others."""
    import json

    found = service_of(config, url).available()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from ops.fold import fold

    for line in _places(found) if found else ["No board has a model."]:
        print(fold(line, 4))


def _time(typed: str | None) -> float | str | None:
    """Seconds as a number, a duration as it was typed."""
    try:
        return None if typed is None else float(typed)
    except ValueError:
        return typed


def _clock(seconds: float) -> str:
    import time

    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _resident(entry: dict[str, Any]) -> str:
    idle, memory = entry["idle_seconds"], entry["memory_bytes"]
    facts = [
        entry["state"],
        memory and f"{memory >> 20} MiB",
        None if idle is None else f"idle for {idle:.0f} s",
        None if entry["until"] is None else f"until {_clock(entry['until'])}",
        "pinned" if entry["pinned"] else None,
        entry["problem"],
    ]
    return f"{entry['id']} on {entry['board']}: {', '.join(fact for fact in facts if fact)}"


def _places(found: list[dict[str, Any]]) -> Iterator[str]:
    for model in found:
        yield model["id"]
        for place in model["boards"]:
            memory, context = place["memory_bytes"], place["context_length"]
            facts = [
                place["state"],
                place["quantization"],
                context and f"context {context}",
                memory and f"{memory >> 20} MiB",
                place["why"] or ("" if place["beside"] else "others go first"),
            ]
            yield f"  {place['board']}: {', '.join(fact for fact in facts if fact)}"


def _lines(found: dict[str, Any]) -> Iterator[str]:
    """Each fact once: the notes say in words what the last load and the self-test told."""
    facts = {name: value for name, value in (found | found["meta"]).items() if name not in UNSAID}
    refuses = facts.pop("refuses")
    for name, value in facts.items():
        if value not in (None, [], ""):
            yield f"{name:<16}  {_said(value)}"
    for field, why in refuses.items():
        yield f"{'refuses':<16}  {field}: {why}"
    for note in found["meta"]["notes"]:
        yield f"{'note':<16}  {note}"


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
