"""Finds the models in the models folder: one a manifest, and one a bare weight file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from npu.engines import ENGINES
from npu.errors import ModelRefused
from npu.file_name import as_text, is_text
from npu.manifest import FILE_NAME, has_base, read_manifest
from npu.model import RESERVED, Model
from npu.model_name import SUFFIXES, is_adapter, is_weights, parse_model_name

MAX_DEPTH = 3
"""Folders below the models folder that are looked into."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """What was found, in the order of the ids, and what could not be used."""

    models: tuple[Model, ...]
    clashes: tuple[str, ...] = ()
    """One sentence for each name that two models claim."""
    problems: tuple[str, ...] = ()
    """One sentence for each file that is no usable model."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """What such a file would be called as a model, in lower case, and its sentence."""
    unusable: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The other names of each such model, by its id."""
    places: Mapping[str, Path] = field(default_factory=dict)
    """The manifest or the weights of each such model, by its id."""

    def find(self, name: str) -> Model | None:
        """The model with this id or name, also with one of its adapters behind a colon. Case makes no difference."""
        wanted = name.lower()
        found = self.named(wanted)
        if found is None:
            base, _, adapter = wanted.rpartition(":")
            found = self.named(base)
            if found is not None and adapter not in (its.name for its in found.adapters):
                return None
        return found

    def named(self, name: str) -> Model | None:
        """The model with this id or name itself."""
        wanted = name.lower()
        for model in self.models:
            if model.id == wanted:
                return model
        return next((model for model in self.models if wanted in (other.lower() for other in model.names)), None)

    def unusable_named(self, name: str) -> tuple[str, Path] | None:
        """The id of what would be the model with this name, could it be used, and its manifest or weights."""
        wanted = name.lower()
        found = (id for id, names in self.unusable.items() if wanted == id or wanted in names)
        return next(((id, self.places[id]) for id in found), None)


def find_models(models_dir: Path) -> Catalog:
    """Look through the folder. Whatever is wrong with one model is a sentence in the catalogue and hides no other."""
    problems: list[_Problem] = []
    derived: list[Path] = []
    found = list(_walk(models_dir, 0, problems, derived, frozenset()))
    found += _derive(found, derived, problems)
    problems = [(path, as_text(sentence)) for path, sentence in problems]
    models, clashes = _settle(found)
    return Catalog(
        tuple(sorted(models, key=lambda model: model.id)),
        tuple(map(as_text, clashes)),
        tuple(sentence for _, sentence in problems),
        *_refused(problems),
    )


_Problem = tuple[Path, str]
"""What cannot be used, and why: a sentence."""


def _refused(problems: list[_Problem]) -> tuple[dict[str, str], dict[str, tuple[str, ...]], dict[str, Path]]:
    """Why not, by name, and the names and the places by id. The first of two files keeps a name; the other goes by the next one
    it has."""
    reasons: dict[str, str] = {}
    models: dict[str, tuple[str, ...]] = {}
    places: dict[str, Path] = {}
    for path, sentence in problems:
        names = [name for name in dict.fromkeys(_names_of(path)) if name not in reasons]
        if names:
            reasons |= dict.fromkeys(names, sentence)
            models[names[0]] = tuple(names[1:])
            places[names[0]] = path
    return reasons, models, places


def _names_of(path: Path) -> Iterator[str]:
    """The id comes first."""
    if path.name == FILE_NAME:
        called = path.parent.name
    elif path.suffix.lower() in SUFFIXES and not is_adapter(path):
        called = path.stem
    else:
        return  # nobody would ask for it
    name = parse_model_name(called)
    yield name.id
    if path.name != FILE_NAME and is_text(called):
        yield called.lower()
    yield from map(str.lower, name.tags)


def _derive(found: list[Model], derived: list[Path], problems: list[_Problem]) -> list[Model]:
    """The models that are made from others; these may be made from others in turn."""
    made: list[Model] = []
    left = derived
    while left:
        catalog, waiting, refused = Catalog((*found, *made)), [], []
        for manifest in left:
            try:
                made.append(read_manifest(manifest, catalog.named))
            except (ModelRefused, OSError) as error:
                waiting.append(manifest)
                refused.append((manifest, str(error)))
        if len(waiting) == len(left):
            problems += refused
            break
        left = waiting
    return made


def _walk(
    folder: Path, depth: int, problems: list[_Problem], derived: list[Path], taken: frozenset[Path]
) -> Iterator[Model]:
    """The models in a folder and below. Files in `taken` belong to the manifest of a folder above. What is made from
    another model is put into `derived`."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        why = f"The folder {folder} cannot be read, and no model in it is found: {error.strerror or error}."
        problems.append((folder, why))
        return
    manifest = folder / FILE_NAME
    model: Model | None = None
    if manifest.is_file() and has_base(manifest):
        derived.append(manifest)
    elif manifest.is_file():
        try:
            model = read_manifest(manifest)
            taken = taken | {adapter.path for adapter in model.adapters} | ({model.path} if model.path else set())
            yield model
        except ModelRefused as refused:
            problems.append((manifest, str(refused)))
        except OSError as error:
            problems.append((manifest, f"{manifest} cannot be read: {error.strerror or error}."))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not is_text(entry.name) and (entry.is_dir() or entry.suffix.lower() in SUFFIXES):
            why = "no model in it is found" if entry.is_dir() else "it is left alone"
            problems.append((entry, f"{entry} has a name that is not UTF-8, so {why}. Rename it."))
            continue
        if entry.is_symlink() and not entry.exists():
            why = f"{entry} is a link to something that is not there. Remove it, or put the file back."
            problems.append((entry, why))
        elif entry.is_dir():
            if entry.is_symlink():
                why = f"{entry} is a link to a folder, and those are not followed. Link the weight file instead."
                problems.append((entry, why))
            elif depth < MAX_DEPTH:
                yield from _walk(entry, depth + 1, problems, derived, taken)
        elif entry in taken:
            continue
        elif is_adapter(entry):
            why = (
                f"{entry} is a LoRA adapter, and no model names it. Put it beside the model it was made for, with a "
                f'manifest that says: `[adapters]`, and below it `NAME = "{entry.name}"`.'
            )
            problems.append((entry, why))
        elif is_weights(entry):
            if not manifest.is_file():
                yield from _bare(entry, problems)
            elif model is not None:
                why = f"{entry} lies beside a manifest that does not name it. Give it a folder of its own."
                problems.append((entry, why))


def _bare(path: Path, problems: list[_Problem]) -> Iterator[Model]:
    engine = SUFFIXES[path.suffix.lower()]
    if engine not in ENGINES:
        problems.append((path, f"{path}: no engine here can run {path.suffix} files yet. It is left alone."))
        return
    name = parse_model_name(re.sub(r"-\d{5}-of-\d{5}$", "", path.stem))
    if name.id in RESERVED:
        why = f"{path}: no model can be called '{name.id}', for the API has something else there. Rename the file."
        problems.append((path, why))
        return
    try:
        stat = path.stat()
    except OSError as error:
        problems.append((path, f"{path} cannot be read: {error.strerror or error}."))
        return
    yield Model(
        id=name.id,
        engine=engine,
        folder=path.parent,
        names=tuple(other for other in dict.fromkeys((*name.tags, path.stem)) if other != name.id),
        path=path,
        context_length=name.context_length,
        made_for=name.context_length,
        family=name.family,
        parameters=name.parameters,
        quantization=name.quantization,
        soc=name.soc,
        created=int(stat.st_mtime),
        size_bytes=stat.st_size,
    )


def _settle(found: list[Model]) -> tuple[list[Model], list[str]]:
    """Give every id and name to the first that claims it: ids before names, full names before short ones."""
    clashes: list[str] = []
    owners: dict[str, Model] = {}
    kept: list[Model] = []
    for model in found:
        first = owners.setdefault(model.id, model)
        if first is model:
            kept.append(model)
        else:
            clashes.append(
                f"{_place(model)} and {_place(first)} both claim the id {model.id}; the latter has it. Give the former a "
                f"manifest with another `id`."
            )
    for rank in range(max((len(model.names) for model in kept), default=0)):
        for model in kept:
            for name in model.names[rank : rank + 1]:
                owner = owners.setdefault(name.lower(), model)
                if owner is not model:
                    clashes.append(
                        f"{_place(model)} and {_place(owner)} both claim the name {name}; the latter has it."
                    )
    for model in kept:
        for name in (f"{model.id}:{adapter.name}" for adapter in model.adapters):
            if name in owners:
                clashes.append(
                    f"{_place(owners[name])} has the name {name}, so the adapter of {_place(model)} cannot be asked for by "
                    "it. Give one of them another name."
                )
    return [
        replace(model, names=tuple(name for name in model.names if owners[name.lower()] is model)) for model in kept
    ], clashes


def _place(model: Model) -> Path:
    return model.manifest if model.manifest is not None and model.base else model.path or model.folder / FILE_NAME
