"""Building the simulator: right for each family, once, and with a sentence where it cannot be."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import npu.simulator.library as simulator
from npu.errors import ModelRefused
from npu.rkllm.abi import bind, family_of
from npu.simulator import Defaults, build
from npu.simulator.header import header
from npu.simulator.library import SOURCE, find_compiler, table_of
from tests.npu.simulator.runtime import VERSIONS, Runtime


def complaint(tmp_path: Path, declarations: str, source: str, *options: str) -> str:
    """What the compiler says."""
    (tmp_path / "rkllm.h").write_text(declarations)
    (tmp_path / "source.c").write_text(source)
    command = [*find_compiler(), "-std=gnu11", "-fsyntax-only", *options, "source.c"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False).stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_each_family_compiles_without_a_warning(tmp_path: Path, version: str) -> None:
    declarations = header(table_of(version), version, {"max_new_tokens": 1, "max_context_len": 1, "embed_flash": 1})
    assert complaint(tmp_path, declarations, SOURCE.read_text(), "-Wall", "-Wextra") == ""


@pytest.mark.parametrize("what", ["size", "offset"])
def test_a_struct_laid_out_otherwise_than_the_table_says_is_named(tmp_path: Path, what: str) -> None:
    table: Any = json.loads(json.dumps(table_of("1.3.0")))
    struct = next(one for one in table["structs"] if one["name"] == "RKLLMParam")
    if what == "size":
        struct["lp64"][0] += 8
    else:
        next(field for field in struct["fields"] if field["name"] == "top_p")["lp64"][0] += 4
    said = complaint(tmp_path, header(table, "1.3.0", {}), '#include "rkllm.h"\n')
    assert ("RKLLMParam.top_p" if what == "offset" else '"RKLLMParam"') in said


def test_the_source_is_short() -> None:
    """It models what surrounds a language model, and no more."""
    assert len(SOURCE.read_text().splitlines()) < 1520


def test_its_defaults_are_the_documented_ones(library: Callable[[str], Path], version: str) -> None:
    abi, lib = family_of(version), ctypes.CDLL(str(library(version)))
    bind(lib, abi)
    param: Any = abi.default_params(lib)
    assert (param.top_k, param.mirostat, param.skip_special_token, param.is_async) == (40, 0, False, False)
    assert [
        round(value, 4) for value in (param.top_p, param.temperature, param.repeat_penalty, param.mirostat_tau)
    ] == [*(0.9, 0.8, 1.1, 5.0)]
    if abi.CAPABILITIES.keep_tokens:
        assert (param.n_keep, param.extend_param.enabled_cpus_num) == (-1, 4)
    if abi.CAPABILITIES.batches:
        assert param.extend_param.n_batch == 1


def test_a_library_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each version and each set of defaults; the undocumented ones can be chosen."""
    compiled = []

    def compile_nothing(*given: Any) -> None:
        compiled.append(given)
        given[-1].write_bytes(b"")

    monkeypatch.setattr(simulator, "_compile", compile_nothing)
    first = build("1.2.3", tmp_path)
    assert build("1.2.3", tmp_path) == first and len(compiled) == 1
    others = {build("1.2.2", tmp_path), build("1.2.3", tmp_path, Defaults(max_new_tokens=7))}
    assert len({first, *others}) == 3 and len(compiled) == 3


def test_chosen_defaults_are_compiled_in(tmp_path: Path) -> None:
    lib = ctypes.CDLL(str(build("1.2.1", tmp_path, Defaults(max_new_tokens=7, max_context_len=96, embed_flash=0))))
    abi: Any = family_of("1.2.1")
    bind(lib, abi)
    param = abi.default_params(lib)
    assert (param.max_new_tokens, param.max_context_len, param.extend_param.embed_flash) == (7, 96, 0)


def test_building_the_same_at_once_ends_in_one_whole_file(tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(build("1.3.0", tmp_path / "cache"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and len(set(found)) == 1
    assert [*(tmp_path / "cache").iterdir()] == [found[0]]  # Nothing half-done is left.
    with Runtime(found[0], tmp_path / "model", version="1.3.0") as runtime:
        assert runtime.status == 0


def test_a_version_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"no simulator of RKLLM runtime '1.0.1'. There are: 1.1.0, .*, 1.3.0\."):
        build("1.0.1", tmp_path)


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelRefused, match=r"none was found.*apt install gcc.*pip install ziglang"):
        build("1.3.0", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ziglang")
    assert simulator.find_compiler() == (sys.executable, "-m", "ziglang", "cc")


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cannot find -lpthread' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(simulator, "find_compiler", lambda: (str(broken),))
    with pytest.raises(ModelRefused, match="cannot find -lpthread"):
        build("1.3.0", tmp_path / "cache")
    assert [*(tmp_path / "cache").iterdir()] == []
