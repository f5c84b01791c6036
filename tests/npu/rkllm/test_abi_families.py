"""A version leads to its family or to a sentence, and a library without a function is refused by name."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from npu.errors import ModelRefused
from npu.rkllm.abi import FAMILIES, Abi, bind, family_of
from tests.npu.rkllm.tables import ABIS, family_name, releases

NAMES = [name for name in (release["version"] for release in releases()) if not name.startswith("1.0.")]


def exporting(abi: Abi, without: str = "") -> Any:
    """What bind sees of a library: a name, and functions that can be given types."""
    functions = {prototype.name: SimpleNamespace() for prototype in abi.PROTOTYPES if prototype.name != without}
    return SimpleNamespace(_name="/opt/librkllmrt.so", **functions)


@pytest.mark.parametrize("release", [r for r in releases() if "family" in r], ids=lambda r: r["version"])
def test_every_release_has_its_family(release: dict[str, Any]) -> None:
    """Written as the library prints it, and with a v."""
    family = family_of(release["version"])
    assert family_name(family) == release["family"]
    assert family_of(f" v{release['version']}\n") is family


@pytest.mark.parametrize("version", ["1.0.0", "1.0.1", "1.0.2", "0.9.0"])
def test_an_old_release_is_told_what_to_install(version: str) -> None:
    """And that its models must be converted."""
    with pytest.raises(ModelRefused) as refused:
        family_of(version)
    assert f"{version} is too old" in str(refused.value)
    assert "Install librkllmrt.so 1.3.0" in str(refused.value) and "update_rkllm" in str(refused.value)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        *[(version, "newer than any") for version in ("1.3.1", "1.10.0", "2.0.0")],
        *[(version, "not known") for version in ("1.2.4", "1.2.0b1", "1.3.0b1")],
        *[(version, "is no version") for version in ("", "latest", "1.3", "1.3.0; rm")],
    ],
)
def test_an_unknown_release_is_refused_with_those_supported(version: str, words: str) -> None:
    """Nobody guesses a layout."""
    with pytest.raises(ModelRefused) as refused:
        family_of(version)
    assert words in str(refused.value)
    assert ", ".join(NAMES) in str(refused.value)


@pytest.mark.parametrize("abi", ABIS, ids=family_name)
def test_binding_types_every_function(abi: Abi) -> None:
    """Without a return type the parameters would be written past the end of an int."""
    library = exporting(abi)
    bind(library, abi)
    for prototype in abi.PROTOTYPES:
        function = getattr(library, prototype.name)
        assert (function.restype, function.argtypes) == (prototype.restype, prototype.argtypes)


@pytest.mark.parametrize(
    ("abi", "name"),
    [(abi, prototype.name) for abi in ABIS for prototype in abi.PROTOTYPES],
    ids=lambda value: value if isinstance(value, str) else family_name(value),
)
def test_a_library_that_lacks_a_function_is_refused(abi: Abi, name: str) -> None:
    """By the function's name, with nothing bound."""
    library = exporting(abi, without=name)
    with pytest.raises(ModelRefused, match=f"/opt/librkllmrt.so is no .*lacks {name}\\."):
        bind(library, abi)
    assert not any(vars(function) for function in vars(library).values() if isinstance(function, SimpleNamespace))


def test_a_library_of_another_kind_is_refused() -> None:
    """This very interpreter is one."""
    with pytest.raises(ModelRefused, match="lacks rkllm_createDefaultParam, rkllm_init"):
        bind(ctypes.CDLL(None), FAMILIES[-1])
