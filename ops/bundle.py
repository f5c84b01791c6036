"""`ops/bundle`: this project, the packages that it needs and perhaps a model, as one archive for machines without the internet.

The packages are those of requirements.lock, fetched by pip as wheels for the other machine and held to their hashes there and
here. In the unpacked folder `ops/setup --offline` installs from them alone.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from ops import demo_model
from tasks.settings import ROOT
from tasks.version import VERSION

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""Which Pythons the other machine may have: packages with compiled code have a wheel for each."""
ARCHITECTURES = ("aarch64", "x86_64")
GLIBCS = range(17, 32)
"""Minor versions of glibc 2 that wheels may be built for: Debian 11 and Ubuntu 20.04, and so the vendor's images, have 2.31."""
WHEELS = "wheels"
MADE_FOR = "made-for"
"""A file beside the wheels, which `ops/setup` reads: the architecture, then the Pythons."""
LEFT_OUT = ("tests/", ".github/")


class BundleFailed(Exception):
    """Raised when the archive cannot be made; its message says why."""


def make(target: Path, arch: str, pythons: Sequence[str], *, with_demo_model: bool = False) -> None:
    """Write the archive to `target`, which is whole or not there. Raises `BundleFailed`."""
    name = f"rockchipllama-{VERSION}"
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=target.parent) as place:
        tree = Path(place) / name
        for path in project_files():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tree / path)
        fetch_wheels(tree / WHEELS, arch, pythons)
        if with_demo_model:
            _add_demo_model(tree / "models")
        unfinished = Path(place) / target.name
        with tarfile.open(unfinished, "w") as archive:  # wheels and weights are compressed already
            archive.add(tree, name, filter=_owned_by_nobody)
        unfinished.replace(target)


def project_files() -> list[Path]:
    """What of this project goes along: the files that git knows, without tests. Raises `BundleFailed`."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BundleFailed(
            f"A bundle is made from a clone of the repository, and {ROOT} is none: {done.stderr.strip()}"
        )
    return [Path(name) for name in done.stdout.split("\0") if name and not name.startswith(LEFT_OUT)]


def fetch_wheels(folder: Path, arch: str, pythons: Sequence[str]) -> None:
    """Every package of requirements.lock for that machine and each of those Pythons, and what builds this project. Raises
    `BundleFailed`."""
    folder.mkdir()
    entries = list(lock_entries((ROOT / "requirements.lock").read_text(encoding="utf-8")))
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    _download(folder, arch, pythons[0], build)
    for python in pythons:
        chosen = "".join(entry for requirement, entry in entries if applies(requirement, arch, python))
        with tempfile.NamedTemporaryFile("w", suffix=".lock", encoding="utf-8") as lock:
            lock.write(chosen)
            lock.flush()
            _download(folder, arch, python, ["--require-hashes", "--no-deps", "-r", lock.name])
    (folder / MADE_FOR).write_text(f"{arch} {' '.join(pythons)}\n")


def lock_entries(text: str) -> Iterator[tuple[Requirement, str]]:
    """What a lock file asks for, each with the lines that say so, without the condition under which it does: pip would look
    whether that holds on this machine."""
    for entry in text.replace("\\\n", " ").splitlines():
        words, _, hashes = entry.partition(" --hash")
        if words.strip() and not words.lstrip().startswith("#"):
            requirement = Requirement(words)
            yield requirement, f"{requirement.name}{requirement.specifier} --hash{hashes}\n"


def applies(requirement: Requirement, arch: str, python: str) -> bool:
    """Whether that machine wants it with any release of that Python."""
    fixed = {
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": arch,
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "python_version": python,
        "extra": "",
    }
    marker = requirement.marker
    return marker is None or any(
        marker.evaluate({**fixed, "python_full_version": release, "implementation_version": release})
        for release in (f"{python}.0", f"{python}.99")
    )


def _download(folder: Path, arch: str, python: str, what: Sequence[str]) -> None:
    platforms = [f"manylinux2014_{arch}", *(f"manylinux_2_{minor}_{arch}" for minor in GLIBCS), f"linux_{arch}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--dest", str(folder), "--only-binary", ":all:", "--implementation", "cp"]
    command += ["--python-version", python, *(word for name in platforms for word in ("--platform", name)), *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise BundleFailed(f"pip could not fetch the packages for Python {python} on {arch}: {' '.join(said[-2:])}")


def _add_demo_model(models: Path) -> None:
    package = demo_model.SMOLLM2
    if (ROOT / "models" / package.model / "manifest.toml").is_file():
        shutil.copytree(ROOT / "models" / package.model, models / package.model)
    try:
        demo_model.fetch(models)
    except demo_model.FetchError as error:
        raise BundleFailed(str(error)) from error
    shutil.rmtree(models / ".partial", ignore_errors=True)


def _owned_by_nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main(words: Sequence[str]) -> int:
    """Read the command line and make the archive; the exit code."""
    parser = argparse.ArgumentParser(prog="ops/bundle", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", choices=ARCHITECTURES, default=platform.machine(), help="of the other machine")
    parser.add_argument(
        "--python", action="append", choices=PYTHONS, help="a version that it may have; may be repeated (all of these)"
    )
    parser.add_argument("--demo-model", action="store_true", help="take SmolLM2-135M-Instruct along, 98 MB")
    parser.add_argument("file", nargs="?", type=Path, help="the archive to write (rockchipllama-VERSION-ARCH.tar)")
    given = parser.parse_args(words)
    if given.arch not in ARCHITECTURES:
        parser.error(f"packages exist for {' and '.join(ARCHITECTURES)}, and this machine is {given.arch}: name --arch")
    target = (given.file or Path(f"rockchipllama-{VERSION}-{given.arch}.tar")).absolute()
    pythons = tuple(dict.fromkeys(given.python or PYTHONS))
    print(f"Fetching packages for {given.arch} with Python {', '.join(pythons)} …", flush=True)
    try:
        make(target, given.arch, pythons, with_demo_model=given.demo_model)
    except (BundleFailed, OSError) as error:
        print(f"ops/bundle: {error}", file=sys.stderr)
        return 1
    size = target.stat().st_size / 1e6
    print(
        f"{target}, {size:,.0f} MB. On the other machine:\n\n"
        f"  tar xf {target.name} && cd rockchipllama-{VERSION} && ops/run --offline"
    )
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
