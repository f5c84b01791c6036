"""Everything the checks look at, gathered once."""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import redis

from npu.catalog import Catalog, find_models
from npu.engines import Facts as EngineFacts
from npu.engines import LastLoad, Setup, chat_template, describe
from npu.engines.rkllm.facts import read_loaded, suspicion
from npu.engines.rkllm.text import has_tokenizer
from npu.errors import ModelRefused
from npu.hardware import ROOT, Board, read_board
from npu.model import Model
from npu.model_name import is_adapter, parse_model_name
from npu.self_test import SelfTest
from ops import configuration
from tasks.connection import connect
from tasks.prompting.setup import setup_of
from tasks.settings import TaskSettings

REDIS_TIMEOUT = 3.0
"""Seconds that Redis gets to answer."""

_TOOLKIT = re.compile(r"(?<![\d.])1\.[0-3]\.\d(?:b\d)?(?![\d.])")
_CORES = re.compile(r"(?:^|[-_])npu(\d)(?=[-_]|$)", re.IGNORECASE)
_DTYPE = re.compile(r"w\d+a\d+(?:_g\d+)?|fp16")
_BASE = re.compile(r"(?:^|[-_])base(?=[-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model on disk. What neither its file, its name nor its manifest tells is None or empty."""

    id: str
    engine: str
    path: Path | None
    size_bytes: int = 0
    memory_bytes: int | None = None
    """What it takes once loaded."""
    context_length: int | None = None
    """Tokens of context it gets here; None where the runtime that would tell is missing."""
    soc: str | None = None
    """The chip it was converted for."""
    dtype: str = ""
    """Its quantization as chips know it, such as `w8a8_g128`."""
    cores: int | None = None
    """NPU cores it was converted for."""
    toolkit: str | None = None
    """The version of the converter."""
    chat: bool | None = None
    """Whether it has a chat template."""
    tokenizer: bool = True
    """Whether its tokenizer is known; otherwise the NPU's runtime alone can ask it."""
    last_load: LastLoad | None = None
    """What the runtime told when it was last loaded here; None when it never was."""
    self_test: SelfTest | None = None
    """What it showed when it was tried out; None when it was not, or not as it is used now."""
    tried_with: str = ""
    """The version of another runtime that it was tried out with; empty when that is the one of now, or it was not tried."""
    doubt: str = ""
    """Why its text is suspect by that; empty when it is not."""


@dataclass(frozen=True, slots=True)
class LibraryFacts:
    """The RKLLM runtime that was found on this machine."""

    path: Path
    version: str | None
    """Such as `1.2.3`; None when it could not be told."""
    why: str = ""
    """How the version is known, or why it is not."""
    missing: tuple[str, ...] = ()
    """Libraries it needs and that are not there."""


@dataclass(frozen=True, slots=True)
class Library:
    """What became of the search for the RKLLM runtime."""

    found: LibraryFacts | None
    why: str = ""
    """Why there is none: the sentence of the search."""
    set_to: str = ""
    """What the settings name as the library; empty when they leave it to the search."""
    simulated: str | None = None
    """The version whose simulator stands in for the library; None when none does."""


@dataclass(frozen=True, slots=True)
class Python:
    """The interpreter the service runs in."""

    version: tuple[int, int]
    private: bool
    """Whether it is a virtual environment's own."""
    bits: int
    libc: str
    """`glibc`, or empty where it is another."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Where the service keeps its files."""

    path: Path
    free: int | None
    """Bytes; None when it cannot be told."""
    writable: bool


@dataclass(frozen=True, slots=True)
class Redis:
    """The Redis that is configured."""

    url: str
    """Without its password."""
    error: str
    """Why it does not answer; empty when it does."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of this machine, its models and its settings."""

    board: Board
    models_dir: Path
    models: tuple[ModelFacts, ...]
    complaints: tuple[str, ...]
    """One sentence for each file among the models that cannot be used, and for each name two of them claim."""
    library: Library | None
    """None when it was not looked for."""
    python: Python
    disk: Disk
    redis: Redis | None
    """None when no Redis is configured: `up` starts its own."""
    unknown_settings: tuple[str, ...]
    dangling: tuple[str, ...] = ()
    """One sentence for each name in the settings that means no model here."""

    @property
    def simulated(self) -> str | None:
        """The version of the runtime that is simulated, on a machine that needs no NPU then."""
        return self.library.simulated if self.library is not None else None

    @property
    def npu_models(self) -> tuple[ModelFacts, ...]:
        """The models that only an NPU runs."""
        return tuple(model for model in self.models if model.engine == "rkllm")


def gather(settings: TaskSettings, root: Path = ROOT, soc: str | None = None, library: Library | None = None) -> Facts:
    """Look at everything. `root` is another tree than this machine's, for tests; `soc` names the chip instead of looking.

    Raises `ValueError` when `soc` is no chip we know, and `ConfigurationError`.
    """
    catalog = find_models(settings.models_dir)
    models, complaints = _models(catalog, settings.models_dir, setup_of(settings), library)
    return Facts(
        board=read_board(root, soc),
        models_dir=settings.models_dir,
        models=models,
        complaints=complaints,
        library=library,
        python=read_python(),
        disk=read_disk(settings.data_dir),
        redis=ask_redis(settings.redis_url) if settings.redis_url else None,
        unknown_settings=tuple(configuration.unknown()),
        dangling=tuple(_dangling(catalog, settings)),
    )


def _dangling(catalog: Catalog, settings: TaskSettings) -> Iterator[str]:
    aliases = {alias.lower(): target for alias, target in settings.aliases.items()}
    default = settings.default_model
    if default is not None and catalog.find(aliases.get(default.lower(), default)) is None:
        yield f"The default model is '{default}', and no model here has that name."
    for alias, target in settings.aliases.items():
        if catalog.find(target) is None:
            yield f"The alias '{alias}' means '{target}', and no model here has that name."


def _models(
    catalog: Catalog, models_dir: Path, setup: Setup, library: Library | None
) -> tuple[tuple[ModelFacts, ...], tuple[str, ...]]:
    complaints = [*catalog.problems, *catalog.clashes]
    found = []
    for model in catalog.models:
        try:
            found.append(model_facts(model, setup, library))
        except ModelRefused as refused:
            complaints.append(str(refused))
    described = {model.path for model in found} | {its.path for model in catalog.models for its in model.adapters}
    # What cannot be run here has a name all the same, and that may tell why.
    found += [_told_by_name(path) for path in _weights(models_dir) if path not in described]
    return tuple(found), tuple(complaints)


def model_facts(model: Model, setup: Setup, library: Library | None = None) -> ModelFacts:
    """What is known of a model without loading it. Of a model for the NPU its self-test counts where it was made with `library`,
    or that was not looked for. Raises `ModelRefused` when its file is damaged."""
    told = _told_by_name(model.path) if model.path is not None else ModelFacts(model.id, model.engine, None)
    loaded = read_loaded(model, setup) if model.engine == "rkllm" else None
    tried_with = ""
    if loaded is not None and loaded.self_test is not None and _is_another(library, loaded.runtime):
        tried_with, loaded = loaded.runtime, replace(loaded, self_test=None)
    described = _described(model, setup)
    return replace(
        told,
        id=model.id,
        engine=model.engine,
        # What an .rkllm takes depends on a runtime that may not be there; its size is the least.
        memory_bytes=described.memory_bytes if described is not None and model.engine != "rkllm" else None,
        context_length=described.context_length if described is not None else None,
        soc=model.soc,
        dtype=_dtype(model.quantization),
        chat=chat_template(model) is not None,
        tokenizer=model.engine != "rkllm" or has_tokenizer(model),
        toolkit=(loaded.toolkit if loaded is not None else None) or told.toolkit,
        last_load=loaded.last_load() if loaded is not None else None,
        self_test=loaded.self_test if loaded is not None else None,
        tried_with=tried_with,
        doubt=(suspicion(model, loaded) or "") if loaded is not None else "",
    )


def _is_another(library: Library | None, version: str) -> bool:
    """Whether models are run with another version now, or with none."""
    if library is None or (library.found is not None and library.found.version is None):
        return False
    return version != (library.simulated or (library.found.version if library.found is not None else None))


def _described(model: Model, setup: Setup) -> EngineFacts | None:
    try:
        return describe(model, setup)
    except ModelRefused:
        if model.engine != "rkllm":
            raise
        return None  # it may be the runtime that is wrong, which other checks tell of


def _weights(models_dir: Path) -> Iterator[Path]:
    for path in sorted(models_dir.rglob("*.rkllm")):
        if path.is_file() and not path.name.startswith(".") and not is_adapter(path):
            yield path


def _told_by_name(path: Path) -> ModelFacts:
    name = parse_model_name(path.stem)
    # Converted models are published in folders whose names end in the converter's version.
    toolkit = _TOOLKIT.search(path.stem) or _TOOLKIT.search(path.parent.name)
    cores = _CORES.search(path.stem)
    return ModelFacts(
        id=name.id,
        engine="rkllm",
        path=path,
        size_bytes=path.stat().st_size,
        soc=name.soc,
        dtype=_dtype(name.quantization),
        cores=int(cores[1]) if cores is not None else None,
        toolkit=toolkit[0] if toolkit is not None else None,
        chat=False if _BASE.search(path.stem) else None,
    )


def _dtype(quantization: str) -> str:
    found = _DTYPE.match(quantization.lower())
    return found[0] if found is not None else ""


def read_python() -> Python:
    """The interpreter this runs in."""
    return Python(
        version=sys.version_info[:2],
        private=sys.prefix != sys.base_prefix,
        bits=8 * struct.calcsize("P"),
        libc=platform.libc_ver()[0],
    )


def read_disk(path: Path) -> Disk:
    """The folder, or the nearest one above it that is there already."""
    place = path
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        free = None
    return Disk(path, free, os.access(place, os.W_OK | os.X_OK))


def ask_redis(url: str) -> Redis:
    """Whether the Redis there answers, within a few seconds and without trying again."""
    shown = configuration.without_password(url)
    try:
        with connect(url, timeout=REDIS_TIMEOUT, retries=0) as client:
            client.ping()
    except (ValueError, TypeError):  # They quote parts of the URL, which may be those of the password.
        return Redis(shown, "the URL cannot be understood")
    except (redis.RedisError, OSError) as error:
        return Redis(shown, str(error).rstrip(".") or type(error).__name__)
    return Redis(shown, "")
