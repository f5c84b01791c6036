"""Finds librkllmrt on this machine and says which version it is, before any call that a wrong guess would crash."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from npu.errors import ModelRefused, RuntimeNotFound, RuntimeRefused
from npu.rkllm.abi import FAMILIES, Abi, family_of, v1_2_0, v1_2_1b1
from npu.rkllm.elf import Unreadable
from npu.rkllm.evidence import (
    DIGESTS,
    FOLDER,
    NAME,
    Clues,
    Strings,
    families_by_defaults,
    gather,
    listed,
    version_of_digest,
)
from npu.rkllm.installed import chosen, find_release, releases

LIBRARY_SETTING: Final = "ROCKCHIPLLAMA_RKLLM_LIBRARY"
VERSION_SETTING: Final = "ROCKCHIPLLAMA_RKLLM_VERSION"
"""What whoever calls this lets users set; named in sentences that ask for it."""
SYSTEM_FOLDERS: Final = ("usr/lib", "usr/lib/aarch64-linux-gnu", "usr/lib/arm-linux-gnueabihf", "usr/local/lib")
LOADER: Final = ("/sbin/ldconfig", "-p")
ALIKE: Final = (v1_2_0, v1_2_1b1)
"""Told apart by nothing but what they print, and laid out alike but for images, which nobody here sends."""

_CHECKOUT = "rkllm-runtime/Linux/librkllm_api"
"""Where the vendor's repository has its libraries, in a folder for each machine."""
_CHECKOUT_FOLDERS = {"aarch64": "aarch64", "armv7l": "armhf", "armv8l": "armhf"}


def find_library(
    explicit: str | None = None,
    fetched: Path | None = None,
    *,
    pinned: Path = FOLDER,
    root: Path = Path("/"),
    loader: Sequence[str] = LOADER,
) -> Path:
    """The library to use. The first of these that is there:

    1. `explicit`, and nothing else when it is given: the file, a folder with it, or a checkout of the vendor's repository
    2. `external/rkllm/VERSION/` of this project (`pinned`) and `VERSION/` under `fetched`: the version that was chosen, and
       nothing else when one was, or the newest first
    3. `/usr/lib`, the machine's folders under it, and `/usr/local/lib` (`root` is another tree for tests)
    4. wherever the system's loader would take it from (`ldconfig -p`)

    Raises `RuntimeNotFound`, which lists the places and says how to get one.
    """
    if explicit:
        return _named(Path(explicit).expanduser())
    version = chosen(fetched)
    if version is not None:
        return find_release(version, fetched, pinned)
    tried: list[Path] = []
    for place in _places(fetched, pinned, root, tried):
        if os.path.isfile(place):
            return place
    for place in _known_to_loader(loader):
        if os.path.isfile(place):
            return place
    raise RuntimeNotFound(
        f"There is no {NAME}, which runs models on the NPU. Looked for it in {', '.join(map(str, tried))}, and asked the "
        f"system's loader ({' '.join(loader)}). "
        + _how_to_get()
        + f" On a machine without an NPU set {LIBRARY_SETTING}=simulator, or use a GGUF model."
    )


def _named(path: Path) -> Path:
    if not os.path.isdir(path):
        if os.path.isfile(path):
            return path
        raise RuntimeNotFound(
            f"{LIBRARY_SETTING} names {path}, but there is no such file, or it may not be looked at. "
            f"Name a {NAME} that is there, or unset it to have it searched for. {_how_to_get()}"
        )
    machine = _CHECKOUT_FOLDERS.get(platform.machine(), platform.machine())
    places = [path / NAME, *(path / inside / machine / NAME for inside in (_CHECKOUT, "."))]
    for place in places:
        if os.path.isfile(place):
            return place
    raise RuntimeNotFound(
        f"{LIBRARY_SETTING} names the folder {path}, but there is none of {', '.join(map(str, places))}. "
        f"Name the file itself. {_how_to_get()}"
    )


def _how_to_get() -> str:
    newest = FAMILIES[-1].RUNTIMES[-1]
    return f"`ops/fetch-runtime {newest}` fetches one; one of your own is named by {LIBRARY_SETTING}=/path/to/{NAME}."


def _places(fetched: Path | None, pinned: Path, root: Path, tried: list[Path]) -> Iterator[Path]:
    """Files to look for; `tried` takes the patterns of all of them, as a person reads them."""
    shelves = [pinned] if fetched is None else [pinned, fetched]
    tried += [shelf / "VERSION" / NAME for shelf in shelves]
    for folder in releases(fetched, pinned):
        yield folder / NAME
        yield folder / platform.machine() / NAME
    for name in SYSTEM_FOLDERS:
        tried.append(root / name / NAME)
        yield root / name / NAME


def _known_to_loader(loader: Sequence[str]) -> Iterator[Path]:
    try:
        listed = subprocess.run(
            loader, capture_output=True, text=True, errors="replace", timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return  # Not every system has this list; then its loader knows the usual folders only.
    for line in listed.splitlines():
        name, _, path = line.partition(" => ")
        if name.split(" ")[0].strip() == NAME and path:
            yield Path(path.strip())


@dataclass(frozen=True, slots=True)
class Identity:
    """A library, and the family it may be called as."""

    path: Path
    digest: str
    """SHA-256 of the file."""
    version: str | None
    """None where only the family is known."""
    family: Abi
    how: tuple[str, ...]
    """How that was found out, a sentence for each clue."""
    exported: frozenset[str]


def identify(path: Path, declared: str | None = None, seconds: float = 10.0, *, digests: Path = DIGESTS) -> Identity:
    """Find out the version of a library; `declared` is what its owner says it is. It is never loaded into this process.

    Most trusted is what was declared, then the digest of a known file, then where the library itself puts its default
    parameters (asked in a child process, for at most `seconds`), then texts inside the file, then the functions it exports.
    What was learned is kept for as long as the file stays the same.
    Raises `RuntimeRefused`: the file is no library for this machine or is damaged, crashes when it is asked, is too old,
    contradicts what was declared, or leaves several versions possible which are not called alike.
    """
    path = Path(os.path.abspath(path))
    if declared is not None:
        try:
            family_of(declared)
        except ModelRefused as error:
            raise RuntimeRefused(f"{VERSION_SETTING} cannot be followed: {error}") from error
    try:
        return _judge(path, gather(path, seconds), declared, digests)
    except (Unreadable, RuntimeRefused) as error:
        raise RuntimeRefused(f"The library {path} cannot be used: {error}") from error


def _judge(path: Path, clues: Clues, declared: str | None, digests: Path) -> Identity:
    how = [f"It exports just the functions of {listed(clues.families)}."]
    possible = _told_by_defaults(clues, declared is not None, how)
    told = how[-1] if possible != clues.families else how[0]
    if known := version_of_digest(clues.digest, digests):
        if family_of(known) not in possible:
            raise RuntimeRefused(f"{digests} has it as {known}. But: {told} Remove that line.")
        possible, told = (family_of(known),), f"This very file is known to be {known}."
        how.append(told)
    strings = clues.strings
    if strings.version is not None:
        how.append(f"Beside its announcement it holds the text {strings.version}.")
    if strings.families:
        how.append(f"It holds texts of {listed(strings.families)}.")
    if declared is None:
        version, family = (known, possible[0]) if known else _settle(possible, strings, how)
        return Identity(path, clues.digest, version, family, tuple(how), clues.exported)
    version, family = declared.strip().removeprefix("v"), family_of(declared)
    if family not in possible:
        if family not in clues.families:
            told = how[0]
        only = known or (possible[0].RUNTIMES[0] if len(possible[0].RUNTIMES) == len(possible) == 1 else None)
        mend = (
            f"Set {VERSION_SETTING}={only}" if only else f"Set {VERSION_SETTING} to the one of {listed(possible)} it is"
        )
        raise RuntimeRefused(f"{VERSION_SETTING} says that it is {version}. But: {told} {mend}, or leave it unset.")
    how.insert(0, f"{VERSION_SETTING} says that it is {version}.")
    return Identity(path, clues.digest, version, family, tuple(how), clues.exported)


def _told_by_defaults(clues: Clues, trusted: bool, how: list[str]) -> tuple[Abi, ...]:
    """The families with these exports, fewer where the default parameters tell. Raises `RuntimeRefused` when the library
    did not survive the question, or answered what none of them would; silence is enough where its owner is `trusted`."""
    defaults = clues.defaults
    if defaults.content is None:
        if trusted and defaults.silent:
            how.append(f"Asked for its default parameters it {defaults.failure}.")
            return clues.families
        mend = (
            f"If it is only slow, say which version it is: {VERSION_SETTING}=VERSION."
            if defaults.silent
            else "Install it again, and the libraries it needs (libomp.so, put beside it, for one)."
        )
        raise RuntimeRefused(f"asked for its default parameters in a process of its own, it {defaults.failure}. {mend}")
    fitting = families_by_defaults(defaults.content)
    if not fitting:
        how.append("Its default parameters lie where no known version has them.")
        return clues.families
    possible = tuple(abi for abi in clues.families if abi in fitting)
    if not possible:
        raise RuntimeRefused(
            f"it exports just the functions of {listed(clues.families)}, but its default parameters lie where those of "
            f"{listed(fitting)} do, so it is no release this program knows. Install one of {listed(FAMILIES)}."
        )
    how.append(f"Its default parameters lie where those of {listed(possible)} do.")
    return possible


def _settle(possible: tuple[Abi, ...], strings: Strings, how: list[str]) -> tuple[str | None, Abi]:
    """One family of those possible. Raises `RuntimeRefused` when texts do not decide between such as are called differently."""
    if len(possible) > 1:
        hinted = tuple(
            abi
            for abi in possible
            if (strings.version is None or strings.version in abi.RUNTIMES)
            and (not strings.families or abi in strings.families)
        )
        possible = hinted or possible
    if possible == ALIKE:
        # The younger one reads a longer input; what it is given does for both, and not the other way round.
        called = ALIKE[1]
        how.append(
            f"Nothing tells whether it is {listed(ALIKE)}. They differ for images alone, so it is called as {listed((called,))}."
        )
        return None, called
    if len(possible) > 1:
        raise RuntimeRefused(
            f"it may be any of {listed(possible)}, which are not called alike: the wrong guess would crash. "
            f"Say which one it is: {VERSION_SETTING}=VERSION."
        )
    (family,) = possible
    if strings.version in family.RUNTIMES:
        return strings.version, family
    return (family.RUNTIMES[0] if len(family.RUNTIMES) == 1 else None), family
