"""A backup of what the embedded Valkey keeps, jobs and API keys, of the files of batches, and of the settings' file: one
archive, made while the service runs or stands, and brought back where there is nothing yet.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import BinaryIO

from npu.whole_file import put_in_place, sync
from ops.up.append_only import File, mend, read_manifest, to_manifest
from ops.up.errors import UpError
from ops.up.lock import DataDirLock
from ops.up.store import FOLDER, MANIFEST, SOCKET_NAME, ask, server_binary, socket_dir

SETTINGS = "rockchipllama.toml"
FILES = "files"
"""The folder of batches' files, in the data directory as in the archive."""
TRIES = 10
"""Looks at files that Valkey replaces meanwhile, which takes it a moment and happens seldom."""
ANSWER_PATIENCE = 10.0
"""Seconds a running Valkey may take to say how its files stand."""
REWRITE_PATIENCE = 120.0
"""Seconds in which it has written a gigabyte anew, on an SD card."""


class BackupRefused(UpError):
    """Raised when there is nothing to keep, or no place to bring it back to."""


def backup(data_dir: Path, settings_file: Path | None, target: Path) -> None:
    """Write the archive. What was acknowledged before this began is in it. Raises `BackupRefused`."""
    if target.exists():
        raise BackupRefused(f"{target} is there already; name another file.")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with contextlib.ExitStack() as stack:
            if (data_dir / "valkey" / FOLDER / MANIFEST).exists():
                _wait_for_files(data_dir)
            files = _open_all(data_dir / "valkey" / FOLDER, stack)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # prompts may be in it
            archive = stack.enter_context(
                tarfile.open(fileobj=stack.enter_context(os.fdopen(descriptor, "wb")), mode="w:gz")
            )
            manifest = to_manifest(file for file, _ in files)
            _add(archive, MANIFEST, io.BytesIO(manifest), len(manifest))
            for file, opened in files:
                # Valkey appends to the last one meanwhile; what is in it now is enough.
                _add(archive, file.name, opened, os.fstat(opened.fileno()).st_size)
            # Later than the queue, so that none has less in it than the queue says.
            for path in sorted((data_dir / FILES).glob("[!.]*")):
                with contextlib.suppress(FileNotFoundError), path.open("rb") as kept:  # it may be deleted meanwhile
                    _add(archive, f"{FILES}/{path.name}", kept, os.fstat(kept.fileno()).st_size)
            if settings_file is not None:
                _add(archive, SETTINGS, io.BytesIO(settings_file.read_bytes()), settings_file.stat().st_size)
        put_in_place(draft, target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise BackupRefused(f"The backup {target} could not be written: {error.strerror or error}.") from error


def restore(archive: Path, data_dir: Path) -> list[str]:
    """Bring an archive back into a data directory that has no queue yet, and that no service uses; sentences on what is there
    now. Raises `BackupRefused`, and `AlreadyRunning`."""
    with DataDirLock(data_dir):
        folder = data_dir / "valkey"
        if (folder / FOLDER).exists():
            raise BackupRefused(
                f"{folder} has jobs and API keys already, which would be lost. Move that folder away, or restore into "
                "another data directory with --data-dir."
            )
        staging = folder / f"{FOLDER}.restoring"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            names = _unpacked(archive, staging)
        except BackupRefused:
            shutil.rmtree(staging, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # an empty one looks like a service that was here
            raise
        told = []
        if SETTINGS in names:
            (staging / SETTINGS).rename(data_dir / SETTINGS)
            told.append(f"The settings of then are in {data_dir / SETTINGS}; start with --config to use them.")
        _bring_files(staging / FILES, data_dir / FILES)
        sync(staging)
        staging.rename(folder / FOLDER)
        sync(folder)
        return [*mend(folder, server_binary()), *told]


def _unpacked(archive: Path, staging: Path) -> set[str]:
    """The names of what is in an archive, which is whole and unpacked into the folder. Raises `BackupRefused`."""
    try:
        (staging / FILES).mkdir(mode=0o700, parents=True)
        staging.chmod(0o700)
        staging.parent.chmod(0o700)
        names = _unpack(archive, staging)
    except tarfile.ReadError as error:  # what it says is for programmers
        raise BackupRefused(f"{archive} is no archive that `backup` wrote, or a damaged one.") from error
    except (OSError, EOFError, tarfile.TarError) as error:
        raise BackupRefused(
            f"{archive} cannot be read as a backup: {getattr(error, 'strerror', None) or error}."
        ) from error
    listed = read_manifest(staging / MANIFEST)
    if listed is None or {MANIFEST, *(file.name for file in listed)} != names - {SETTINGS}:
        raise BackupRefused(f"{archive} is no backup of this service, or not all of one.")
    return names


def _open_all(files: Path, stack: contextlib.ExitStack) -> list[tuple[File, BinaryIO]]:
    """The files of one moment: what is open stays readable when Valkey removes it."""
    for _ in range(TRIES):
        listed = read_manifest(files / MANIFEST)
        if listed is None:
            break
        with contextlib.ExitStack() as opened, contextlib.suppress(FileNotFoundError):
            found: list[tuple[File, BinaryIO]] = [
                (file, opened.enter_context((files / file.name).open("rb"))) for file in listed if file.kind != "h"
            ]
            if read_manifest(files / MANIFEST) == listed:
                stack.push(opened.pop_all())
                return found
    raise BackupRefused(
        f"There is no queue to be kept in {files.parent}. It is made by `rockchipllama up`, unless durability is `ram` or a "
        "Redis is named; that one has a backup of its own."
    )


def _wait_for_files(data_dir: Path) -> None:
    """Return once the files have what a running service knows. Those of one that writes nothing are of an earlier time, and
    so are those of one that writes again after a full disk, until all is written anew."""
    deadline = time.monotonic() + REWRITE_PATIENCE
    while True:
        try:
            told = ask(socket_dir(data_dir) / SOCKET_NAME, "INFO", "persistence", seconds=ANSWER_PATIENCE).split()
        except (FileNotFoundError, ConnectionRefusedError):
            return  # it stands
        except OSError as error:
            raise BackupRefused(f"The queue that runs from {data_dir} does not answer: {error}. Try again.") from error
        if "aof_enabled:0" in told:
            raise BackupRefused(
                f"The service that runs from {data_dir} keeps its queue in memory alone now (durability is `ram`, or the disk "
                "is full), and its files are of an earlier time. Stop it to keep those."
            )
        if "aof_rewrite_in_progress:0" in told and "aof_rewrite_scheduled:0" in told:
            return
        if time.monotonic() > deadline:
            raise BackupRefused(
                f"The service that runs from {data_dir} has been writing its files anew for {REWRITE_PATIENCE:.0f} s, and they "
                "may be of an earlier time until that is done, as after a full disk. Make room if there is none, and try again."
            )
        time.sleep(0.05)  # Valkey tells it to who asks alone


def _add(archive: tarfile.TarFile, name: str, content: BinaryIO, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    archive.addfile(member, content)


def _bring_files(staging: Path, folder: Path) -> None:
    """What is there stays: a file of that name is the same one, and has at least as much in it."""
    brought = [path for path in staging.iterdir() if not (folder / path.name).exists()]
    if brought:
        folder.mkdir(parents=True, exist_ok=True)
        for path in brought:
            path.rename(folder / path.name)
        sync(folder)
    shutil.rmtree(staging)


def _unpack(archive: Path, folder: Path) -> set[str]:
    """Plain files beside each other and those of batches, and nothing else; the names of the former."""
    names = set()
    with tarfile.open(archive) as opened:
        for member in opened:
            name = Path(member.name).name
            if not member.isreg() or member.name not in (name, f"{FILES}/{name}"):
                raise tarfile.TarError(f"it holds {member.name!r}, which no backup does")
            content = opened.extractfile(member)
            assert content is not None
            with (folder / member.name).open("xb") as target:
                shutil.copyfileobj(content, target)
            (folder / member.name).chmod(0o600)
            sync(folder / member.name)
            if member.name == name:
                names.add(name)
    return names
