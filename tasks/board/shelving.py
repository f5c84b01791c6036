"""Models taken off the shelf: which files go, and which must not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from npu.catalog import Catalog, find_models
from npu.manifest import FILE_NAME
from npu.model import Model
from npu.whole_file import sync
from tasks.commands import CommandCode
from tasks.errors import CommandFailed

_SHARD = re.compile(r"-00001-of-(\d{5})$")


def remove(models_dir: Path, name: str) -> Model:
    """Remove the files of a model, which is returned. Raises `CommandFailed` and `OSError`.

    A model with a manifest is its folder; a bare file is that file, with its further parts.
    """
    catalog = find_models(models_dir)
    model = catalog.find(name)
    if model is None:
        raise missing(name, catalog)
    manifest = model.folder / FILE_NAME
    if model.folder == models_dir or not manifest.is_file():
        for file in [*_weights(model), *([manifest] if manifest.is_file() else [])]:
            file.unlink(missing_ok=True)
        sync(model.folder)
        return model
    inside = [other.id for other in catalog.models if other is not model and other.folder.is_relative_to(model.folder)]
    if inside:
        raise CommandFailed(
            CommandCode.MODEL_IN_USE,
            f"The folder of '{model.id}' has other models in it: {', '.join(inside)}. Remove those first.",
        )
    # Renamed first: a folder that is being removed would still be read as a model, and be half of one.
    partial = models_dir / ".partial"
    partial.mkdir(exist_ok=True)
    gone = partial / f"{model.id}.gone"
    shutil.rmtree(gone, ignore_errors=True)
    model.folder.rename(gone)
    sync(model.folder.parent)
    shutil.rmtree(gone)
    return model


def missing(name: str, catalog: Catalog) -> CommandFailed:
    """There is no such model."""
    known = ", ".join(model.id for model in catalog.models[:20]) or "none"
    return CommandFailed(CommandCode.MODEL_MISSING, f"This board has no model '{name[:100]}'. It has {known}.")


def _weights(model: Model) -> list[Path]:
    if model.path is None:
        return []
    shard = _SHARD.search(model.path.stem)
    if shard is None:
        return [model.path]
    return sorted(model.folder.glob(f"{model.path.stem[: shard.start()]}-*-of-{shard[1]}{model.path.suffix}"))
