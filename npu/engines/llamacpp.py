"""Runs GGUF models on the CPU with llama.cpp, through the llama-server that the `xllamacpp` wheel embeds.

The server listens on a Unix socket in a private directory and nowhere else. Its Python binding offers neither token ids nor
a way to abort, so the engine is a client of its own process, exactly as the tokenizers of other processes are.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from npu.chat_template import ChatTemplate
from npu.engine import Prompt, Sampling
from npu.engines import Facts, Option, option
from npu.engines.llamacpp_generation import LlamaCppGeneration
from npu.engines.llamacpp_server import ServerTokenizer, model_dir, publish_address, withdraw_address
from npu.errors import ContextTooLong, EngineFailed, ModelRefused, OutOfMemory, PromptRefused
from npu.gguf import Gguf, read_gguf
from npu.hardware import read_big_cores, read_memory
from npu.model import Model
from npu.model_files import find_template
from npu.sampling import check_sampling
from npu.vocabulary import Vocabulary

DEFAULT_CONTEXT_LENGTH = 8192
"""The most a model gets unasked: its KV cache is allocated when it loads, and files promise 131,072 tokens and more."""

SMALLEST_CONTEXT_LENGTH = 256
"""llama.cpp rounds a context up to a multiple of this."""

OVERHEAD_BYTES = 128 << 20
"""Compute buffers, and the library itself (measured: 62 MB with a batch of 64 and 49,152 tokens of vocabulary)."""

_SILENT = -1


class LlamaCppEngine:
    """One GGUF model in an embedded llama-server."""

    OPTIONS = {  # noqa: RUF012 - a constant
        "threads": Option(
            0, 0, 256, "threads that compute; 0 leaves one core free, and the small cores of a big.LITTLE chip"
        ),
        "batch_size": Option(64, 8, 2048, "tokens prefilled at a time; an abort waits for one such step"),
    }

    def __init__(self, model: Model, runtime_dir: Path, threads: int | None, context_length: int | None) -> None:
        gguf = read_gguf(_weights(model))
        facts = _facts(model, gguf, context_length)
        self.context_length = facts.context_length
        self.version = facts.version
        self._vocabulary = Vocabulary(gguf)
        self._folder = model_dir(model, runtime_dir)
        self._owner = os.getpid()
        _check_memory(model, facts)
        self._address = publish_address(self._folder)
        self.tokenizer = ServerTokenizer(model, self._folder, self._vocabulary)
        try:
            # Held until `close`: dropping the last reference stops the server and frees the model.
            self._server: object | None = _start(
                model, self._address.socket, self._address.key, threads, self.context_length
            )
        except BaseException:
            self.close()
            raise

    @staticmethod
    def open(model: Model, runtime_dir: Path, threads: int | None, context_length: int | None) -> LlamaCppEngine:
        """Load the weights. Raises `ModelRefused`, `OutOfMemory`, `EngineFailed`."""
        return LlamaCppEngine(model, runtime_dir, threads, context_length)

    @staticmethod
    def open_tokenizer(model: Model, runtime_dir: Path) -> ServerTokenizer:
        """Asks the loaded engine; it decodes without one."""
        return ServerTokenizer(model, model_dir(model, runtime_dir), Vocabulary(read_gguf(_weights(model))))

    @staticmethod
    def describe(model: Model, context_length: int | None) -> Facts:
        """From the file's metadata."""
        return _facts(model, read_gguf(_weights(model)), context_length)

    @staticmethod
    def chat_template(model: Model) -> ChatTemplate | None:
        """From beside the weights, or from inside them."""
        return find_template(model, read_gguf(_weights(model)))

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> LlamaCppGeneration:
        """Prepare one run. Raises `SamplingRefused`, `ContextTooLong`, `PromptRefused`; `EngineFailed` once closed."""
        if self._server is None:
            raise EngineFailed("This engine was closed. Open it anew.")
        check_sampling(sampling, len(self._vocabulary))
        if not prompt.tokens:
            raise PromptRefused("The prompt is empty. Send at least one token.")
        if len(prompt.tokens) + prompt.max_tokens > self.context_length:
            raise ContextTooLong(len(prompt.tokens), prompt.max_tokens, self.context_length)
        if max(prompt.tokens) >= len(self._vocabulary) or min(prompt.tokens) < 0:
            last = len(self._vocabulary) - 1
            raise PromptRefused(f"The prompt has a token outside the vocabulary, whose ids go from 0 to {last}.")
        return LlamaCppGeneration(self._address, self._vocabulary, self.context_length, prompt, sampling, on_prefill)

    def close(self) -> None:
        """Stop the server, free the model, remove the socket. Twice is safe; in a forked child it does nothing."""
        if os.getpid() != self._owner:
            return
        self._server = None
        withdraw_address(self._folder)
        self._vocabulary.close()


def _weights(model: Model) -> Path:
    if model.path is None:
        raise ModelRefused(
            f'{model.id}: the engine llamacpp needs weights. Name the file in the manifest: `file = "….gguf"`.'
        )
    return model.path


def _facts(model: Model, gguf: Gguf, context_length: int | None) -> Facts:
    trained = gguf.context_length
    wanted = context_length or model.context_length
    notes: list[str] = []
    length = wanted or min(trained or DEFAULT_CONTEXT_LENGTH, DEFAULT_CONTEXT_LENGTH)
    if trained is not None and length > trained:
        notes.append(
            f"A context of {length} tokens was asked for, but the model was made for {trained}; it gets {trained}."
        )
        length = trained
    elif wanted is None and trained is not None and trained > length:
        notes.append(
            f"The model could hold {trained} tokens; it gets {length}, since the memory is taken when it loads. "
            "Set `context_length` in its manifest for more."
        )
    chat = find_template(model, gguf) is not None
    if not chat:
        notes.append(
            "This is a base model: it has no chat template, so it continues text and cannot chat. Use completions, or give "
            "it a `chat_template`."
        )
    return Facts(
        context_length=length,
        version=f"llama.cpp (xllamacpp {_version()})",
        chat=chat,
        memory_bytes=gguf.path.stat().st_size
        + gguf.cache_bytes_per_token() * max(SMALLEST_CONTEXT_LENGTH, length)
        + OVERHEAD_BYTES,
        family=model.family or gguf.text("general.basename").lower() or gguf.architecture,
        parameters=model.parameters or gguf.size_label,
        quantization=model.quantization or gguf.quantization,
        notes=(*notes, *model.notes),
    )


def _version() -> str:
    try:
        return importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        raise ModelRefused("GGUF models need the package xllamacpp, which is not installed here. Install it.") from None


def _check_memory(model: Model, facts: Facts) -> None:
    # Asked for too much, llama.cpp takes it page by page until the kernel kills the process.
    available = read_memory().available
    if available and facts.memory_bytes > available:
        raise OutOfMemory(
            f"{model.id} needs about {facts.memory_bytes >> 20} MB with a context of {facts.context_length} tokens, and "
            f"{available >> 20} MB are free. Lower `context_length` in its manifest, or unload another model."
        )


def _start(model: Model, socket: Path, key: str, threads: int | None, context_length: int) -> object:
    # Imported here: the library takes 20 MB and starts threads of its own, which must belong to the process that runs the
    # model, never to one that forks it.
    try:
        import xllamacpp  # type: ignore[import-untyped]
    except ImportError as error:
        raise EngineFailed(
            f"xllamacpp cannot be loaded: {error}. Slim systems lack a library it needs: install `libgomp1`."
        ) from error

    params: Any = xllamacpp.CommonParams()
    params.model.path = str(_weights(model))
    params.hostnames = [str(socket)]
    params.api_keys = [key]
    params.n_ctx = context_length
    params.n_batch = params.n_ubatch = int(option(model, LlamaCppEngine.OPTIONS, "batch_size"))
    params.n_parallel = 1
    params.n_threads_http = 4
    params.ctx_shift = False
    params.cache_ram_mib = 0  # A second cache, of 8 GB by default, for conversations that left the context.
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 4
    params.fit_params = False
    params.warmup = False
    params.ui = False
    params.endpoint_slots = False
    params.offline = True
    params.use_jinja = False
    params.enable_chat_template = False  # It would be rendered once at load, unbounded; nothing here uses it.
    params.sse_ping_interval = -1
    params.verbosity = _SILENT
    _read_ahead(_weights(model))
    count = threads or int(option(model, LlamaCppEngine.OPTIONS, "threads")) or _free_cores()
    for cores in (params.cpuparams, params.cpuparams_batch):
        cores.n_threads = count
        cores.poll = 0  # It would spin between two steps, on cores that others need.
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, MemoryError) as error:
        raise ModelRefused(
            f"{model.path}: llama.cpp cannot load this file. It is damaged, needs a newer version than "
            f"{_version()} of xllamacpp, or does not fit into memory."
        ) from error


def _read_ahead(path: Path) -> None:
    # The library keeps Python's lock while it loads, so no other thread runs, not even one that says "still alive". Reading
    # the file first, with the lock released, leaves the load itself with a warm cache: short, however slow the disk.
    with path.open("rb", buffering=0) as file:
        block = bytearray(8 << 20)
        while file.readinto(block):
            pass


def _free_cores() -> int:
    # llama.cpp waits for its slowest thread at every step, busily: one core more than is free makes it many times slower.
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    big = allowed & set(read_big_cores())
    return max(1, min(len(big) or len(allowed), len(allowed) - 1))
