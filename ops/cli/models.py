"""`rockchipllama models …`: the models on this machine's disk."""

from __future__ import annotations

from typing import Annotated

import typer

from ops.cli import options

app = typer.Typer(help="Look after the models on this machine's disk.", no_args_is_help=True)


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
