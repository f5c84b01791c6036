"""A model pulled: room made sure of, files fetched and held to their digests, and the whole put in its place at once.

Everything is gathered in `.partial/ID/` of the models folder, which no catalogue looks into, and stays there when it is
interrupted; the next pull of the same model goes on from it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from npu.catalog import Catalog, find_models
from npu.errors import ModelRefused
from npu.gguf import read_gguf
from npu.manifest import FILE_NAME, read_manifest
from npu.model import Model
from npu.whole_file import put_folder_in_place, sync, write_whole
from tasks.board.pull.asked import Asked, Name, parse
from tasks.board.pull.beside import PlannedFile
from tasks.board.pull.download import (
    Damaged,
    DownloadFailed,
    Forbidden,
    Missing,
    Transfer,
    direct_opener,
    seen,
    transfers,
)
from tasks.board.pull.errors import PullFailed
from tasks.board.pull.index import IndexFault, read_index
from tasks.board.pull.neighbours import names_of
from tasks.board.pull.plan import Plan, make_plan
from tasks.board.pull.record import NOTHING, RECORD, Record, RecordedFile, read_record, write_record
from tasks.board.pull.shelf import Shelf
from tasks.commands import CommandCode, PullProgress, PullStep

PARTIAL: Final = ".partial"
SPARE: Final = 100_000_000
"""Bytes that must stay free on the disk."""
CHUNK: Final = 1 << 20
OFTEN: Final = 0.25
"""Seconds between two words about the same file."""


def pull(text: str, shelf: Shelf, *, pull_id: str, local: bool) -> Iterator[PullProgress]:
    """Pull what `text` asks for. The last word is `done`; whoever stops asking leaves what has arrived for the next pull.

    `local` allows addresses and paths. Raises `PullFailed`, and then there is no model that was not there before.
    """
    number = 0
    try:
        for progress in _Pull(text, shelf, pull_id, local).steps():
            number += 1
            yield msgspec.structs.replace(progress, number=number)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PullFailed(
                CommandCode.NO_SPACE,
                f"The disk of {shelf.models_dir} is full. Make room, and pull again: what has arrived is kept.",
            ) from error
        what = f"{error.filename}: " if error.filename else ""
        raise PullFailed(
            CommandCode.NETWORK, f"A file could not be read or written ({what}{error.strerror or error})."
        ) from error
    except IndexFault as error:
        raise PullFailed(CommandCode.NETWORK, str(error)) from error


class _Pull:
    def __init__(self, text: str, shelf: Shelf, pull_id: str, local: bool) -> None:
        self._text = text
        self._shelf = shelf
        self._pull_id = pull_id
        self._local = local
        self._partial = shelf.models_dir / PARTIAL
        self._tags: dict[str, str] = {}
        """Of the files that were fetched, by their names."""

    def steps(self) -> Iterator[PullProgress]:
        asked = parse(self._text, local=self._local)
        yield self._say(PullStep.CHOOSING)
        machine, index = self._shelf.machine(), read_index(self._shelf.index)
        for board, model in self._neighbours(asked):
            yield self._say(PullStep.CHOOSING, message=f"The board '{board}' has it, and is asked for it.")
            assert self._shelf.neighbours is not None
            try:
                yield from self._carry_out(self._shelf.neighbours.plan(board, model, asked, machine, index))
                return
            except PullFailed as failed:
                yield self._say(PullStep.CHOOSING, message=f"It was not copied from the board '{board}': {failed}")
        try:
            plan = make_plan(asked, machine, self._shelf.hub, index)
        except PullFailed as failed:
            here = self._named_here(asked) if isinstance(asked, Name) else None
            if failed.code != CommandCode.SOURCE_MISSING or here is None or (here.path and _damage(here.path)):
                raise
            # Only this board knows it by that name.
            yield self._already(here.id)
            return
        yield from self._carry_out(plan)

    def _neighbours(self, asked: Asked) -> Iterator[tuple[str, str]]:
        """The boards that have what this one has not, each with the model's id."""
        if self._shelf.neighbours is not None and names_of(asked) and self._named_here(asked) is None:
            yield from self._shelf.neighbours.having(asked)

    def _named_here(self, asked: Asked) -> Model | None:
        here = find_models(self._shelf.models_dir) if self._shelf.models_dir.is_dir() else Catalog(())
        return next((model for name in names_of(asked) if (model := here.named(name)) is not None), None)

    def _carry_out(self, plan: Plan) -> Iterator[PullProgress]:
        yield self._say(PullStep.CHOOSING, message=plan.why)
        self._partial.mkdir(parents=True, exist_ok=True)
        with (self._partial / f"{plan.id}.lock").open("w") as lock:
            while not _taken(lock):
                yield self._say(PullStep.CHOOSING, message=f"Another pull of {plan.id} is under way; waiting for it.")
                self._shelf.wait(1.0)
            there = self._there(plan)
            if there is not None:
                yield self._already(there)
                return
            yield from self._gather(plan)
            yield self._say(PullStep.PLACING, id=plan.id)
            put_folder_in_place(self._partial / plan.id, self._shelf.models_dir / plan.id)
        yield self._say(PullStep.DONE, id=plan.id)

    def _say(self, step: PullStep, **known: object) -> PullProgress:
        return PullProgress(pull=self._pull_id, model=self._text, number=0, step=step, **known)  # type: ignore[arg-type]

    def _already(self, model: str) -> PullProgress:
        return self._say(PullStep.DONE, id=model, message=f"{model} is there already.")

    def _there(self, plan: Plan) -> str | None:
        """The id of the very model, when it is there. Raises `PullFailed` when another has its name or its folder."""
        folder = self._shelf.models_dir / plan.id
        weights = plan.files[0]
        record = read_record(folder)
        if record is not None:
            have = {file.name: file for file in record.files}
            found = [have.get(file.name, NOTHING) for file in plan.files]
            same = (record.source == plan.source or found[0].sha256 == weights.sha256) and all(
                file.sha256 in (None, its.sha256) and file.size in (None, its.size) and (folder / file.name).is_file()
                for file, its in zip(plan.files, found, strict=True)
            )
            return plan.id if same and not self._stale(plan, found) else None
        owner = find_models(self._shelf.models_dir).find(plan.id)
        if owner is None and not folder.exists():
            return None
        if owner is not None and owner.path is not None and owner.path.name == weights.name:
            same = weights.size in (None, owner.size_bytes)
            if same and _damage(owner.path) is None:
                return owner.id
        place = owner.path or owner.folder if owner is not None else folder
        raise PullFailed(
            CommandCode.NAME_REFUSED,
            f"The name {plan.id} is taken by {place}, which no pull put there. Remove or rename that first.",
        )

    def _stale(self, plan: Plan, found: list[RecordedFile]) -> bool:
        """Whether what is there cannot be used, or is another file by now where it came from. Who cannot be asked, or does not
        tell, has the same."""
        for file, its in zip(plan.files, found, strict=True):
            path = self._shelf.models_dir / plan.id / file.name
            if path.stat().st_size != its.size or _damage(path) is not None:
                return True
            if file.size is None and file.sha256 is None and isinstance(file.source, str):
                size, tag = seen(file.source, self._shelf.hub.network) or (None, "")
                if size not in (None, its.size) or (tag and its.tag and tag != its.tag):
                    return True
        return False

    def _gather(self, plan: Plan) -> Iterator[PullProgress]:
        stage = self._partial / plan.id
        stage.mkdir(exist_ok=True)
        names = {name for file in plan.files for name in (file.name, f"{file.name}.etag")}
        for left in stage.iterdir():
            if left.name not in names:  # of a pull of something else
                left.unlink()
        self._check_room(plan, stage)
        digests = {}
        for file in plan.files:
            yield from self._fetch(file, stage / file.name)
            digests[file.name] = yield from self._verify(file, stage / file.name)
            _check_form(stage / file.name)
        if plan.manifest is not None:
            write_whole(stage / FILE_NAME, _manifest(plan).encode())
        files = [
            RecordedFile(name, (stage / name).stat().st_size, sha256, self._tags.get(name, ""))
            for name, sha256 in digests.items()
        ]
        write_record(stage, Record(self._text, dict(plan.source), tuple(files)))
        try:
            read_manifest(stage / FILE_NAME)
        except ModelRefused as refused:
            raise PullFailed(CommandCode.DAMAGED, f"What arrived is no model: {refused}") from refused

    def _check_room(self, plan: Plan, stage: Path) -> None:
        have = sum(entry.stat().st_size for entry in stage.iterdir())
        self._make_sure_of(max(0, sum(file.size or 0 for file in plan.files) - have), plan.id)

    def _make_sure_of(self, size: int, what: str) -> None:
        """That so many bytes find room."""
        needed = size + SPARE
        free = shutil.disk_usage(self._partial).free
        if free < needed:
            raise PullFailed(
                CommandCode.NO_SPACE,
                f"{what} needs {needed / 1e6:,.0f} MB more in {self._shelf.models_dir}, with {SPARE / 1e6:.0f} MB to spare, "
                f"and {free / 1e6:,.0f} MB are free. Make room, or keep models elsewhere (ROCKCHIPLLAMA_MODELS_DIR).",
            )

    def _fetch(self, file: PlannedFile, target: Path) -> Iterator[PullProgress]:
        if isinstance(file.source, Path):
            yield from self._paced(file, _copied(file.source, target))
            return
        hub = self._shelf.hub
        moves = transfers(
            file.source,
            target,
            opener=direct_opener() if file.direct else hub.network,
            size=file.size,
            credentials=hub.credentials if file.repository else None,
            pause=self._shelf.pause,
            wait=self._shelf.wait,
        )
        try:
            yield from self._paced(file, self._with_room(file, moves))
        except Forbidden as error:
            if file.repository:
                raise hub.forbidden(file.repository, error) from error
            raise PullFailed(
                CommandCode.SOURCE_FORBIDDEN,
                f"{file.name} is not open to everybody ({error}), and its server is no hub.",
            ) from error
        except Missing as error:
            raise PullFailed(CommandCode.SOURCE_MISSING, f"{file.name} is not where it should be: {error}.") from error
        except Damaged as error:
            raise PullFailed(CommandCode.DAMAGED, f"{file.name} is not what was asked for: {error}.") from error
        except DownloadFailed as error:
            raise PullFailed(
                CommandCode.NETWORK,
                f"{file.name} could not be fetched: {error}. Check the network; what has arrived is kept, and the same pull "
                "goes on from there.",
            ) from error

    def _with_room(self, file: PlannedFile, moves: Iterator[Transfer]) -> Iterator[Transfer]:
        """Where only the server knows how large a file is, room is made sure of when it has told."""
        unknown = file.size is None
        for move in moves:
            self._tags[file.name] = move.tag or self._tags.get(file.name, "")
            if unknown and move.total is not None:
                unknown = False
                self._make_sure_of(move.total - move.completed, file.name)
            yield move

    def _paced(self, file: PlannedFile, moves: Iterator[Transfer]) -> Iterator[PullProgress]:
        """A word about a file now and then, and one when it is whole."""
        digest = f"sha256:{file.sha256}" if file.sha256 else ""
        told, last = 0.0, None
        for move in moves:
            last = self._say(
                PullStep.FETCHING,
                file=file.name,
                digest=digest,
                completed=move.completed,
                total=move.total,
                message=move.waiting,
            )
            if move.waiting or time.monotonic() - told >= OFTEN:
                told = time.monotonic()
                yield last
                last = None
        if last is not None:
            yield last

    def _verify(self, file: PlannedFile, path: Path) -> Generator[PullProgress, None, str]:
        size = path.stat().st_size
        sha256 = hashlib.sha256()
        told = time.monotonic()
        known = f"sha256:{file.sha256}" if file.sha256 else ""
        yield self._say(PullStep.VERIFYING, file=file.name, digest=known, total=size)
        with path.open("rb") as opened:
            while data := opened.read(CHUNK):
                sha256.update(data)
                if time.monotonic() - told >= OFTEN:
                    told = time.monotonic()
                    yield self._say(
                        PullStep.VERIFYING, file=file.name, digest=known, completed=opened.tell(), total=size
                    )
        found = sha256.hexdigest()
        if file.sha256 is not None and found != file.sha256:
            path.unlink()
            raise PullFailed(
                CommandCode.DAMAGED,
                f"{file.name} arrived damaged: its SHA-256 is {found}, and should be {file.sha256}. It was deleted; pull again.",
            )
        yield self._say(PullStep.VERIFYING, file=file.name, digest=f"sha256:{found}", completed=size, total=size)
        return found


def _copied(source: Path, target: Path) -> Iterator[Transfer]:
    """A copy, which is whole or raises: what is read back later is compared with what was read here."""
    size, have = source.stat().st_size, 0
    with source.open("rb") as read, target.open("wb") as written:
        while data := read.read(CHUNK):
            written.write(data)
            have += len(data)
            yield Transfer(have, size)
    sync(target)
    yield Transfer(have, size)


def _check_form(path: Path) -> None:
    """A page of a web server under the name of a model, or a part of one, is found here, not when it is loaded."""
    why = _damage(path)
    if why is not None:
        path.unlink()  # a later pull would go on from it
        raise PullFailed(
            CommandCode.DAMAGED,
            f"{path.name} arrived as it is where it came from, and cannot be used: {why}. It was deleted; pull again once the "
            "file there is whole.",
        )


def _damage(path: Path) -> str | None:
    """Why a file cannot be what its name says; None for one that is, and for those whose form is not known."""
    if path.suffix.lower() != ".gguf":
        return None
    try:
        read_gguf(path)
    except ModelRefused as refused:
        return str(refused).removeprefix(f"{path}: ").partition(". ")[0]
    return None


def _taken(lock: IO[str]) -> bool:
    """One pull of a model at a time, whichever process does it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _manifest(plan: Plan) -> str:
    assert plan.manifest is not None
    lines = [*(f"# {remark}" for remark in plan.remarks), f"# What exactly was pulled stands in {RECORD}."]
    # The strings of JSON are strings of TOML.
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in plan.manifest.items()]
    return "\n".join(lines) + "\n"
