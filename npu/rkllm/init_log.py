"""What the runtime prints while it loads a model: caught, read, and where it failed put into words.

It prints through C's own streams, past `sys.stdout`, and says some things nowhere else: its version, the driver's, what
the model was made for, and why it could not be loaded.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CDLL
from dataclasses import dataclass
from typing import Final

from npu.errors import ModelRefused, RuntimeRefused
from npu.rkllm.abi import family_of
from npu.rkllm.library import ALIKE, VERSION_SETTING, Identity

log = logging.getLogger("rockchipllama.rkllm")

MAX_BYTES: Final = 1 << 20
"""As much as is kept of what was printed; a load prints some dozen lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InitFacts:
    """What a load told. None is what it did not tell, as older versions and broken systems do not."""

    runtime: str | None = None
    """Version of the library, in its own words."""
    driver: str | None = None
    """Version of the NPU's driver in the kernel."""
    platform: str | None = None
    """The chip, in lower case."""
    toolkit: str | None = None
    """Version of the toolkit that made the model."""
    max_context_limit: int | None = None
    """Tokens the longest context of this model may have."""
    npu_cores: int | None = None
    """NPU cores the model was made for."""
    target_platform: str | None = None
    """The chip the model was made for, in lower case."""
    dtype: str | None = None
    """How its weights are kept, in lower case, such as `w8a8`."""
    cpus: tuple[int, ...] = ()
    """Processor cores that help the NPU."""
    warnings: tuple[str, ...] = ()
    """Lines marked as such, without their mark."""
    errors: tuple[str, ...] = ()
    """Lines marked as such, without their mark. Some versions report a load as good after some."""


_LINE = re.compile(r"(?:(?P<level>[IWE]) (?:rkllm|RKNN)\s*:\s*(?:\[[\d:.]+\]\s*)?)?(?P<text>.*)")
_OLD_WARNING = "Warning: "
"""Before 1.1 lines had no mark."""


def parse_init_log(text: str) -> InitFacts:
    """Read what was printed. Nothing in it is required, and nothing unknown disturbs."""
    limit, cores = _find(text, r"max_context_limit:\s*(\d+)"), _find(text, r"npu_core_num:\s*(\d+)")
    return InitFacts(
        runtime=_find(text, r"rkllm-runtime version:\s*v?(\d[\w.]*\w)"),
        driver=_find(text, r"rknpu driver version:\s*v?(\d[\w.]*\w)"),
        platform=_known(_find(text, r"(?<!\w)platform:\s*(\w+)")),
        toolkit=_find(text, r"rkllm-toolkit version:\s*v?(\d[\w.]*\w)"),
        max_context_limit=int(limit) if limit else None,
        npu_cores=int(cores) if cores else None,
        target_platform=_known(_find(text, r"target_platform:\s*(\w+)")),
        dtype=_known(_find(text, r"model_dtype:\s*(\w+)")),
        cpus=tuple(int(core) for core in re.findall(r"\d+", _find(text, r"Enabled cpus:\s*\[([\d, ]*)\]") or "")),
        warnings=tuple(line for level, line in _lines(text) if level == "W"),
        errors=tuple(line for level, line in _lines(text) if level == "E"),
    )


def _find(text: str, pattern: str) -> str | None:
    found = re.search(pattern, text, re.ASCII)
    return found[1] if found else None


def _known(word: str | None) -> str | None:
    return None if word is None or word.lower() == "unknown" else word.lower()


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """The level of each line that has one, and the rest of it."""
    for line in text.splitlines():
        found = _LINE.fullmatch(line.strip())
        assert found is not None  # It takes any line.
        level, rest = found["level"], found["text"].strip()
        if level is None and rest.startswith(_OLD_WARNING):
            level = "W"
        if level is not None and rest:
            yield level, rest.removeprefix(_OLD_WARNING)


Explain = Callable[[re.Match[str]], str]

_NO_MEMORY: Final = (
    "free some by stopping other models, give the model a shorter context (context_length), or, where other models are "
    "loaded too, a memory domain of its own (memory_domain under [engine_options]), for one domain addresses about 4 GB."
)
_NOT_READABLE: Final = (
    "The runtime does not know this kind of model file: it was made by a toolkit before 1.1 or one newer than the runtime, "
    "or it is damaged. Check that it was downloaded whole; if it was, convert the model again with the toolkit of the "
    "runtime's version, or install a newer runtime."
)

_FAILURES: Final[tuple[tuple[str, Explain], ...]] = (
    (
        r"max_context\[(\d+)\] must be less than the model's max_context_limit\[(\d+)\]",
        lambda found: (
            f"A context of {found[1]} tokens was asked for, and the model was converted for {found[2]} at most. Set "
            f"context_length to {found[2]}, or convert the model again with a larger max_context."
        ),
    ),
    (
        r"n_batch must be between (\d+) and (\d+), but got (-?\d+)",
        lambda found: (
            f"The runtime was told to run {found[3]} prompts at once, and takes {found[1]} to {found[2]}. Nobody asks for "
            "that: the library is of another version than the one it was called as. "
            f"Set {VERSION_SETTING} to the version of the library."
        ),
    ),
    (
        r"failed to open rknpu module|failed to open rknn device|Device is not available",
        lambda found: (
            "The NPU could not be opened. Either its driver is missing (`cat /sys/module/rknpu/version` shows it; only the "
            "vendor's kernels 5.10 and 6.1 have it), or this user may not use it (`sudo usermod -aG render,video $USER`, "
            "then log in again), or a container was not given it (--device /dev/dri)."
        ),
    ),
    (
        r"platform is unknown|Query platform error|Get device properties failed",
        lambda found: (
            "The runtime could not find out which chip this is. In a container /proc/device-tree is hidden from it: start "
            "the container with `--security-opt systempaths=unconfined --security-opt apparmor=unconfined --device /dev/dri`, "
            "or privileged. Elsewhere this machine has no NPU that the runtime supports."
        ),
    ),
    (
        r"Too many open files|errno: 24\b",
        lambda found: (
            "The model needs more open files than this process may have. Raise the limit (`ulimit -n 102400`, or "
            "LimitNOFILE=102400 in its systemd unit) and start again."
        ),
    ),
    (
        r"target_platform does not match",
        lambda found: "The model was made for another chip. Use one made for this chip, or convert it again for it.",
    ),
    (
        r"invalid rknn llm model magic|invalid magic characters|invalid rkllm model|model version is too old",
        lambda found: _NOT_READABLE,
    ),
    (
        r"number of enabled CPUs must be greater than or equal to the number of NPU cores",
        lambda found: (
            "The model uses more NPU cores than it was given processor cores, and needs one for each. "
            "Raise cpus under [engine_options] to at least the model's NPU cores, or leave it out."
        ),
    ),
    (
        r"Mismatch between enabled CPUs mask and expected count",
        lambda found: (
            "The model was given processor cores that this machine does not have, or may not use now. "
            "Lower cpus under [engine_options], or bring the missing cores online."
        ),
    ),
    (
        r"failed to malloc npu memory, size: (\d+)( MB)?",
        lambda found: f"{_megabytes(found)} MB of memory for the NPU could not be had: {_NO_MEMORY}",
    ),
    (
        r"failed to malloc npu memory|failed to allocate handle|can not create weight memory|weight_memory is NULL",
        lambda found: f"The memory for the NPU could not be had: {_NO_MEMORY}",
    ),
    (
        r"matmul\(?\w*\)? run failed",
        lambda found: "The NPU refused to compute, as it does with an old driver. Upgrade the system's kernel.",
    ),
    (
        r"load model file error|failed to load model",
        lambda found: "The model file could not be read. Check that it is there, whole, and readable for this user.",
    ),
)
"""The likeliest cause first: one cause prints several of these lines."""

_OLD_DRIVER = r"rknpu driver version is too low, please upgrade to v?(\d[\d.]*\d)"
_GAVE_UP = r"rkllm_init failed|rkllm init failed|rknn_init fail"


def _megabytes(found: re.Match[str]) -> int:
    return int(found[1]) if found[2] else -(-int(found[1]) // 1_000_000)


def explain_failure(text: str) -> str | None:
    """Why a load failed and what to do, by what was printed; None when nothing in it is known to stand for a failure.

    Ask it after every load: up to 1.1 some that failed are reported as good.
    """
    old_driver = re.search(_OLD_DRIVER, text)
    advice = f"The NPU's driver is older than {old_driver[1]}, which the runtime asks for." if old_driver else ""
    for pattern, explain in _FAILURES:
        if found := re.search(pattern, text):
            return f"{explain(found)} {advice} Upgrade the system's kernel, too." if advice else explain(found)
    if advice and re.search(_GAVE_UP, text):
        return f"{advice} Upgrade the system's kernel: the driver is part of it."
    return None


def check_runtime(identity: Identity, facts: InitFacts) -> None:
    """Compare what the library says it is with what it was called as.

    Raises `RuntimeRefused` when these are not called alike: whatever comes next might crash. A library that says nothing
    passes.
    """
    if facts.runtime is None:
        return
    called = identity.version or identity.family.RUNTIMES[0]
    try:
        family = family_of(facts.runtime)
    except ModelRefused as error:
        raise RuntimeRefused(f"The library {identity.path} was called as {called}. It says: {error}") from error
    if family is not identity.family and not {family, identity.family} <= set(ALIKE):
        raise RuntimeRefused(
            f"The library {identity.path} says that it is {facts.runtime} but was called as {called}, which would crash. "
            f"Set {VERSION_SETTING}={facts.runtime}."
        )


class Output:
    """What was printed while it was caught."""

    def __init__(self) -> None:
        self._data = b""

    def text(self) -> str:
        """All of it up to a megabyte, once it is no longer being caught."""
        return self._data.decode(errors="replace")

    def _keep(self, data: bytes) -> None:
        self._data = data


_catching = threading.Lock()


@contextmanager
def capture_output() -> Iterator[Output]:
    """Catch what C code of this process prints on its standard output and error, and log it afterwards.

    Warnings and errors are logged as warnings, the rest for debugging. The two streams belong to the whole process: what
    other threads and new child processes print meanwhile is caught as well, and a second capture waits for the first.
    What a crash cuts short is lost.
    """
    output = Output()
    flush = CDLL(None).fflush
    with _catching, tempfile.TemporaryFile() as file:
        flush(None)  # What was printed before belongs where it was meant to go.
        saved = [(stream, os.dup(stream)) for stream in (1, 2)]
        try:
            for stream, _ in saved:
                os.dup2(file.fileno(), stream)
            yield output
        finally:
            flush(None)
            for stream, copy in saved:
                os.dup2(copy, stream)
                os.close(copy)
            file.seek(0)
            output._keep(file.read(MAX_BYTES))
            _log(output.text())


def _log(text: str) -> None:
    for line in text.splitlines():
        if line.strip():
            found = _LINE.fullmatch(line.strip())
            grave = found is not None and found["level"] in ("W", "E")
            log.log(logging.WARNING if grave else logging.DEBUG, "librkllmrt: %s", line.strip())
