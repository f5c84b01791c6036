"""Writes the model folder: weights, tokenizer, template, a manifest, and a record of how it all was made."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npu.model import SAMPLING_DEFAULTS
from ops.convert.evaluation import Measured
from ops.convert.recipe import Recipe
from ops.convert.source import COPIED, Prepared
from ops.convert.toolkit import ConversionFailed

RECORD = "conversion.json"
ADAPTER = "lora"
"""What the adapter of a recipe is called in the manifest; whoever has more of them gives them better names."""


def draft_folder(recipe: Recipe) -> Path:
    """An empty folder beside the output, on the same disk. What an interrupted run left there is removed."""
    draft = recipe.output.parent / f".{recipe.output.name}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def weights_name(recipe: Recipe, adapter: bool) -> str:
    """Such as `qwen3-0.6b-w8a8-opt0-hybrid0-npu3-ctx4096-rk3588.rkllm`, which tells how it was made."""
    parts = [recipe("manifest", "id"), recipe("build", "dtype")]
    if recipe.kind != "update":
        parts += [f"opt{recipe('build', 'optimization_level')}", f"hybrid{recipe('build', 'hybrid_rate'):g}"]
        parts.append(f"npu{recipe('build', 'cores') or recipe.soc.npu_cores}")
    parts += [f"ctx{recipe('build', 'max_context')}", recipe.soc.name]
    return "-".join(parts) + ("_lora" if adapter else "") + ".rkllm"


def finish(
    recipe: Recipe,
    prepared: Prepared,
    draft: Path,
    weights: Path,
    toolkit: str,
    measured: Mapping[str, Measured],
) -> Path:
    """Complete the draft and give it its name. Raises `ConversionFailed` when the toolkit left no weights."""
    if not weights.is_file() or not weights.stat().st_size:
        raise ConversionFailed(f"rkllm-toolkit reported success and wrote no {weights.name}.")
    files = {path.name: _digest(path) for path in sorted(draft.glob("*.rkllm"))}
    record = {
        "recipe": recipe.text,
        "source": recipe.source.resolve().name,
        "toolkit": toolkit,
        "target_platform": recipe.soc.name,
        "dtype": recipe("build", "dtype"),
        "sha256": files,
        "measured": {name: asdict(values) for name, values in measured.items()},
    }
    _write(draft / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    if prepared.template is not None:
        for name in COPIED:
            if (prepared.tokenizer / name).is_file():
                shutil.copyfile(prepared.tokenizer / name, draft / name)
        _write(draft / "chat_template.jinja", prepared.template.source)
        for licence in prepared.tokenizer.glob("LICENSE*"):
            shutil.copyfile(licence, draft / licence.name)
        _write(draft / "manifest.toml", manifest(recipe, weights.name, toolkit, files, measured))
    draft.rename(recipe.output)
    return recipe.output


def manifest(
    recipe: Recipe, weights: str, toolkit: str, files: Mapping[str, str], measured: Mapping[str, Measured]
) -> str:
    """The manifest's text."""
    dtype = recipe("build", "dtype")
    keys = {
        "id": recipe("manifest", "id"),
        "names": recipe("manifest", "names"),
        "engine": "rkllm",
        "file": weights,
        "context_length": recipe("build", "max_context"),
        "family": recipe("manifest", "family"),
        "parameters": recipe("manifest", "parameters"),
        "quantization": dtype.upper(),
        "soc": recipe.soc.name,
        "stop": recipe("manifest", "stop"),
        "notes": list(_notes(recipe, toolkit, files, weights, measured)),
    }
    lines = [f"# Written by ops/convert from {recipe.path.name}; {RECORD} says how it was made.", *_lines(keys)]
    tables = {
        "sampling": {**SAMPLING_DEFAULTS, **recipe("manifest", "sampling")},
        "template_options": recipe("manifest", "template_options"),
        "adapters": {ADAPTER: next((name for name in files if name != weights), "")},
    }
    for name, values in tables.items():
        if table := _lines(values):
            lines += ["", f"[{name}]", *table]
    return "\n".join(lines) + "\n"


def _notes(
    recipe: Recipe, toolkit: str, files: Mapping[str, str], weights: str, measured: Mapping[str, Measured]
) -> list[str]:
    how = "brought up to date" if recipe.kind == "update" else f"converted to {recipe('build', 'dtype')}"
    notes = [
        f"{recipe.source.resolve().name}, {how} for {recipe.soc.name} by rkllm-toolkit {toolkit}; SHA-256 {files[weights]}."
    ]
    figures = {name: values.perplexity for name, values in measured.items() if isinstance(values.perplexity, float)}
    if figures:
        notes.append(
            "Perplexity in the toolkit's simulation: "
            + ", ".join(f"{value:.3f} {name} quantization" for name, value in figures.items())
            + "."
        )
    if len(files) > 1:
        both = f"{recipe('manifest', 'id')}:{ADAPTER}"
        notes.append(f"A LoRA adapter lies beside the weights. It is applied for whoever asks for {both}.")
    if not recipe("export", "embedding"):
        notes.append(
            "It has no embedding table of its own, which RockchipLlama does not make up for: it will not run here."
        )
    return notes


def _lines(values: Mapping[str, Any]) -> list[str]:
    # What JSON writes of strings, numbers, truth values and lists of strings is TOML as well.
    return [
        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value not in ("", [], ())
    ]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
