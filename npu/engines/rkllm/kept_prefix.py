"""What a model has read of the one system prompt its manifest names, in a file that is read back instead of prefilled anew."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from npu.engines import Setup, option
from npu.engines.rkllm.cache_file import COMPARED, try_file
from npu.engines.rkllm.facts import digest_of_weights
from npu.engines.rkllm.loaded_model import LoadedModel
from npu.engines.rkllm.options import OPTIONS
from npu.engines.rkllm.prompt_cache import PromptCache
from npu.errors import ContextTooLong, ModelRefused, PromptRefused
from npu.model import Model
from npu.template_search import find_template
from npu.whole_file import put_in_place, write_whole

log = logging.getLogger("rockchipllama.rkllm")

RECORD = "prompt-cache.json"
SUFFIX = ".prompt-cache"
MEGABYTE = 1 << 20
WORTH_MS = 100.0
"""A prefix that is read in less is not worth a file."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of the try to keep a prefix. Times in milliseconds."""

    key: str
    """Digest of all that this depends on: weights, runtime, context, bound, and the tokens themselves. Empty when it is to be
    tried again."""
    tokens: int
    why_not: str = ""
    """Why there is no file; empty when there is one."""
    size: int = 0
    """Bytes of the file."""
    sha256: str = ""
    """Of the file: the runtime checks nothing, and answers from whatever it is given."""
    read_ms: float = 0.0
    """Until the first token, with the prefix read."""
    load_ms: float = 0.0
    """The same with the prefix loaded."""

    def story(self) -> str:
        """A sentence for the model's user."""
        if self.why_not:
            return f"Its cached_system_prompt is not kept in a file: {self.why_not}."
        return (
            f"What it reads of its cached_system_prompt ({self.tokens} tokens) is kept in a file of "
            f"{self.size / 1e6:.1f} MB, which is loaded in {self.load_ms:.0f} ms instead of {self.read_ms:.0f} ms of reading."
        )


def open_prompt_cache(loaded: LoadedModel, model: Model, setup: Setup) -> PromptCache | None:
    """The file of the manifest's prefix, which is written when it is first wanted; None without one.

    Files of other prefixes are removed. Raises `ModelRefused` when the template does not take the prompt, `EngineFailed`.
    """
    folder = setup.runtime_dir / model.id
    if model.cached_system_prompt is None:
        _remove(folder, "")
        (folder / RECORD).unlink(missing_ok=True)
        return None
    prefix = _prefix(loaded, model, model.cached_system_prompt)
    key = _key(loaded, model, prefix)
    path = folder / f"{key[:32]}{SUFFIX}"
    known = read_kept(model, setup)
    whole = known is not None and (known.why_not or _is_whole(path, known))
    kept = known if known is not None and known.key == key and whole else _keep(loaded, model, path, key, prefix)
    _remove(folder, "" if kept.why_not else path.name)
    _write(folder, kept)
    return None if kept.why_not else PromptCache(loaded.handle, path, prefix)


def read_kept(model: Model, setup: Setup) -> Kept | None:
    """What became of it the last time; None when it was never tried, or by another version of this program."""
    try:
        return Kept(**json.loads((setup.runtime_dir / model.id / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _prefix(loaded: LoadedModel, model: Model, text: str) -> list[int]:
    """The tokens that every chat with this system prompt begins with."""
    template = find_template(model, None)
    if template is None:
        raise ModelRefused(
            f"{model.id}: cached_system_prompt needs a chat template, and there is none beside the model."
        )
    chats = []
    for question in ("Hello", "1"):
        try:
            turns = [{"role": "system", "content": text}, {"role": "user", "content": question}]
            prompt = template.render(turns)
        except PromptRefused as error:
            raise ModelRefused(
                f"{model.id}: its chat template does not take the cached_system_prompt: {error}"
            ) from error
        bos = template.bos_token
        chats.append(loaded.tokenizer.encode(prompt, add_special=not (bos and prompt.startswith(bos))))
    same = 0
    while same < min(map(len, chats)) and chats[0][same] == chats[1][same]:
        same += 1
    if same + COMPARED >= loaded.context_length:
        raise ModelRefused(f"{model.id}: cached_system_prompt: {ContextTooLong(same, COMPARED, loaded.context_length)}")
    return chats[0][:same]


def _keep(loaded: LoadedModel, model: Model, path: Path, key: str, prefix: list[int]) -> Kept:
    """Read the prefix, have it written, load it, and see whether that was right and worth it."""
    # The first two without a key, so that they are tried again.
    if not loaded.cache.reuse:
        return Kept("", len(prefix), "the runtime does not find its way back to a prefix with this model")
    most = _most(model)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < most:
        return Kept("", len(prefix), "less than prompt_cache_mb is free where it would lie")
    draft = path.with_name(f"draft-{path.name}")
    try:
        trial = try_file(loaded, draft, prefix)
        if trial.read < WORTH_MS:
            return Kept(key, len(prefix), f"it is read in {trial.read:.0f} ms")
        if not trial.size:
            return Kept(key, len(prefix), "the runtime wrote none")
        if trial.size > most:
            return Kept(key, len(prefix), f"it takes {trial.size / 1e6:.1f} MB, more than prompt_cache_mb")
        if trial.load is None:
            return Kept(key, len(prefix), "the runtime did not load what it had written")
        if trial.load > trial.read / 2:
            why = f"to load it takes {trial.load:.0f} ms, and to read it {trial.read:.0f} ms"
            return Kept(key, len(prefix), why)
        if trial.same is False:
            return Kept(key, len(prefix), "the answers after loading it were other ones than after reading it")
        draft.chmod(0o600)
        put_in_place(draft, path)
        return Kept(key, len(prefix), "", trial.size, _digest(path), trial.read, trial.load)
    finally:
        draft.unlink(missing_ok=True)


def _key(loaded: LoadedModel, model: Model, prefix: list[int]) -> str:
    tied = (digest_of_weights(model), loaded.version, loaded.context_length, _most(model), prefix)
    return hashlib.sha256(repr(tied).encode()).hexdigest()


def _most(model: Model) -> int:
    return int(option(model, OPTIONS, "prompt_cache_mb")) * MEGABYTE


def _is_whole(path: Path, kept: Kept) -> bool:
    """Whether the file is the one that was kept, to the last bit: once for each load of a model, at the speed of the disk."""
    return path.is_file() and path.stat().st_size == kept.size and _digest(path) == kept.sha256


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(folder: Path, but: str) -> None:
    for path in folder.glob(f"*{SUFFIX}"):
        if path.name != but:
            path.unlink(missing_ok=True)


def _write(folder: Path, kept: Kept) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(folder / RECORD, json.dumps(asdict(kept)).encode())
    except OSError as error:
        log.warning("what became of the cached system prompt could not be kept: %s", error)
