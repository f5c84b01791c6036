"""`rockchipllama models …`: the models on this machine's disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.cli import completion, options
from ops.cli.service_address import service_of
from ops.program import as_typed

if TYPE_CHECKING:
    from tasks.board.pull.neighbours import Neighbours

app = typer.Typer(
    help="Look after the models on this machine's disk, and those of a running service.", no_args_is_help=True
)

Url = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Where the service is that is to do it.", show_default=False),
]


@app.command("fetch-demo")
def fetch_demo(
    models_dir: options.ModelsDir = None,
    if_none: bool = typer.Option(False, "--if-none", help="Only when there is no model yet, besides echo."),
    config: options.Config = None,
) -> None:
    """Download the demo model, SmolLM2-135M-Instruct (Apache-2.0, 93 MB). Goes on where a broken download ended."""
    options.apply(config, models_dir=models_dir)
    from ops import demo_model
    from ops.configuration import load
    from tasks.settings import TaskSettings

    demo_model.fetch(load(TaskSettings).models_dir, if_none=if_none)


@app.command()
def pull(
    model: Annotated[
        str,
        typer.Argument(
            help="A name such as qwen3:0.6b, a repository of Hugging Face (OWNER/NAME, with :QUANTIZATION or /FILE behind it), "
            "an address, a file, or a folder with one. With --url or --board, a name or a repository."
        ),
    ],
    soc: Annotated[
        str | None,
        typer.Option(metavar="CHIP", help="Fetch for this chip, such as rk3588, instead of this machine's own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each step instead of text.")] = False,
    board: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Have this board of the service fetch it.", autocompletion=completion.boards),
    ] = None,
    url: Url = None,
    models_dir: options.ModelsDir = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Fetch a model into the models folder, from another board of the service where one has it; a running board finds it there.
    Goes on where a broken pull ended. With --url or --board, a board of that service fetches it, also when this command ends."""
    if url is not None or board is not None:
        from ops.pull_progress import show, steps_of

        options.refuse_beside("--url or --board", soc=soc, models_dir=models_dir, data_dir=data_dir)
        show(steps_of(model, service_of(config, url).pull(model, board)), as_json=as_json)
        return
    options.apply(config, models_dir=models_dir, data_dir=data_dir)
    from ops.configuration import load
    from ops.pull_progress import show
    from tasks.board.pull.fetch import pull as steps
    from tasks.board.pull.shelf import shelf_of
    from tasks.board.settings import BoardSettings
    from tasks.jobs import new_job_id
    from tasks.settings import TaskSettings

    _check_soc(soc)
    shelf = shelf_of(load(TaskSettings), load(BoardSettings), soc, neighbours=_neighbours())
    show(steps(model, shelf, pull_id=new_job_id(), local=True), as_json=as_json)


def _check_soc(name: str | None) -> None:
    from npu.hardware import soc_named

    if name is not None:
        try:
            soc_named(name)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--soc") from error


def _neighbours() -> Neighbours | None:
    """The other boards of the service that runs here, or that this machine has joined; None where there is none."""
    from ops.cli import queue_of_service
    from ops.configuration import load
    from tasks.board.pull.neighbours import Neighbours
    from tasks.connection import UNREACHABLE, connect
    from tasks.settings import TaskSettings

    url = queue_of_service.url()
    client = connect(url, timeout=2.0, retries=0)
    try:
        client.ping()
    except UNREACHABLE:
        return None
    return Neighbours(connect(url), load(TaskSettings).board_name, url)


@app.command()
def recommend(
    soc: Annotated[
        str | None, typer.Option(metavar="CHIP", help="For this chip, such as rk3588, instead of this machine's own.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.1, metavar="GIB", help="The board's memory, instead of this machine's.")
    ] = None,
    as_json: options.AsJson = False,
    models_dir: options.ModelsDir = None,
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """List the models that `models pull` knows by name and this board can run: what each takes, and how fast it was measured."""
    options.apply(config, models_dir=models_dir, data_dir=data_dir)
    import json
    from dataclasses import asdict, replace

    from ops.configuration import load
    from ops.recommend import advise, table
    from tasks.board.pull.index import read_index
    from tasks.board.pull.machine import read_machine
    from tasks.prompting.setup import model_memory, setup_of
    from tasks.settings import TaskSettings

    _check_soc(soc)
    settings = load(TaskSettings)
    machine = read_machine(setup_of(settings), soc)
    if memory is not None:
        machine = replace(machine, memory=model_memory(int(memory * 2**30), settings))
    found = advise(machine, read_index())
    print(json.dumps([asdict(each) for each in found], indent=2) if as_json else table(machine, found))


@app.command("list")
def list_models(
    as_json: options.AsJson = False,
    models_dir: options.ModelsDir = None,
    config: options.Config = None,
) -> None:
    """List the models in the models folder, and what is wrong with those that cannot be used."""
    options.apply(config, models_dir=models_dir)
    import json
    import sys

    from npu.catalog import find_models
    from npu.engines import describe
    from npu.errors import ModelRefused, RuntimeNotFound
    from ops.configuration import load
    from tasks.board.pull.record import read_record
    from tasks.prompting.setup import setup_of
    from tasks.settings import TaskSettings

    settings = load(TaskSettings)
    catalog, setup = find_models(_there(settings.models_dir)), setup_of(settings)
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    for model in catalog.models:
        problem = ""
        try:
            describe(model, setup)
        except RuntimeNotFound:
            pass  # the file may be right, and `doctor` tells of the runtime
        except ModelRefused as error:
            problem = str(error)
            wrong.append(problem)
        record = read_record(model.folder) if not model.base else None
        rows.append(
            {
                "id": model.id,
                "names": list(model.names),
                "engine": model.engine,
                "soc": model.soc,
                "quantization": model.quantization,
                "bytes": model.size_bytes if not model.base else 0,  # its base has them
                "path": str(model.path or model.folder),
                "base": model.base or None,
                "source": record.source if record is not None else None,
                "problem": problem or None,
            }
        )
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        from ops.fold import fold

        width = max((len(model.id) for model in catalog.models), default=0)
        for model, row in zip(catalog.models, rows, strict=True):
            runs_in = "unusable" if row["problem"] else model.engine
            size = f"{model.size_bytes / 1e6:,.0f} MB" if model.size_bytes and not model.base else ""
            about = [f"made from {model.base}"] if model.base else []
            line = f"{model.id:<{width}}  {runs_in:<8}  {size:>10}  {', '.join([*about, *model.names])}"
            print(fold(line.rstrip(), width + 24))
    for sentence in (*catalog.problems, *catalog.clashes, *dict.fromkeys(wrong)):
        print(as_typed(sentence), file=sys.stderr)


def _there(folder: Path) -> Path:
    """The models folder. Raises `CommandFailed` where there is none: it is not one without models."""
    from tasks.errors import CommandFailed

    if not folder.is_dir():
        raise CommandFailed("disk", f"The models folder {folder} is not there. --models-dir names another.")
    return folder


@app.command()
def du(
    as_json: options.AsJson = False,
    models_dir: options.ModelsDir = None,
    config: options.Config = None,
) -> None:
    """Show what each model takes of the disk, the largest first, and what is free there."""
    options.apply(config, models_dir=models_dir)
    import json
    import shutil

    from npu.catalog import find_models
    from ops.configuration import load
    from tasks.errors import CommandFailed
    from tasks.settings import TaskSettings

    folder = _there(load(TaskSettings).models_dir)
    # Those that were made from another have its weights.
    taken = {model.id: model.size_bytes or 0 for model in find_models(folder).models if not model.base}
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CommandFailed("disk", f"The models folder {folder} cannot be read: {error.strerror}.") from error
    if as_json:
        print(json.dumps({"models": taken, "bytes": sum(taken.values()), "free": free}, indent=2))
        return
    for name, size in sorted(taken.items(), key=lambda each: -each[1]):
        print(f"{size / 1e6:10,.0f} MB  {name}")
    print(f"{sum(taken.values()) / 1e6:10,.0f} MB  in all; {free / 1e6:,.0f} MB are free")


@app.command()
def prune(
    older: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="Only what was not written to for so long.")
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, say what would be removed.")] = False,
    as_json: options.AsJson = False,
    models_dir: options.ModelsDir = None,
    config: options.Config = None,
) -> None:
    """Remove what broken-off pulls and uploads left in the models folder; a pull could not go on there any more."""
    options.apply(config, models_dir=models_dir)
    import json

    from ops.configuration import load
    from tasks.board.leftovers import leftovers
    from tasks.board.leftovers import prune as prune_folder
    from tasks.errors import CommandFailed
    from tasks.settings import TaskSettings

    folder = _there(load(TaskSettings).models_dir)
    try:
        found = (leftovers if dry_run else prune_folder)(folder, older * 3600)
    except OSError as error:
        raise CommandFailed("disk", f"The models folder {folder} cannot be cleared: {error.strerror}.") from error
    names = {str(each.path.relative_to(folder)): each.size for each in found}
    if as_json:
        print(json.dumps({"removed": {} if dry_run else names, "found": names, "bytes": sum(names.values())}, indent=2))
        return
    for name, size in names.items():
        print(f"{size / 1e6:10,.0f} MB  {name}")
    print(f"{sum(names.values()) / 1e6:10,.0f} MB  {'would be freed' if dry_run else 'freed'}")


@app.command()
def rm(
    model: Annotated[str, typer.Argument(help="Its id, or another of its names.")],
    url: Url = None,
    models_dir: options.ModelsDir = None,
    config: options.Config = None,
) -> None:
    """Remove a model and its files from the models folder; a running board stops serving it within seconds. With --url, from all
    boards of that service."""
    if url is not None:
        options.refuse_beside("--url", models_dir=models_dir)
        service_of(config, url).delete_model(model)
        print(f"Removed {model} from all boards.")
        return
    options.apply(config, models_dir=models_dir)
    from ops.configuration import load
    from tasks.board.shelving import remove
    from tasks.errors import CommandFailed
    from tasks.settings import TaskSettings

    folder = load(TaskSettings).models_dir
    try:
        gone = remove(folder, model)
    except OSError as error:
        raise CommandFailed("disk", f"The files of '{model}' in {folder} cannot be removed: {error}.") from error
    if gone.base:
        print(f"Removed {gone.id}, which was made from {gone.base}.")
        return
    size = f", {gone.size_bytes / 1e6:,.0f} MB" if gone.size_bytes else ""
    print(f"Removed {gone.id} ({gone.path or gone.folder}{size}).")


@app.command()
def simulate(
    soc: Annotated[str, typer.Option(metavar="CHIP", help="The chip it is measured on.")] = "RK3588",
    model: Annotated[str, typer.Option(help="The model, as the vendor's table names it.")] = "Qwen3",
    size: Annotated[str, typer.Option(help="Its size.")] = "0.6B",
    dtype: Annotated[str, typer.Option(help="Its quantization.")] = "w8a8",
    context_length: Annotated[int, typer.Option(min=256, max=16384, help="Tokens its context holds.")] = 4096,
    models_dir: options.ModelsDir = None,
    config: options.Config = None,
) -> None:
    """Write a simulated model for the NPU: it says words in a fixed order, as fast as the vendor measured the real one."""
    options.apply(config, models_dir=models_dir)
    from npu.errors import ModelRefused
    from npu.simulator import SimulatedModel, profile_of, write_model
    from ops.configuration import load
    from tasks.settings import TaskSettings

    name = f"simulated-{model}-{size}-{soc}".lower()
    folder = load(TaskSettings).models_dir / name
    try:
        profile = profile_of(soc, model, size, dtype)
    except ModelRefused as error:
        raise typer.BadParameter(str(error)) from error
    simulated = SimulatedModel(
        name=name, profile=profile, platform=soc.upper(), dtype=dtype.upper(), max_context_limit=context_length
    )
    typer.echo(f"Wrote {write_model(folder, simulated)}. Run it with ROCKCHIPLLAMA_RKLLM_LIBRARY=simulator.")
