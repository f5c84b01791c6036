"""`rockchipllama backup` and `restore`: what the embedded queue keeps, as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ops.cli import options
from ops.program import given, program


def backup(
    file: Annotated[Path, typer.Argument(help="The archive to write, such as rockchipllama.tar.gz.")],
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Write jobs, API keys, files of batches and the settings' file into one archive. The service may run meanwhile."""
    options.apply(config, data_dir=data_dir)
    from ops import backup as archives
    from ops.configuration import load
    from tasks.settings import TaskSettings, config_file

    archives.backup(load(TaskSettings).data_dir, config_file(), file)
    print(f"Written: {file}. It may hold prompts and answers, so keep it as you keep those.")


def restore(
    file: Annotated[Path, typer.Argument(help="The archive that `backup` wrote.")],
    data_dir: options.DataDir = None,
    config: options.Config = None,
) -> None:
    """Bring jobs and API keys back into a data directory without any; the service must not run there."""
    options.apply(config, data_dir=data_dir)
    from ops import backup as archives
    from ops.configuration import load
    from tasks.settings import TaskSettings

    folder = load(TaskSettings).data_dir
    for sentence in archives.restore(file, folder):
        print(sentence)
    again = f"{program()} up{given(data_dir=data_dir, config=config)}"
    print(f"Restored into {folder}. `{again}` goes on with what was waiting and running then.")
