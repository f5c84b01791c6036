"""What can be told about a copy of librkllmrt without calling it in this process: the clues from which its version is judged.

Only a positive match counts. What a clue does not name is not thereby ruled out, but for exported functions, of which
every family has a known set.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from npu.errors import ModelRefused, RuntimeRefused
from npu.rkllm.abi import FAMILIES, Abi, NativeSampling, family_of, v1_3_0
from npu.rkllm.elf import read_library, read_target, this_machine

NAME: Final = "librkllmrt.so"
MAX_BYTES: Final = 256 << 20
"""No release comes near this; a model's file given by mistake does."""
FOLDER: Final = Path(__file__).parents[2] / "external/rkllm"
"""What this project knows of the vendor's releases, and where fetched ones lie by default."""
DIGESTS: Final = FOLDER / "digests.toml"

OLD: Final = {
    frozenset({"rkllm_createDefaultParam", "rkllm_init", "rkllm_run", "rkllm_destroy", "rkllm_abort"}): "1.0.2",
    frozenset({"rkllm_createDefaultParam", "rkllm_init", "rkllm_run", "rkllm_destroy"}): "1.0.0",
}
"""What the releases before the first family export; 1.0.1 has what 1.0.2 has."""

SILENCE_KEPT: Final = 300.0
"""Seconds until a library that did not answer is asked again: the machine may have been busy."""

_KNOWN_DEFAULTS = ("top_p", "temperature", "repeat_penalty")
_KNOWN_CPUS = 4
_KNOWN_SLOTS = 1

_MARK = b"rkllm-runtime version"
_NEARBY = 256
"""Bytes before and after the mark in which a version is taken for the library's own."""
_VERSION = re.compile(rb"(?<![\d.])(\d+\.\d+\.\d+(?:b\d+)?)(?![\d.])")
_FORMATS = ((b"EOS token[%d]", True), (b"EOS token: %d", False), (b"Image Start:", False))
"""Texts of the log, and whether they are those of 1.3.0 or of what came before."""


def listed(families: tuple[Abi, ...]) -> str:
    """Their versions, as a person reads them."""
    ranges = [" to ".join(dict.fromkeys((abi.RUNTIMES[0], abi.RUNTIMES[-1]))) for abi in families]
    return " or ".join(filter(None, (", ".join(ranges[:-1]), ranges[-1])))


def functions_of(abi: Abi) -> frozenset[str]:
    """Every function a family exports."""
    return frozenset(prototype.name for prototype in abi.PROTOTYPES)


def families_exporting(known: frozenset[str]) -> tuple[Abi, ...]:
    """The families with just these functions."""
    return tuple(abi for abi in FAMILIES if functions_of(abi) == known)


def families_by_defaults(content: bytes) -> tuple[Abi, ...]:
    """The families in whose layout these bytes hold the defaults the vendor documents. They may hold anything else besides."""
    return tuple(abi for abi in FAMILIES if _holds_defaults(abi, content))


def _holds_defaults(abi: Abi, content: bytes) -> bool:
    params = abi.PROTOTYPES[0].restype.from_buffer_copy(content)
    host = params.extend_param
    if hasattr(host, "n_batch"):
        return bool(host.n_batch == _KNOWN_SLOTS and host.enabled_cpus_num == _KNOWN_CPUS)
    defaults = NativeSampling()
    return getattr(host, "enabled_cpus_num", _KNOWN_CPUS) == _KNOWN_CPUS and all(
        math.isclose(getattr(params, name), getattr(defaults, name), rel_tol=1e-6) for name in _KNOWN_DEFAULTS
    )


@dataclass(frozen=True, slots=True)
class Strings:
    """What the texts inside the file hint at."""

    version: str | None
    """The only release named beside the words the library announces its own with."""
    families: tuple[Abi, ...]
    """Those whose log has the texts found; empty when they say nothing, or contradict each other."""


def read_strings(data: bytes) -> Strings:
    """Search the file. A hint, no proof: nobody has confirmed these texts on every release."""
    named: set[str] = set()
    at = data.find(_MARK)
    while at >= 0:
        near = data[max(0, at - _NEARBY) : at + len(_MARK) + _NEARBY]
        named |= {found.decode() for found in _VERSION.findall(near)}
        at = data.find(_MARK, at + 1)
    versions = named & {version for abi in FAMILIES for version in abi.RUNTIMES}
    newest = {is_newest for text, is_newest in _FORMATS if text in data}
    families = tuple(abi for abi in FAMILIES if newest == {abi is v1_3_0})
    return Strings(versions.pop() if len(versions) == 1 else None, families)


def version_of_digest(digest: str, table: Path) -> str | None:
    """The release a file with this SHA-256 is known to be. Raises `RuntimeRefused` when the table cannot be read."""
    try:
        known = tomllib.loads(table.read_text(encoding="utf-8")).get("sha256", {})
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RuntimeRefused(
            f"The table of known libraries {table} cannot be read: {error}. Mend or remove it."
        ) from error
    version = known.get(digest) if isinstance(known, dict) else None
    if version is not None and not any(version in abi.RUNTIMES for abi in FAMILIES):
        raise RuntimeRefused(f"{table} has it as {version!r}, which is none of {listed(FAMILIES)}. Mend that line.")
    return version


@dataclass(frozen=True, slots=True)
class Defaults:
    """What came of asking a library for its default parameters."""

    content: bytes | None
    """The parameters and whatever lies behind them; None when nothing came."""
    failure: str = ""
    """What happened instead: the end of a sentence that begins with the library."""
    silent: bool = False
    """It may be in order all the same: it was not asked, or not long enough."""
    slow: bool = False
    """It was asked for as long as there was time."""


def ask_defaults(path: Path, seconds: float) -> Defaults:
    """Ask in a child process, which is killed after `seconds`."""
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("probe.py")), str(path), str(math.ceil(seconds) + 1)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return Defaults(None, f"could not be asked, for no process could be started: {error}", silent=True)
    assert child.stdout is not None
    try:
        answer, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()  # Not read to its end, which something the library started may keep from coming.
        child.wait()
        return Defaults(None, f"did not answer within {seconds:g} s", silent=True, slow=True)
    if child.returncode < 0:
        return Defaults(None, f"crashed ({signal.strsignal(-child.returncode)})")
    try:
        said = json.loads(answer)
    except ValueError:
        return Defaults(None, f"ended the process that asked it (exit code {child.returncode})")
    if "error" in said:
        return Defaults(None, f"could not be loaded: {said['error']}")
    return Defaults(bytes.fromhex(said["defaults"]))


@dataclass(frozen=True, slots=True)
class Clues:
    """All there is to know about one file."""

    digest: str
    """Its SHA-256."""
    exported: frozenset[str]
    families: tuple[Abi, ...]
    """Those with these exports; at least one."""
    strings: Strings
    defaults: Defaults


_gathered: dict[tuple[Path, int, int], Clues] = {}
"""By path, time of change and size: what a file is does not depend on who asks."""
_slow: dict[tuple[Path, int, int], tuple[float, Clues]] = {}
"""The same of those that did not answer, with when: the next look need not wait for them again, nor believe it for ever."""


def gather(path: Path, seconds: float) -> Clues:
    """Look at a file from all sides; for at most `seconds` it is also loaded into a process of its own.

    Raises `Unreadable` or `RuntimeRefused` when it is not a supported release for this machine; its message goes on after
    the file's name.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RuntimeRefused("it is no regular file. Name the file itself.")
        if status.st_size > MAX_BYTES:
            raise RuntimeRefused(
                f"it has {status.st_size >> 20} MB, and no {NAME} has. Is it a model? Name the library."
            )
        key = (path, status.st_mtime_ns, status.st_size)
        if key in _gathered:
            return _gathered[key]
        asked_at, clues = _slow.get(key, (-math.inf, None))
        if clues is not None and time.monotonic() - asked_at < SILENCE_KEPT:
            return clues
        data = path.read_bytes()  # A mapped file that shrinks meanwhile would take this process down.
    except (OSError, ValueError) as error:
        raise RuntimeRefused(f"it cannot be read: {error}. Check the path and its permissions.") from error
    target, here = read_target(data), this_machine()
    if target != here:
        width = f" ({target.bits} and {here.bits} bits)" if target.machine == here.machine else ""
        raise RuntimeRefused(
            f"it is made for {target}, this machine is {here}{width}. "
            f"Name the one for {here}; the vendor makes it for aarch64 and 32-bit ARM."
        )
    exported = read_library(data).exported
    families = _families(exported)
    clues = Clues(hashlib.sha256(data).hexdigest(), exported, families, read_strings(data), ask_defaults(path, seconds))
    if clues.defaults.content is not None:
        _gathered[key] = clues
    elif clues.defaults.slow:
        _slow[key] = (time.monotonic(), clues)
    return clues


def _families(exported: frozenset[str]) -> tuple[Abi, ...]:
    known = exported & frozenset[str]().union(*map(functions_of, FAMILIES))
    if families := families_exporting(known):
        return families
    if not known:
        raise RuntimeRefused(f"it has no function of the RKLLM runtime, so it is another library. Name {NAME}.")
    if old := OLD.get(known):
        try:
            family_of(old)
        except ModelRefused as error:
            raise RuntimeRefused(f"it exports just the functions of {old}. {error}") from error
    whole = next(abi for abi in FAMILIES if functions_of(abi) > known)
    raise RuntimeRefused(
        f"it lacks {', '.join(sorted(functions_of(whole) - known))}, which {listed((whole,))} has, and is no other release "
        f"either. Install one of {listed(FAMILIES)}."
    )
