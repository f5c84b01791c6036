"""The documented calls of Rockchip's rkllm-toolkit, which is imported here and nowhere else."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ops.convert.recipe import Recipe
from ops.convert.refusal import RecipeRefused

PACKAGE = "rkllm-toolkit"
OLDEST = (1, 2, 0)
"""The first release that takes a context length, and has packages for a Python this runs in."""
UNTIED = (1, 3, 0)
"""The first release that leaves tokenizer or embedding out of a file."""


class ConversionFailed(Exception):
    """Raised when a call of the toolkit fails; its own words stand above on the terminal."""


class Toolkit:
    """One conversion. Every call raises `ConversionFailed` when the toolkit does not answer 0."""

    def __init__(self, llm: Any, version: str) -> None:
        self._llm = llm
        self.version = version

    def load(self, recipe: Recipe) -> None:
        """Read the source."""
        if recipe.kind == "gguf":
            self._call("load_gguf", model=str(recipe.source))
        else:
            self._call("load_huggingface", **load_arguments(recipe))

    def build(self, recipe: Recipe, dataset: Path | None) -> None:
        """Quantize, and lay the model out for the NPU. `dataset` is the rendered calibration data."""
        self._call("build", **build_arguments(recipe, dataset))

    def export(self, recipe: Recipe, path: Path) -> None:
        """Write the file."""
        self._call("export_rkllm", str(path), **export_arguments(recipe))

    def update(self, path: Path) -> None:
        """Bring a file of toolkit 1.0.2 up to date."""
        self._call("update_rkllm", model=str(path))

    def logits(self, tokens: Sequence[int]) -> Any:
        """What the model predicts after each of the tokens: a tensor of 1 × tokens × vocabulary; None when it has no answer."""
        torch = importlib.import_module("torch")
        return self._llm.get_logits({"input_ids": torch.tensor([list(tokens)])})

    def chat(self, prompt: str, tokens: int) -> Any:
        """The model's greedy answer to a rendered prompt, by the toolkit's simulation on this PC."""
        return self._llm.chat_model(prompt, {"max_length": tokens, "top_k": 1})

    def check(self, recipe: Recipe) -> None:
        """Whether this release takes what the recipe asks for. Raises `RecipeRefused`, before any long work."""
        if recipe.kind == "update":
            calls: dict[str, Mapping[str, object]] = {"update_rkllm": {"model": None}}
        else:
            loads = (
                {"load_gguf": {"model": None}}
                if recipe.kind == "gguf"
                else {"load_huggingface": load_arguments(recipe)}
            )
            calls = {**loads, "build": build_arguments(recipe, Path()), "export_rkllm": export_arguments(recipe)}
        for name, arguments in calls.items():
            function = getattr(self._llm, name, None)
            if function is None:
                raise RecipeRefused(f"rkllm-toolkit {self.version} has no {name}. Install a newer one.")
            for argument in arguments:
                if not _takes(function, argument):
                    raise RecipeRefused(
                        f"{name} of rkllm-toolkit {self.version} takes no `{argument}`, which {recipe.path.name} asks for. "
                        "Install a newer one, or leave it out of the recipe."
                    )

    def _call(self, name: str, *words: Any, **arguments: Any) -> None:
        shown = ", ".join([*map(repr, words), *(f"{key}={value!r}" for key, value in arguments.items())])
        print(f"rkllm-toolkit: {name}({shown})", flush=True)
        answer = getattr(self._llm, name)(*words, **arguments)
        if answer != 0:
            raise ConversionFailed(
                f"{name} of rkllm-toolkit failed (it answered {answer!r}). Its own words stand above."
            )


def open_toolkit(recipe: Recipe) -> Toolkit:
    """The toolkit of this Python. Raises `RecipeRefused` when there is none, it is too old, or this is no PC for it."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise RecipeRefused(
            f"This is {platform.system()} on {platform.machine()}; rkllm-toolkit runs on Linux on x86-64 only. Convert on a PC."
        )
    try:
        version = importlib.metadata.version(PACKAGE)
        api = importlib.import_module("rkllm.api")
    except ImportError as error:  # also what a missing distribution raises
        raise RecipeRefused(
            f"This Python has no rkllm-toolkit ({error}). Install its wheel from rkllm-toolkit/packages of the vendor's "
            "repository into a virtual environment, and run this with that environment's python."
        ) from error
    numbers = tuple(int(part) for part in version.partition("b")[0].split(".")[:3] if part.isdecimal())
    if numbers < OLDEST:
        raise RecipeRefused(f"rkllm-toolkit {version} is too old. Install {'.'.join(map(str, OLDEST))} or newer.")
    for key in ("tokenizer", "embedding"):
        if not recipe("export", key) and numbers < UNTIED:
            raise recipe.refuse("export", key, f"cannot be false with rkllm-toolkit {version}. Install 1.3.0 or newer")
    return Toolkit(api.RKLLM(), version)


def load_arguments(recipe: Recipe) -> dict[str, Any]:
    """Of `load_huggingface`; what a recipe leaves open is left to the toolkit."""
    lora, config = recipe.file("", "lora"), recipe.file("load", "custom_config")
    return {
        "model": str(recipe.source),
        "model_lora": str(lora) if lora else None,
        "device": recipe("load", "device"),
        "dtype": recipe("load", "dtype"),
        **({"custom_config": str(config)} if config else {}),
    }


def build_arguments(recipe: Recipe, dataset: Path | None) -> dict[str, Any]:
    """Of `build`."""
    arguments = {
        "do_quantization": recipe.quantizes,
        "optimization_level": recipe("build", "optimization_level"),
        "target_platform": recipe.soc.name,
        "num_npu_core": recipe("build", "cores") or recipe.soc.npu_cores,
        "max_context": recipe("build", "max_context"),
    }
    if not recipe.quantizes:
        return arguments
    qparams = recipe.file("build", "extra_qparams")
    return {
        **arguments,
        "quantized_dtype": recipe("build", "dtype"),
        "quantized_algorithm": recipe("build", "algorithm") or "normal",
        "hybrid_rate": recipe("build", "hybrid_rate"),
        "extra_qparams": str(qparams) if qparams else None,
        "dataset": str(dataset) if dataset else None,
    }


def export_arguments(recipe: Recipe) -> dict[str, Any]:
    """Of `export_rkllm`, besides the path. Older releases know neither, so neither is named unless it is wanted."""
    return {f"export_{key}": False for key in ("tokenizer", "embedding") if not recipe("export", key)}


def _takes(function: Callable[..., Any], argument: str) -> bool:
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True  # Compiled code need not say; then the call itself will.
    return argument in known or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
