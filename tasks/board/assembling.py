"""Models made of files that a client sent: weights, what belongs beside them, and an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from npu.catalog import find_models
from npu.errors import ModelRefused, TemplateFailed
from npu.gguf import read_gguf
from npu.manifest import FILE_NAME, read_manifest
from npu.model import Model
from npu.model_name import SUFFIXES, parse_model_name
from npu.whole_file import put_folder_in_place, write_whole
from tasks.blobs import blob_path
from tasks.board.pull.beside import BESIDE, LICENCES
from tasks.board.pull.weights import SHARD, is_model
from tasks.board.shelving import TEMPLATE, manifest_text, named, taken, write_template
from tasks.board.staging import stage
from tasks.commands import CommandCode, Create
from tasks.errors import CommandFailed

_ADAPTER: Final = "_lora.rkllm"


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a model is made of."""

    keys: dict[str, Any]
    """Of its manifest."""
    weights: str
    digests: dict[str, str]
    """By the name of each file in the model's folder, the weights' included."""


def assemble(models_dir: Path, wanted: Create) -> Model:
    """Make a model of files that were sent, which are in its folder from then on. Raises `CommandFailed` and `OSError`."""
    model_id, names = named(wanted.model)
    parts = _parts(model_id, wanted)
    catalog = find_models(models_dir)
    for name in (model_id, *names):
        owner = catalog.named(name)
        if owner is not None:
            raise taken(wanted.model, f"'{owner.id}' has it")
    folder = models_dir / model_id
    if folder.exists():
        raise taken(wanted.model, f"the folder {folder} has something else in it")
    try:
        with stage(models_dir, model_id) as draft, _moved(_sent(models_dir, parts.digests), draft):
            if parts.weights.endswith(".gguf"):
                read_gguf(draft / parts.weights)
            write_template(draft, wanted)
            keys = {"id": model_id, "names": list(names), **parts.keys}
            write_whole(draft / FILE_NAME, manifest_text(keys, wanted).encode())
            made = read_manifest(draft / FILE_NAME)
            put_folder_in_place(draft, folder)
    except (ModelRefused, TemplateFailed, UnicodeEncodeError) as error:
        raise _impossible(wanted, f"it cannot be made so: {error}") from error
    return made


def _parts(model_id: str, wanted: Create) -> _Parts:
    """Raises `CommandFailed` for files that make no model."""
    weights = [name for name in wanted.files if is_model(name) and _suffix(name) in SUFFIXES]
    for name in wanted.files:
        if name not in (*weights, *BESIDE, *LICENCES):
            raise _impossible(
                wanted,
                f"'{name[:100]}' is no file that it can be made of. Those are one .gguf or .rkllm file, and beside it "
                f"{', '.join(BESIDE)} or LICENSE",
            )
    if len(weights) != 1 or SHARD.search(PurePosixPath(weights[0]).stem):
        raise _impossible(wanted, "it is made of one file of weights. Join the parts of one that was split")
    if len({*wanted.files.values(), *wanted.adapters.values()}) < len(wanted.files) + len(wanted.adapters):
        raise _impossible(wanted, "two of its files have the same digest. Name each file once")
    if wanted.template is not None and TEMPLATE in wanted.files:
        raise _impossible(wanted, f"its template is sent twice, as {TEMPLATE} and in the request. Leave one out")
    [sent] = weights
    told = parse_model_name(PurePosixPath(sent).stem)
    # A client calls it `model.gguf`, say, and what is called so twice is ambiguous; the chip an .rkllm is for stands in its name.
    name = f"{model_id}.gguf" if _suffix(sent) == ".gguf" else sent
    keys: dict[str, Any] = {"file": name}
    keys |= {key: value for key in ("parameters", "quantization") if (value := getattr(told, key))}
    digests = {name if each == sent else each: digest for each, digest in wanted.files.items()}
    if len(wanted.adapters) > 1:
        raise _impossible(wanted, "it has more than one adapter, and an answer is made with one. Send that alone")
    for file, digest in wanted.adapters.items():
        adapter = PurePosixPath(file).stem.lower().removesuffix("_lora")
        digests[f"{adapter}{_ADAPTER}"] = digest
        keys |= {"adapters": {adapter: f"{adapter}{_ADAPTER}"}, "adapter": adapter}
        if _suffix(sent) != ".rkllm" or _suffix(file) != ".rkllm" or not is_model(f"{adapter}.rkllm"):
            raise _impossible(
                wanted, f"the adapter '{file[:100]}' cannot be applied: only .rkllm adapters of .rkllm weights can"
            )
    return _Parts(keys, name, digests)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _sent(models_dir: Path, digests: Mapping[str, str]) -> dict[str, Path]:
    """Where each file lies. Raises `CommandFailed` when one was not sent to this machine."""
    found = {}
    for name, digest in digests.items():
        try:
            found[name] = blob_path(models_dir, digest)
        except ValueError as error:
            raise CommandFailed(CommandCode.FILE_MISSING, str(error)) from error
        if not found[name].is_file():
            raise CommandFailed(
                CommandCode.FILE_MISSING,
                f"The file '{name}' ({digest[:19]}…) is not in the models folder of this board: it was not sent, a model was "
                "made of it already, or it went to another machine. Send it to the API on the board's own machine, or have "
                "the two share one models folder.",
            )
    return found


@contextmanager
def _moved(files: Mapping[str, Path], draft: Path) -> Iterator[None]:
    """The files in the draft. When the model comes to nothing they are put back, so that nobody need send them again."""
    moved: dict[str, Path] = {}
    try:
        for name, source in files.items():
            source.rename(draft / name)
            moved[name] = source
        yield
    except BaseException:
        for name, source in moved.items():
            if (draft / name).exists():
                (draft / name).rename(source)
        raise


def _impossible(wanted: Create, why: str) -> CommandFailed:
    return CommandFailed(CommandCode.NOT_POSSIBLE, f"'{wanted.model[:100]}' cannot be made of these files: {why}.")
