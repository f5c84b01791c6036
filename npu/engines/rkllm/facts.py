"""What loading an .rkllm model showed, kept in a file for cards and for the next load: nothing else tells it without loading."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from npu.engines import LastLoad, Setup
from npu.errors import ModelRefused
from npu.model import Model
from npu.rkllm.pairs import DRIVER_NEEDED, find_trap, parse_version
from npu.self_test import SelfTest, Verdict
from npu.template_search import find_template
from npu.whole_file import set_aside, write_whole

log = logging.getLogger("rockchipllama.rkllm")

FACTS_FILE = "rkllm.json"
"""In the model's folder of the runtime directory."""
END_BYTES = 64 << 10
"""Of the weights, at either end, that are read to know them again; gigabytes would take a minute from a card."""
_DECIDING = ("host_sampling", "n_batch", "embed_flash", "parking_mb")
"""Options that decide what the self-test tries, or how the model is computed."""
_BASE = re.compile(r"(?:^|[-_])base(?=[-_.]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a model's last load told."""

    runtime: str
    driver: str | None
    platform: str | None
    toolkit: str | None
    max_context: int | None
    npu_cores: int | None
    dtype: str | None
    embedding_length: int | None = None
    """Numbers in a row of its last hidden layer; None of a model that does not embed."""
    self_test: SelfTest | None = None
    """None where it was switched off."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Why each adapter that could not be loaded could not."""
    tested: str = ""
    """Digest of what is answered with: tokenizer, template, options and sampling. Another one is tested anew."""

    def last_load(self) -> LastLoad:
        """What of it is told of the runtime."""
        return LastLoad(**{name.name: getattr(self, name.name) for name in fields(LastLoad)})

    def story(self) -> Iterator[str]:
        """Sentences for the model's user."""
        parts = (
            ("driver", self.driver),
            ("platform", self.platform),
            ("converted by toolkit", self.toolkit),
            ("NPU cores", self.npu_cores),
        )
        told = ", ".join(f"{name} {value}" for name, value in parts if value is not None)
        if told:
            yield f"When it was last loaded here: {told}."
        for name, why in self.adapters.items():
            yield f"Its adapter {name} could not be loaded: {why}"
        if self.self_test is not None:
            yield self.self_test.story()


def suspicion(model: Model, loaded: Loaded) -> str | None:
    """What is to be said of a model whose text is suspect, with the likeliest causes; None when it is not."""
    test = loaded.self_test
    if test is None or test.text is not Verdict.SUSPECT:
        return None
    said = f"said {test.said!r}" if test.said.strip() else "said nothing"
    return (
        f"Its text is suspect: asked for the capital of France and for 2 + 2 it answered neither, and {said}. "
        f"Likeliest causes: {' '.join(f'({place}) {cause}' for place, cause in enumerate(_causes(model, loaded), 1))}"
    )


def _causes(model: Model, loaded: Loaded) -> Iterator[str]:
    stem = model.path.stem if model.path is not None else model.id
    trap = find_trap(loaded.toolkit, loaded.runtime, stem)
    if trap is not None:
        yield f"A model made by converter {loaded.toolkit} {trap.what} on this runtime. {trap.mend}"
    driver = parse_version(loaded.driver)
    if driver is not None and driver < DRIVER_NEEDED:
        needed = ".".join(map(str, DRIVER_NEEDED))
        yield f"The NPU's driver is {loaded.driver}, and {needed} is needed. Upgrade the system's kernel."
    if _BASE.search(stem):
        yield "By its name it is a base model, which continues texts. Take the variant called `instruct`, `it` or `chat`."
    if model.template is not None:
        yield "The manifest's chat_template is not the one the model was trained with. Leave it out."
    yield (
        "tokenizer.json or the chat template beside the weights is another model's. Copy both from the model it was "
        "converted from."
    )
    yield "It was converted badly. Convert it again, with calibration data in the model's own chat template."


def weights_of(model: Model) -> Path:
    """The model's file. Raises `ModelRefused` when the manifest names none."""
    if model.path is None:
        raise ModelRefused(f'{model.id}: the engine rkllm needs weights. Name the file: `file = "….rkllm"`.')
    return model.path


def read_loaded(model: Model, setup: Setup, runtime: str | None = None) -> Loaded | None:
    """What the last load of these weights told; None when there was none.

    Without its self-test when that was of another version than `runtime`, or with another template, tokenizer, options or
    sampling.
    """
    try:
        stored = _read(_file(model, setup))
        if stored["file"] != digest_of_weights(model):
            return None
        facts = stored["facts"]
        if facts["self_test"] is not None:
            test = SelfTest(**facts["self_test"])
            facts["self_test"] = replace(test, text=Verdict(test.text), logits=Verdict(test.logits))
        loaded = Loaded(**facts)
        same = runtime in (None, loaded.runtime) and loaded.tested == digest_of_tested(model)
        return loaded if same else replace(loaded, self_test=None)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never loaded, by another version of this program, or another file


def _read(path: Path) -> Any:
    text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError:
        log.warning("%s was damaged, as by a power cut; it is written anew with the next load", path)
        set_aside(path)
        raise


def write_loaded(model: Model, setup: Setup, facts: Loaded) -> None:
    """Keep what a load told. A disk that refuses costs a warning and the next load its time, no more."""
    path = _file(model, setup)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, json.dumps({"file": digest_of_weights(model), "facts": asdict(facts)}).encode())
    except OSError as error:
        log.warning("what %s told when it was loaded could not be kept: %s", model.id, error)


def digest_of_tested(model: Model) -> str:
    """Changes with all of a manifest that the self-test's findings hang on, and with the tokenizer's file. Raises
    `ModelRefused` when the template cannot be read."""
    options = [model.engine_options.get(name) for name in _DECIDING]
    digest = hashlib.sha256(repr((find_template(model, None), options, model.sampling())).encode())
    try:
        stat = (model.folder / "tokenizer.json").stat()
        digest.update(f"{stat.st_size}-{stat.st_mtime_ns}".encode())
    except OSError:
        pass  # no such file is a digest of its own
    return digest.hexdigest()


def _file(model: Model, setup: Setup) -> Path:
    return setup.runtime_dir / model.id / FACTS_FILE


def digest_of_weights(model: Model) -> str:
    """Changes with the weights' file, by its size, its time and its ends."""
    path = weights_of(model)
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(END_BYTES))
        file.seek(max(0, size - END_BYTES))
        digest.update(file.read(END_BYTES))
    return f"{size}-{changed}-{digest.hexdigest()}"
