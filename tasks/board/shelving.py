"""Models made from others, and models taken off the shelf: which files come, which go, and which must not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Final

from npu.catalog import Catalog, find_models
from npu.chat_template import ChatTemplate
from npu.errors import ModelRefused, TemplateFailed
from npu.manifest import FILE_NAME, read_manifest
from npu.model import RESERVED, Model, is_model_id
from npu.whole_file import put_folder_in_place, sync, write_whole
from tasks.board.staging import stage
from tasks.commands import CommandCode, Create
from tasks.errors import CommandFailed

TEMPLATE: Final = "chat_template.jinja"

_WORD = r"[a-z0-9][a-z0-9._-]*"
_NAME = re.compile(rf"(?:{_WORD}/)*{_WORD}(?::{_WORD})?")
_SHARD = re.compile(r"-00001-of-(\d{5})$")


def remove(models_dir: Path, name: str) -> Model:
    """Remove the files of a model, which is returned; also of one that cannot be used. Raises `CommandFailed` and `OSError`.

    A model with a manifest is its folder; a bare file is that file, with its further parts.
    """
    catalog = find_models(models_dir)
    model = _unusable(name, catalog) or _present(name, catalog)
    made = [other.id for other in catalog.models if other.base == model.id]
    if made:
        raise CommandFailed(
            CommandCode.MODEL_IN_USE, f"'{model.id}' is what {', '.join(made)} is made from. Remove that first."
        )
    home = model.manifest.parent if model.manifest is not None else None
    if home is None or home == models_dir:
        for file in [*([] if model.base else _weights(model)), *([model.manifest] if model.manifest else [])]:
            file.unlink(missing_ok=True)
        sync(model.folder)
        return model
    inside = [other.id for other in catalog.models if other.id != model.id and _home(other).is_relative_to(home)]
    if inside:
        raise CommandFailed(
            CommandCode.MODEL_IN_USE,
            f"The folder of '{model.id}' has other models in it: {', '.join(inside)}. Remove those first.",
        )
    # Renamed first: a folder that is being removed would still be read as a model, and be half of one.
    with stage(models_dir, model.id) as gone:
        home.rename(gone)
        sync(home.parent)
        shutil.rmtree(gone)
    return model


def copy(models_dir: Path, name: str, to: str) -> Model:
    """A model like another, under another name. Raises `CommandFailed` and `OSError`."""
    return create(models_dir, Create(model=to, base=name))


def create(models_dir: Path, wanted: Create) -> Model:
    """Make a model out of one that is there: a manifest that names it as its base. Raises `CommandFailed` and `OSError`."""
    model_id, names = named(wanted.model)
    catalog = find_models(models_dir)
    base = _present(wanted.base, catalog)
    folder = models_dir / model_id
    for name in (model_id, *names):
        owner = catalog.named(name)
        if owner is not None and not (owner.base and owner.id == model_id and owner.manifest == folder / FILE_NAME):
            raise taken(wanted.model, f"'{owner.id}' has it")
    if folder.exists() and catalog.named(model_id) is None:
        raise taken(wanted.model, f"the folder {folder} has something else in it")
    if base.id == model_id or _comes_from(base, model_id, catalog):
        raise CommandFailed(
            CommandCode.NOT_POSSIBLE, f"'{wanted.model}' cannot be made from itself. Give it another name."
        )
    with stage(models_dir, model_id) as draft:
        try:
            write_template(draft, wanted)
            keys = {"id": model_id, "names": list(names), "base": base.id}
            write_whole(draft / FILE_NAME, manifest_text(keys, wanted).encode())
            made = read_manifest(draft / FILE_NAME, catalog.named)
        except (ModelRefused, TemplateFailed, UnicodeEncodeError) as error:
            raise CommandFailed(CommandCode.NOT_POSSIBLE, f"'{wanted.model}' cannot be made so: {error}") from error
        put_folder_in_place(draft, folder)
    return made


def _present(name: str, catalog: Catalog) -> Model:
    model = catalog.named(name.removesuffix(":latest")) or catalog.named(name)
    if model is None:
        known = ", ".join(each.id for each in catalog.models[:20]) or "none"
        raise CommandFailed(CommandCode.MODEL_MISSING, f"This board has no model '{name[:100]}'. It has {known}.")
    return model


def _unusable(name: str, catalog: Catalog) -> Model | None:
    """What has such a name and is no model, as far as it has to be known to be removed."""
    found = catalog.unusable_named(name) if catalog.named(name.removesuffix(":latest")) is None else None
    if found is None:
        return None
    model_id, place = found
    if place.name == FILE_NAME:
        return Model(model_id, "", place.parent, manifest=place)
    return Model(model_id, "", place.parent, path=place, size_bytes=place.lstat().st_size)


def named(name: str) -> tuple[str, tuple[str, ...]]:
    """The id and the further names of a model that is to be called so. Raises `CommandFailed`."""
    bare = name.strip().lower().removesuffix(":latest")
    model_id = re.sub(r"[:/]", "-", bare)
    if _NAME.fullmatch(bare) is None or not is_model_id(model_id):
        raise CommandFailed(
            CommandCode.NAME_REFUSED,
            f"'{name[:100]}' cannot name a model: it has letters, digits, `.`, `_`, `-`, and a colon before a tag, at most 100.",
        )
    if model_id in RESERVED:
        raise CommandFailed(
            CommandCode.NAME_REFUSED, f"No model can be called '{model_id}', for the API has something else there."
        )
    return model_id, (bare,) if bare != model_id else ()


def taken(name: str, why: str) -> CommandFailed:
    """The refusal of a name that something else has."""
    return CommandFailed(
        CommandCode.NAME_REFUSED, f"The name '{name}' is taken: {why}. Choose another, or delete that first."
    )


def _comes_from(model: Model, base: str, catalog: Catalog) -> bool:
    seen: set[str] = set()
    while model.base and model.base not in seen:
        if model.base == base:
            return True
        seen.add(model.base)
        found = catalog.named(model.base)
        if found is None:
            return False
        model = found
    return False


def manifest_text(keys: dict[str, Any], wanted: Create) -> str:
    """A manifest with these keys, and with what is asked of the model."""
    given = {
        "system": wanted.system,
        "stop": list(wanted.stop) if wanted.stop is not None else None,
        "context_length": wanted.context_length,
        "adapter": wanted.adapter,
        "chat_template": TEMPLATE if wanted.template is not None else None,
    }
    keys = keys | {key: value for key, value in given.items() if value is not None}
    tables = {key: value for key, value in (keys | {"sampling": wanted.sampling}).items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in keys.items() if key not in tables]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # The strings of JSON are strings of TOML, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def write_template(draft: Path, wanted: Create) -> None:
    """Put the model's own template beside its manifest, where it has one. Raises `TemplateFailed` and `OSError`."""
    if wanted.template is not None:
        ChatTemplate(wanted.template).check()
        write_whole(draft / TEMPLATE, wanted.template.encode())


def _home(model: Model) -> Path:
    return model.manifest.parent if model.manifest is not None else model.folder


def _weights(model: Model) -> list[Path]:
    if model.path is None:
        return []
    shard = _SHARD.search(model.path.stem)
    if shard is None:
        return [model.path]
    return sorted(model.folder.glob(f"{model.path.stem[: shard.start()]}-*-of-{shard[1]}{model.path.suffix}"))
