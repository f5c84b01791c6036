"""What a model has read of the one system prompt its manifest names, in a file that is read back instead of prefilled anew."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from npu.engine import Prompt, Sampling
from npu.engines import Setup, option
from npu.engines.rkllm_facts import digest_of_weights
from npu.engines.rkllm_generation import RkllmGeneration
from npu.engines.rkllm_options import OPTIONS
from npu.engines.rkllm_sampling import beyond_native, to_native
from npu.errors import ContextTooLong, EngineFailed, ModelRefused, PromptRefused
from npu.model import Model
from npu.rkllm.abi import Answer, Run, Tokens
from npu.whole_file import put_in_place, write_whole

if TYPE_CHECKING:
    from npu.engines.rkllm import RkllmEngine

log = logging.getLogger("rockchipllama.rkllm")

RECORD = "prompt-cache.json"
SUFFIX = ".prompt-cache"
MEGABYTE = 1 << 20
WORTH_MS = 100.0
"""A prefix that is read in less is not worth a file."""
COMPARED = 8
"""Tokens said after the prefix, once read and once loaded, that must be the same."""
_GREEDY = Sampling(temperature=0.0)


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


class PromptCache:
    """The file of one prefix, and whether the runtime has it loaded."""

    def __init__(self, engine: RkllmEngine, path: Path, prefix: Sequence[int]) -> None:
        self._engine = engine
        self._path = path
        self._prefix = list(prefix)
        self._loaded = False

    def fit(self, tokens: Sequence[int], cached: int) -> None:
        """Make ready for a prompt, of which `cached` tokens are in the runtime's cache: load the file where that saves
        reading, release it where it is another prompt's."""
        length = len(self._prefix)
        fits = len(tokens) > length and list(tokens[:length]) == self._prefix
        if fits and cached >= length:
            return
        if self._loaded:
            self.release()
        if fits:
            self.load()

    def load(self) -> bool:
        """Whether the runtime took it; if not, it is told of once and prompts are read as ever."""
        self._loaded = self._engine.handle.load_prompt_cache(self._path)
        if not self._loaded:
            log.warning("the file of the cached system prompt could not be loaded; it is read like any other")
            self._prefix = []
        return self._loaded

    def release(self) -> None:
        """Have the runtime forget it. Raises `EngineFailed` when it does not."""
        self._loaded = False
        if not self._engine.handle.release_prompt_cache():
            raise EngineFailed("The RKLLM runtime did not release a prompt cache. The model is loaded anew.")


def open_prompt_cache(engine: RkllmEngine, model: Model, setup: Setup) -> PromptCache | None:
    """The file of the manifest's prefix, which is written when it is first wanted; None without one.

    Files of other prefixes are removed. Raises `ModelRefused` when the template does not take the prompt, `EngineFailed`.
    """
    folder = setup.runtime_dir / model.id
    if model.cached_system_prompt is None:
        _remove(folder, "")
        (folder / RECORD).unlink(missing_ok=True)
        return None
    prefix = _prefix(engine, model, model.cached_system_prompt)
    key = _key(engine, model, prefix)
    path = folder / f"{key[:32]}{SUFFIX}"
    known = read_kept(model, setup)
    whole = known is not None and (known.why_not or _is_whole(path, known))
    kept = known if known is not None and known.key == key and whole else _keep(engine, model, path, key, prefix)
    _remove(folder, "" if kept.why_not else path.name)
    _write(folder, kept)
    return None if kept.why_not else PromptCache(engine, path, prefix)


def read_kept(model: Model, setup: Setup) -> Kept | None:
    """What became of it the last time; None when it was never tried, or by another version of this program."""
    try:
        return Kept(**json.loads((setup.runtime_dir / model.id / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _prefix(engine: RkllmEngine, model: Model, text: str) -> list[int]:
    """The tokens that every chat with this system prompt begins with."""
    template = engine.chat_template(model)
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
        chats.append(engine.tokenizer.encode(prompt, add_special=not (bos and prompt.startswith(bos))))
    same = 0
    while same < min(map(len, chats)) and chats[0][same] == chats[1][same]:
        same += 1
    if same + COMPARED >= engine.context_length:
        raise ModelRefused(f"{model.id}: cached_system_prompt: {ContextTooLong(same, COMPARED, engine.context_length)}")
    return chats[0][:same]


def _keep(engine: RkllmEngine, model: Model, path: Path, key: str, prefix: list[int]) -> Kept:
    """Read the prefix, have it written, load it, and see whether that was right and worth it."""
    # The first two without a key, so that they are tried again.
    if not engine.cache.reuse:
        return Kept("", len(prefix), "the runtime does not find its way back to a prefix with this model")
    most = _most(model)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < most:
        return Kept("", len(prefix), "less than prompt_cache_mb is free where it would lie")
    draft = path.with_name(f"draft-{path.name}")
    try:
        engine.cache.clear()
        said, read_ms = _answer(engine, prefix)
        if read_ms < WORTH_MS:
            return Kept(key, len(prefix), f"it is read in {read_ms:.0f} ms")
        _save(engine, draft, prefix)
        if not draft.is_file() or draft.stat().st_size == 0:
            return Kept(key, len(prefix), "the runtime wrote none")
        size = draft.stat().st_size
        if size > most:
            return Kept(key, len(prefix), f"it takes {size / 1e6:.1f} MB, more than prompt_cache_mb")
        draft.chmod(0o600)
        cache = PromptCache(engine, draft, prefix)
        begun = time.monotonic()
        if not cache.load():
            return Kept(key, len(prefix), "the runtime did not load what it had written")
        load_ms = (time.monotonic() - begun) * 1000
        again, first_ms = _answer(engine, prefix)
        cache.release()
        engine.cache.clear()
        load_ms += first_ms
        if load_ms > read_ms / 2:
            return Kept(key, len(prefix), f"to load it takes {load_ms:.0f} ms, and to read it {read_ms:.0f} ms")
        if again != said:
            return Kept(key, len(prefix), "the answers after loading it were other ones than after reading it")
        put_in_place(draft, path)
        return Kept(key, len(prefix), "", size, _digest(path), read_ms, load_ms)
    finally:
        draft.unlink(missing_ok=True)


def _answer(engine: RkllmEngine, prefix: list[int]) -> tuple[list[int], float]:
    """What is said after the prefix, nothing where nobody could say the same twice; and milliseconds until it begins."""
    size = len(engine.vocabulary)
    greedy = beyond_native(_GREEDY, engine.defaults, engine.family.CAPABILITIES, size) is None
    sampling = _GREEDY if greedy else engine.defaults
    native = to_native(sampling, size)
    begun = time.monotonic()
    read: list[float] = []
    prompt = Prompt([*prefix, prefix[-1]], COMPARED)
    said = []
    for piece in RkllmGeneration(engine, prompt, sampling, native, None):
        read.append((time.monotonic() - begun) * 1000)
        said.append(piece.token)
    return (said if greedy else []), read[0] if read else (time.monotonic() - begun) * 1000


def _save(engine: RkllmEngine, path: Path, prefix: list[int]) -> None:
    """A run of the prefix alone, after which the runtime writes its cache."""
    can = engine.family.CAPABILITIES
    one = 1 if can.per_run_max_tokens else None
    run = Run(inputs=[Tokens(prefix)], cache_file=path, max_tokens=one)
    # What ends by itself or is paused has ended well, while nobody knows what is written of a run that is aborted.
    call = engine.handle.start(run, limit=2 if one else 1, pause=Answer.PAUSE in can.answers)
    for _ in call:
        pass
    engine.cache.clear()


def _key(engine: RkllmEngine, model: Model, prefix: list[int]) -> str:
    tied = (digest_of_weights(model), engine.version, engine.context_length, _most(model), prefix)
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
