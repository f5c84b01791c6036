"""Reads a recipe, the TOML file that says how a model is converted, strictly: what it does not understand it refuses."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from npu.engine import Sampling
from npu.errors import SamplingRefused
from npu.hardware.soc import Soc, soc_named
from npu.model import RESERVED, SAMPLING_DEFAULTS, is_model_id
from npu.sampling import check_sampling
from ops.convert.refusal import RecipeRefused, refusal

MAX_CONTEXT = 16384
"""Tokens; the most the converter builds a model for. It must be a multiple of `CONTEXT_STEP`."""
CONTEXT_STEP = 32
LOAD_DTYPES = ("float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda")

Settings = Mapping[str, tuple[type, object]]
KEYS: Mapping[str, Settings] = {
    "": {"source": (str, None), "output": (str, None), "tokenizer": (str, ""), "lora": (str, "")},
    "load": {"device": (str, "cpu"), "dtype": (str, "float32"), "custom_config": (str, "")},
    "build": {
        "target_platform": (str, None),
        "dtype": (str, None),
        "cores": (int, 0),
        "max_context": (int, 4096),
        "optimization_level": (int, 0),
        "algorithm": (str, ""),
        "hybrid_rate": (float, 0.0),
        "extra_qparams": (str, ""),
    },
    "calibration": {"file": (str, "")},
    "export": {"tokenizer": (bool, True), "embedding": (bool, True)},
    "evaluation": {"text": (str, ""), "tokens": (int, 512), "questions": (list, ()), "before": (bool, True)},
    "manifest": {
        "id": (str, None),
        "names": (list, ()),
        "family": (str, ""),
        "parameters": (str, ""),
        "stop": (list, ()),
        "sampling": (dict, None),
        "template_options": (dict, None),
    },
}
"""Every table of a recipe, and for each key its type and what holds when it is absent; None: nothing does."""
REQUIRED = (("", "source"), ("", "output"), ("build", "target_platform"), ("build", "dtype"), ("manifest", "id"))
UPDATED = ("target_platform", "dtype", "cores", "max_context")
"""What a recipe may say in `[build]` of a file that is only updated: what it was built for. The rest cannot be changed."""

_WORDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", list: "a list of strings"}
_ALGORITHM = re.compile(r"(normal|grq|gdq)(?:_r(\d+))?")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One conversion. Paths are absolute; a key that was absent has its default."""

    path: Path
    text: str
    values: Mapping[str, Mapping[str, Any]]
    soc: Soc
    kind: str
    """`huggingface`, `gguf` or `update`: what the source is."""

    def __call__(self, table: str, key: str) -> Any:
        """The value of a key; `""` is the table of the keys that stand before any other."""
        return self.values[table][key]

    def file(self, table: str, key: str) -> Path | None:
        """The path a key names, from the recipe's folder; None when it names none."""
        named = self(table, key)
        return (self.path.parent / Path(named).expanduser()).absolute() if named else None

    @property
    def source(self) -> Path:
        """The model that is converted."""
        return self.path.parent / Path(self("", "source")).expanduser()

    @property
    def output(self) -> Path:
        """The model folder that is written."""
        return self.path.parent / Path(self("", "output")).expanduser()

    @property
    def quantizes(self) -> bool:
        """Whether weights become smaller numbers; `fp16` leaves them."""
        return bool(self("build", "dtype") != "fp16")

    def refuse(self, table: str, key: str, what: str) -> RecipeRefused:
        """The refusal of one key, with its line."""
        return refusal(self.path, self.text, table, key, what)


def read_recipe(path: Path, source: Path | None = None, output: Path | None = None) -> Recipe:
    """The recipe in a file; `source` and `output` win over what it names. Raises `RecipeRefused`."""
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeRefused(f"{path} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeRefused(f"{path} is not TOML: {error}.") from error
    for key, given in (("source", source), ("output", output)):
        if given is not None:
            table[key] = str(given.absolute())
    values = _values(path, text, table)
    named = Path(values[""]["source"])
    kind = {".gguf": "gguf", ".rkllm": "update"}.get(named.suffix.lower(), "huggingface")
    try:
        soc = soc_named(values["build"]["target_platform"])
    except ValueError as error:
        raise refusal(path, text, "build", "target_platform", f"cannot be: {error}") from None
    recipe = Recipe(path.absolute(), text, values, soc, kind)
    _check_build(recipe)
    _check_rest(recipe, table)
    return recipe


def _values(path: Path, text: str, table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    given = {name: table[name] for name in KEYS if name and isinstance(table.get(name), dict)}
    given[""] = {key: value for key, value in table.items() if key not in given}
    values: dict[str, dict[str, Any]] = {}
    for name, known in KEYS.items():
        entries = given.get(name, {})
        for key, value in entries.items():
            if key not in known:
                there = ", ".join([*known, *([f"[{other}]" for other in KEYS if other] if not name else [])])
                raise refusal(path, text, name, key, f"is not known here. There are: {there}")
            expected = known[key][0]
            right = type(value) is expected or (expected is float and type(value) is int)
            if right and expected is list:
                right = all(isinstance(entry, str) for entry in value)
            if not right:
                raise refusal(path, text, name, key, f"must be {_WORDS.get(expected, 'a table')}")
        values[name] = {
            key: entries.get(key, {} if kind is dict else default) for key, (kind, default) in known.items()
        }
    for name, key in REQUIRED:
        if not values[name][key]:
            raise refusal(path, text, name, key, "is missing")
    for key in ("target_platform", "dtype", "algorithm"):
        values["build"][key] = values["build"][key].lower()
    return values


def _check_build(recipe: Recipe) -> None:
    soc, dtype = recipe.soc, recipe("build", "dtype")
    if not soc.runs(dtype):
        raise recipe.refuse("build", "dtype", f"is {dtype!r}: an {soc.name} runs {', '.join(('fp16', *soc.dtypes))}")
    cores = recipe("build", "cores") or soc.npu_cores
    if not 1 <= cores <= soc.npu_cores:
        raise recipe.refuse("build", "cores", f"is {cores}: the NPU of an {soc.name} has 1 to {soc.npu_cores}")
    context = recipe("build", "max_context")
    if not CONTEXT_STEP <= context <= MAX_CONTEXT or context % CONTEXT_STEP:
        raise recipe.refuse(
            "build", "max_context", f"is {context}: it must be a multiple of {CONTEXT_STEP}, at most {MAX_CONTEXT}"
        )
    if recipe("build", "optimization_level") not in (0, 1):
        raise recipe.refuse("build", "optimization_level", "must be 0 (faster) or 1 (more exact)")
    if not 0 <= recipe("build", "hybrid_rate") < 1:
        raise recipe.refuse("build", "hybrid_rate", "must be at least 0 and less than 1")
    if not recipe.quantizes:
        for key in ("algorithm", "hybrid_rate", "extra_qparams"):
            if recipe("build", key):
                raise recipe.refuse(
                    "build", key, "means nothing where dtype is `fp16`, which is not quantized. Remove it"
                )
        return
    _check_algorithm(recipe, recipe("build", "algorithm") or "normal")


def _check_algorithm(recipe: Recipe, name: str) -> None:
    algorithm = _ALGORITHM.fullmatch(name)
    if algorithm is None or not 1 <= int(algorithm[2] or 1) <= 64:
        raise recipe.refuse(
            "build", "algorithm", f"is {name!r}: there are `normal` and `grq`, also with `_r1` to `_r64`"
        )
    if algorithm[1] == "gdq":
        raise recipe.refuse("build", "algorithm", "is `gdq`, which the toolkit no longer has since 1.3.0. Use `grq`")
    if algorithm[1] == "grq" and recipe("load", "device") != "cuda":
        raise recipe.refuse("build", "algorithm", 'is `grq`, which needs CUDA: set `device = "cuda"` in [load]')


def _check_rest(recipe: Recipe, table: dict[str, Any]) -> None:
    if recipe("load", "device") not in DEVICES:
        raise recipe.refuse("load", "device", f"must be one of {', '.join(DEVICES)}")
    if recipe("load", "dtype") not in LOAD_DTYPES:
        raise recipe.refuse("load", "dtype", f"must be one of {', '.join(LOAD_DTYPES)}")
    if recipe.kind == "update":
        for name in ("load", "calibration", "export", "evaluation"):
            if name in table:
                raise recipe.refuse("", name, "cannot be chosen for a file that is only updated")
        for key in table["build"]:
            if key not in UPDATED:
                raise recipe.refuse("build", key, "cannot be changed by an update of the file. Remove it")
    elif recipe.kind == "gguf":
        for key in table.get("load", {}):
            raise recipe.refuse("load", key, "is not taken by the toolkit for a GGUF file. Remove it")
    if recipe("", "lora") and recipe.kind != "huggingface":
        raise recipe.refuse(
            "", "lora", "goes with a model in Hugging Face's form only; an adapter in GGUF is a source of its own"
        )
    if not 16 <= recipe("evaluation", "tokens") <= recipe("build", "max_context"):
        raise recipe.refuse("evaluation", "tokens", "must be between 16 and `build.max_context`")
    _check_manifest(recipe)


def _check_manifest(recipe: Recipe) -> None:
    if not is_model_id(recipe("manifest", "id")):
        raise recipe.refuse("manifest", "id", "may have lower-case letters, digits, `.`, `_` and `-` only")
    if recipe("manifest", "id") in RESERVED:
        raise recipe.refuse("manifest", "id", f"cannot be any of {', '.join(sorted(RESERVED))}")
    sampling = recipe("manifest", "sampling")
    known = {field.name for field in fields(Sampling)} - {"seed", "logit_bias"}
    for key in sampling:
        if key not in known:
            raise recipe.refuse("manifest.sampling", key, f"is not known. There are: {', '.join(sorted(known))}")
    try:
        check_sampling(Sampling(**{**SAMPLING_DEFAULTS, **sampling}), 0)
    except SamplingRefused as refused:
        raise recipe.refuse("manifest.sampling", refused.field, f"cannot be honoured: {refused.why}") from None
    except TypeError as error:
        raise recipe.refuse("manifest", "sampling", f"cannot be honoured: {error}") from None
    for key, value in recipe("manifest", "template_options").items():
        if not isinstance(value, (str, int, float)):
            raise recipe.refuse("manifest.template_options", key, "must be a string, a number or a truth value")
