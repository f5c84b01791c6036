"""The files that make up a model, chosen for one machine, and where each comes from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from npu.errors import ModelRefused
from npu.file_name import as_text, is_text
from npu.manifest import FILE_NAME, read_manifest
from npu.model import RESERVED, is_model_id
from npu.model_name import SUFFIXES, is_weights, parse_model_name
from tasks.board.pull.asked import Address, Asked, Name, Place, Repository
from tasks.board.pull.beside import (
    BESIDE,
    LICENCES,
    MOST_BESIDE,
    PlannedFile,
    beside_weights,
    licence,
    planned,
    tokenizer,
)
from tasks.board.pull.errors import PullFailed
from tasks.board.pull.hub import Hub, HubFile, Listing
from tasks.board.pull.index import IndexFile, IndexModel
from tasks.board.pull.machine import Machine
from tasks.board.pull.weights import (
    OVERHEAD,
    SHARD,
    Candidate,
    among,
    because,
    candidates,
    is_model,
    megabytes,
    preference,
    shown,
    stem,
)
from tasks.commands import CommandCode

_PARAMETERS = re.compile(r"(\d+(?:\.\d+)?)([bm])")
_BITS = re.compile(r"(?:w|I?Q)(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to fetch, and the model it will be."""

    id: str
    files: tuple[PlannedFile, ...]
    """The weights first."""
    why: str
    """A sentence: what was chosen, and why."""
    source: Mapping[str, str]
    """Where it comes from, for the record."""
    manifest: Mapping[str, str | int | Sequence[str]] | None = None
    """What its manifest says; None when the files bring one."""
    remarks: tuple[str, ...] = ()
    """Comments at the manifest's head."""


def make_plan(asked: Asked, machine: Machine, hub: Hub, index: Mapping[str, IndexModel]) -> Plan:
    """Choose the files. Asks the hub where they lie there. Raises `PullFailed`."""
    plan = _choose(asked, machine, hub, index)
    if plan.id in RESERVED:
        raise PullFailed(
            CommandCode.NAME_REFUSED,
            f"It would be called '{plan.id}', and the API has something else there. Put its file into a folder of its own in "
            'the models folder, with a `manifest.toml` that says `id = "…"`.',
        )
    return plan


def _choose(asked: Asked, machine: Machine, hub: Hub, index: Mapping[str, IndexModel]) -> Plan:
    match asked:
        case Name(name):
            return _from_index(_named(name, index), machine, hub)
        case Repository():
            return _from_repository(asked, machine, hub)
        case Address(url):
            return _from_address(url, machine)
        case Place(path):
            return _from_place(path, machine)


def _named(name: str, index: Mapping[str, IndexModel]) -> IndexModel:
    if name in index:
        return index[name]
    family = name.removesuffix(":latest")
    sizes = [known for known in index if known.partition(":")[0] == family]
    if len(sizes) == 1:
        return index[sizes[0]]
    if sizes:
        raise PullFailed(
            CommandCode.SOURCE_MISSING, f"'{family}' comes in several sizes. Name one: {', '.join(sizes)}."
        )
    near = difflib.get_close_matches(name, index, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise PullFailed(
        CommandCode.SOURCE_MISSING,
        f"There is no model '{name}' in the index.{hint} It has {', '.join(index)}. Any other model is pulled by its repository "
        "of Hugging Face, OWNER/NAME.",
    )


def _from_index(model: IndexModel, machine: Machine, hub: Hub) -> Plan:
    chosen, passed = first_fitting(model, machine)
    listing = hub.listing(chosen.repository, chosen.revision)
    found = listing.file(chosen.file)
    if found is None:
        raise PullFailed(
            CommandCode.SOURCE_MISSING,
            f"{hub.endpoint}/{chosen.repository} has no file {chosen.file} any more. Please tell us, and pull another file "
            f"of it meanwhile: `rockchipllama models pull {chosen.repository}`.",
        )
    if chosen.digest and found.sha256 and chosen.digest != found.sha256:
        raise PullFailed(
            CommandCode.DAMAGED,
            f"{hub.endpoint}/{chosen.repository} has another file {chosen.file} than the index knows (its SHA-256 is "
            f"{found.sha256}, not {chosen.digest}), so it is not fetched. To take it all the same, pull the repository.",
        )
    weights = HubFile(found.path, found.size or chosen.size, chosen.digest or found.sha256)
    id = model.name.replace(":", "-")
    beside, notes = beside_weights(hub, chosen, listing)
    manifest = {
        **manifest_of(id, chosen.engine, chosen.file, (model.name, *parse_model_name(stem(chosen.file)).tags)),
        **({"context_length": chosen.context} if chosen.context else {}),
        **({"soc": chosen.soc} if chosen.soc else {}),
        "quantization": chosen.dtype.upper(),
        **({"notes": notes} if notes else {}),
    }
    reason = because(chosen.engine, machine) + (f"; {'; '.join(passed)}" if passed else "")
    why = f"{model.name} is {shown(weights)} from {chosen.repository}, {reason}. Licence: {model.licence}."
    return Plan(
        id=id,
        files=(planned(hub, listing, weights), *beside),
        why=why,
        source={"repository": chosen.repository, "commit": listing.commit, "file": chosen.file},
        manifest=manifest,
        remarks=(
            f"{model.name}: {chosen.file} of {chosen.repository} at {listing.commit}.",
            f"Licence: {model.licence}.",
        ),
    )


def memory_of(model: IndexModel, file: IndexFile) -> int | None:
    """Bytes that a file of the index takes once loaded, at least; None when nobody knows."""
    if file.memory_mb is not None:
        return file.memory_mb << 20
    if file.size is not None:
        return file.size + OVERHEAD
    # Each weight takes the bits that its kind names, and some take more.
    parameters = _PARAMETERS.fullmatch(model.name.partition(":")[2])
    bits = _BITS.match(file.dtype)
    if parameters is None or bits is None:
        return None
    return int(float(parameters[1]) * (1e9 if parameters[2] == "b" else 1e6) * int(bits[1]) / 8) + OVERHEAD


def first_fitting(model: IndexModel, machine: Machine) -> tuple[IndexFile, list[str]]:
    """The first file that can run here, and why those before it cannot. Raises `PullFailed` when none can."""
    passed: list[str] = []
    for file in model.file:
        refusal = machine.refuses(soc=file.soc, toolkit=file.toolkit, dtype=file.dtype, memory=memory_of(model, file))
        if refusal is None:
            return file, passed
        passed.append(f"{file.file} {refusal}")
    raise PullFailed(
        CommandCode.DOES_NOT_FIT, f"{model.name} cannot run here: {'; '.join(passed)}. Choose a smaller model perhaps."
    )


def _from_repository(asked: Repository, machine: Machine, hub: Hub) -> Plan:
    listing = hub.listing(asked.repository, asked.revision)
    there = list(candidates(listing))
    wanted = [each for each in there if _is_wanted(each, asked)]
    if not wanted:
        what = asked.file or (f"in {asked.quantization}" if asked.quantization else ".gguf or .rkllm")
        has = ", ".join(sorted({each.dtype or each.name for each in there}))
        raise PullFailed(
            CommandCode.SOURCE_MISSING,
            f"{hub.endpoint}/{asked.repository} has no file {what}."
            + (f" It has {has}." if there else " Pull a repository with converted weights."),
        )
    refusals = {each: each.refusal(machine) for each in wanted}
    fitting = sorted((each for each in wanted if refusals[each] is None), key=preference)
    if not fitting:
        told = "; ".join(f"{each.name} {why}" for each, why in list(refusals.items())[:3])
        raise PullFailed(CommandCode.DOES_NOT_FIT, f"Nothing of {asked.repository} can run here: {told}.")
    chosen = fitting[0]
    beside, notes = tokenizer(hub, listing) if chosen.engine == "rkllm" else ([], [])
    beside += licence(hub, listing)
    parsed = parse_model_name(stem(chosen.name))
    quantized = (f":{chosen.dtype}",) if chosen.dtype else ()
    names = [
        *parsed.tags,
        *(f"{head}{asked.repository}{tail}" for head in ("", "hf.co/") for tail in ("", *quantized)),
    ]
    why = because(chosen.engine, machine) if len(wanted) == 1 else among(chosen, wanted, machine)
    size = sum(file.size or 0 for file in chosen.files)
    return Plan(
        id=parsed.id,
        files=(*(planned(hub, listing, file) for file in chosen.files), *beside),
        why=f"{chosen.name}{megabytes(size)} of {asked.repository}, {why}."
        + (f" Licence: {listing.licence}." if listing.licence else ""),
        source={"repository": asked.repository, "commit": listing.commit, "file": chosen.files[0].path},
        manifest={
            **manifest_of(parsed.id, chosen.engine, chosen.name, names),
            **({"notes": notes} if notes else {}),
        },
        remarks=(
            f"{chosen.name} of {asked.repository} at {listing.commit}.",
            *((f"Licence: {listing.licence}.",) if listing.licence else ()),
        ),
    )


def _is_wanted(candidate: Candidate, asked: Repository) -> bool:
    if asked.file is not None:
        return asked.file in (candidate.files[0].path, candidate.name)
    quantization = (asked.quantization or "latest").lower()
    return quantization in ("latest", candidate.dtype.lower())


def _from_address(url: str, machine: Machine) -> Plan:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if PurePosixPath(name).suffix.lower() not in SUFFIXES or not is_model(name):
        raise PullFailed(
            CommandCode.SOURCE_MISSING,
            f"{_without_query(url)} does not end in the name of a .gguf or .rkllm file, so it is not fetched.",
        )
    listing = Listing("", "", (HubFile(name, None, None),))
    chosen = next(iter(candidates(listing)), None)
    if chosen is None:
        raise PullFailed(
            CommandCode.SOURCE_MISSING, f"{name} is a part of a model in several files; pull the repository it lies in."
        )
    _check(chosen, machine)
    parsed = parse_model_name(stem(name))
    return Plan(
        id=parsed.id,
        files=(PlannedFile(name, url),),
        why=f"{name} from {urlsplit(url).hostname}, {because(chosen.engine, machine)}.",
        source={"url": _without_query(url), "file": name},
        manifest=manifest_of(parsed.id, chosen.engine, name, parsed.tags),
        remarks=(f"From {_without_query(url)}.",),
    )


def _from_place(path: Path, machine: Machine) -> Plan:
    try:
        weights, beside = _look(path)
    except OSError as error:
        raise PullFailed(CommandCode.SOURCE_MISSING, f"{path} cannot be read: {error.strerror or error}.") from error
    chosen = next(iter(candidates(Listing("", "", (HubFile(weights.name, weights.stat().st_size, None),)))), None)
    if chosen is None:
        raise PullFailed(CommandCode.SOURCE_MISSING, f"{weights} has a name that no model's file has. Rename it.")
    _check(chosen, machine)
    parsed = parse_model_name(stem(weights.name))
    own = any(file.name == FILE_NAME for file in beside)
    name = parse_model_name(path.name).id if own and path.is_dir() else parsed.id
    assert is_model_id(name)
    return Plan(
        id=name,
        files=tuple(PlannedFile(file.name, file, file.stat().st_size) for file in (weights, *beside)),
        why=f"{weights.name}{megabytes(weights.stat().st_size)} is copied from {weights.parent}.",
        source={"path": str(weights), "file": weights.name},
        manifest=None if own else manifest_of(name, chosen.engine, weights.name, parsed.tags),
        remarks=(f"Copied from {weights}.",),
    )


def _look(path: Path) -> tuple[Path, list[Path]]:
    """The weights at `path`, and the files of the same folder that belong to them. Raises `OSError`, `PullFailed`."""
    _check_text(path)
    if not path.is_dir():
        if not is_weights(path):
            path.stat()  # the system's own words when there is none
            raise PullFailed(CommandCode.SOURCE_MISSING, f"{path} is no .gguf or .rkllm file.")
        shard = SHARD.search(path.stem)
        return path, sorted(path.parent.glob(f"{path.stem[: shard.start()]}-*{path.suffix}"))[1:] if shard else []
    inside = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    weights = [entry for entry in inside if is_weights(entry)]
    manifest = path / FILE_NAME
    for entry in inside:
        if manifest in inside or entry.suffix.lower() in SUFFIXES:
            _check_text(entry)
    if manifest in inside:
        try:
            named = read_manifest(manifest).path
        except ModelRefused as refused:
            raise PullFailed(CommandCode.DAMAGED, str(refused)) from refused
        weights = [entry for entry in weights if entry == named]
    if not weights:
        raise PullFailed(
            CommandCode.SOURCE_MISSING,
            f"The folder {path.absolute()} has no .gguf or .rkllm file in it. Name the one that has, or the file.",
        )
    if len(weights) > 1:
        names = ", ".join(entry.name for entry in weights[:5]) + (", …" if weights[5:] else "")
        raise PullFailed(
            CommandCode.SOURCE_MISSING,
            f"The folder {path.absolute()} has several models in it: {names}. Name one file: {path / weights[0].name}",
        )
    if manifest in inside:
        return weights[0], [entry for entry in inside if entry != weights[0]]
    return weights[0], [
        entry for entry in inside if entry.name in (*BESIDE, *LICENCES) and entry.stat().st_size <= MOST_BESIDE
    ]


def _check_text(path: Path) -> None:
    if not is_text(str(path)):
        raise PullFailed(
            CommandCode.SOURCE_MISSING,
            f"{as_text(str(path))} has a name that is not UTF-8, so it is not copied. Rename it.",
        )


def _check(chosen: Candidate, machine: Machine) -> None:
    refusal = chosen.refusal(machine)
    if refusal is not None:
        raise PullFailed(CommandCode.DOES_NOT_FIT, f"{chosen.name} {refusal}.")


def manifest_of(id: str, engine: str, file: str, names: Sequence[str]) -> dict[str, str | int | Sequence[str]]:
    """What the manifest of pulled weights says in any case."""
    name = PurePosixPath(file).name
    return {"id": id, "names": [each for each in dict.fromkeys(names) if each != id], "engine": engine, "file": name}


def _without_query(url: str) -> str:
    """An address fit to be shown and kept: passwords and signatures stand in front of the host or behind the path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
