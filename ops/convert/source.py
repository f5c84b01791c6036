"""Looks at everything a conversion needs before the long work begins: the model, its template, the calibration data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npu.chat_template import ChatTemplate
from npu.errors import ModelRefused, TemplateFailed
from npu.gguf import Gguf, read_gguf
from npu.model import Model
from npu.template_search import find_template
from ops.convert.recipe import Recipe
from ops.convert.refusal import RecipeRefused

COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "config.json")
"""Copied beside the weights, as far as the model has them. The first two it must have."""
_GGUF_DTYPES = {"Q4_0": ("w4a16_g32",), "F16": None}
"""The file types the toolkit reads, and what each must become; None: whatever the chip runs."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was found, ready to be handed to the toolkit."""

    tokenizer: Path
    """The folder with `tokenizer.json`."""
    template: ChatTemplate | None
    """None for an adapter, which has none of its own."""
    calibration: tuple[dict[str, str], ...]
    """Pairs of input and target, rendered with the template."""
    questions: tuple[tuple[str, str], ...]
    """Canary questions, and the prompts they are asked by."""
    text: str
    """What perplexity is measured on; may be empty."""


def prepare(recipe: Recipe) -> Prepared:
    """Check the files a recipe names, and render what is rendered. Raises `RecipeRefused` with the key and the line."""
    _check_output(recipe)
    gguf = _check_source(recipe)
    for table, key in (("load", "custom_config"), ("build", "extra_qparams"), ("", "lora")):
        named = recipe.file(table, key)
        if named is not None and not named.exists():
            raise recipe.refuse(table, key, f"names {named}, which is not there")
    if is_adapter(gguf):
        for table, key in (("calibration", "file"), ("evaluation", "text"), ("evaluation", "questions")):
            if recipe(table, key):
                raise recipe.refuse(table, key, "means nothing for an adapter. Remove it")
        return Prepared(recipe.source.parent, None, (), (), "")
    folder = _tokenizer_folder(recipe)
    template = _template(recipe, folder, gguf)
    return Prepared(
        folder,
        template,
        _calibration(recipe, template, gguf),
        tuple((question, _prompt(recipe, template, question)) for question in recipe("evaluation", "questions")),
        _text(recipe),
    )


def is_adapter(gguf: Gguf | None) -> bool:
    """Whether a GGUF holds a LoRA adapter and no model."""
    return gguf is not None and gguf.text("general.type") == "adapter"


def _check_output(recipe: Recipe) -> None:
    if recipe.output.exists():
        raise recipe.refuse(
            "", "output", f"names {recipe.output}, which is there already. Move it away, or name another"
        )
    parent = next(folder for folder in recipe.output.absolute().parents if folder.exists())
    size = recipe.source.stat().st_size if recipe.source.is_file() else sum(_weights(recipe.source))
    free = shutil.disk_usage(parent).free
    if free < size:
        raise recipe.refuse(
            "",
            "output",
            f"lies where {free / 1e9:.1f} GB are free; the model takes up to {size / 1e9:.1f} GB. Make room",
        )


def _weights(folder: Path) -> Iterator[int]:
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        yield from (path.stat().st_size for path in folder.glob(pattern))


def _check_source(recipe: Recipe) -> Gguf | None:
    source = recipe.source
    if recipe.kind == "huggingface":
        if not (source / "config.json").is_file():
            raise recipe.refuse(
                "", "source", f"names {source}, where there is no config.json. Name a model's folder, or a file"
            )
        if not any(_weights(source)):
            raise recipe.refuse(
                "", "source", f"names {source}, which holds no weights (*.safetensors). Download them whole"
            )
        _check_groups(recipe, source / "config.json")
        return None
    if not source.is_file():
        raise recipe.refuse("", "source", f"names {source}, and there is no such file")
    if recipe.kind == "update":
        return None
    try:
        gguf = read_gguf(source)
    except ModelRefused as error:
        raise recipe.refuse("", "source", f"cannot be used: {error}") from error
    if gguf.quantization not in _GGUF_DTYPES:
        raise recipe.refuse(
            "",
            "source",
            f"is of type {gguf.quantization or 'unknown'}; the toolkit reads {' and '.join(_GGUF_DTYPES)} only",
        )
    must = _GGUF_DTYPES[gguf.quantization]
    if must and recipe("build", "dtype") not in must:
        raise recipe.refuse(
            "build", "dtype", f"must be {must[0]}, which is what a GGUF of type {gguf.quantization} becomes"
        )
    return gguf


def _check_groups(recipe: Recipe, path: Path) -> None:
    group = recipe("build", "dtype").partition("_g")[2]
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = {**config, **config.get("text_config", {})}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise recipe.refuse("", "source", f"has a config.json that cannot be read: {error}. Fetch it again") from error
    for name in ("hidden_size", "intermediate_size"):
        width = config.get(name)
        if group and isinstance(width, int) and width % int(group):
            raise recipe.refuse(
                "build", "dtype", f"has groups of {group}, which do not divide the model's {name} {width}"
            )


def _tokenizer_folder(recipe: Recipe) -> Path:
    folder = recipe.file("", "tokenizer") or (recipe.source if recipe.kind == "huggingface" else None)
    if folder is None:
        raise recipe.refuse(
            "", "tokenizer", "is missing: name the folder of the original model, for its tokenizer.json"
        )
    for name in COPIED[:2]:
        if not (folder / name).is_file():
            key = "tokenizer" if recipe("", "tokenizer") else "source"
            raise recipe.refuse("", key, f"names {folder}, where there is no {name}. Fetch it from the model's page")
    return folder


def _template(recipe: Recipe, folder: Path, gguf: Gguf | None) -> ChatTemplate:
    options = recipe("manifest", "template_options")
    model = Model(id=recipe("manifest", "id"), engine="rkllm", folder=folder, template_options=options)
    try:
        template = find_template(model, gguf)
        if template is not None:
            template.check()
    except (ModelRefused, TemplateFailed) as error:
        raise RecipeRefused(f"The chat template of {folder} cannot be used: {error}") from error
    if template is None:
        raise RecipeRefused(
            f"{folder} has no chat template, so this is a base model, or half a download. Calibrate and serve the variant "
            "made for chats (often `-Instruct` or `-it`), or put its chat_template.jinja there."
        )
    return template


def _prompt(recipe: Recipe, template: ChatTemplate, question: str) -> str:
    try:
        return template.render([{"role": "user", "content": question}])
    except TemplateFailed as error:
        raise recipe.refuse("evaluation", "questions", f"cannot be rendered: {error}") from error


def _calibration(recipe: Recipe, template: ChatTemplate, gguf: Gguf | None) -> tuple[dict[str, str], ...]:
    path = recipe.file("calibration", "file")
    needed = recipe.quantizes and recipe.kind != "update" and (gguf is None or gguf.quantization != "Q4_0")
    if path is None:
        if needed:
            raise recipe.refuse("calibration", "file", "is missing: quantization measures the model on conversations")
        return ()
    if not needed:
        raise recipe.refuse("calibration", "file", "means nothing where nothing is quantized anew. Remove it")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise recipe.refuse("calibration", "file", f"names {path}, which cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                pairs.append(_pair(template, json.loads(line)))
            except (ValueError, TypeError, KeyError, LookupError, TemplateFailed) as error:
                raise RecipeRefused(
                    f"{path}, line {number}: this is no conversation that ends with the assistant ({error}). Write "
                    '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}.'
                ) from error
    if not pairs:
        raise recipe.refuse("calibration", "file", f"names {path}, which holds no conversation")
    return tuple(pairs)


def _pair(template: ChatTemplate, entry: Any) -> dict[str, str]:
    *before, last = entry["messages"]
    if last["role"] != "assistant" or not isinstance(last["content"], str) or not before:
        raise ValueError("the last message must be the assistant's")
    return {"input": template.render(before), "target": last["content"]}


def _text(recipe: Recipe) -> str:
    path = recipe.file("evaluation", "text")
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise recipe.refuse("evaluation", "text", f"names {path}, which cannot be read: {error}") from error
