"""Runs GGUF models on the CPU with llama.cpp, through the llama-server that the `xllamacpp` wheel embeds.

The server has a process of its own, which the engine kills when it closes, and listens on a Unix socket in a private
directory and nowhere else. The engine is its client, exactly as the tokenizers of other processes are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from npu.chat_template import ChatTemplate
from npu.context_length import AUTO, STEPS, largest_that_fits, story
from npu.engine import Ability, Prompt, Sampling
from npu.engines import Facts, Option, Setup, option
from npu.engines.llamacpp.generation import LlamaCppGeneration
from npu.engines.llamacpp.parking import LlamaCppParking, folder_of_files
from npu.engines.llamacpp.process import ServerProcess, ServerSettings, xllamacpp_version
from npu.engines.llamacpp.replay import LlamaCppReplay
from npu.engines.llamacpp.server import Address, model_dir, publish_address, withdraw_address
from npu.engines.llamacpp.tokenizer import ServerTokenizer
from npu.engines.parking import MEGABYTE, PARKING_MB
from npu.errors import AdapterMissing, ContextTooLong, EngineFailed, ModelRefused, OutOfMemory, PromptRefused
from npu.gguf import Gguf, read_gguf
from npu.hardware import read_big_cores, read_memory
from npu.matcher import Matchers
from npu.model import Model
from npu.sampling import check_sampling
from npu.template_search import find_template
from npu.vocabulary import Vocabulary

DEFAULT_CONTEXT_LENGTH = 8192
"""The most a model gets unasked: its KV cache is allocated when it loads, and files promise 131,072 tokens and more."""

SMALLEST_CONTEXT_LENGTH = 256
"""llama.cpp rounds a context up to a multiple of this."""

OVERHEAD_BYTES = 128 << 20
"""Compute buffers, and the library itself (measured: 62 MB with a batch of 64 and 49,152 tokens of vocabulary)."""


class LlamaCppEngine:
    """One GGUF model in an embedded llama-server."""

    ABILITIES = frozenset({Ability.TEXT})
    ADAPTERS = False
    CACHES_PROMPTS = False
    OPTIONS = {  # noqa: RUF012 - a constant
        "threads": Option(
            0, 0, 256, "threads that compute; 0 leaves one core free, and the small cores of a big.LITTLE chip"
        ),
        "batch_size": Option(64, 8, 2048, "tokens prefilled at a time; an abort waits for one such step"),
        "parking_mb": PARKING_MB,
    }

    def __init__(self, model: Model, setup: Setup) -> None:
        gguf = read_gguf(_weights(model))
        facts = _facts(model, gguf, setup)
        self.context_length = facts.context_length
        self.version = facts.version
        self._vocabulary = Vocabulary(gguf)
        self._folder = model_dir(model, setup.runtime_dir)
        self._owner = os.getpid()
        self._model = model
        self._threads = setup.threads or int(option(model, self.OPTIONS, "threads")) or _free_cores()
        _check_memory(model, facts)
        self._lock = threading.Lock()
        """Held while a server is started."""
        self._closed = False
        self._last: LlamaCppGeneration | LlamaCppReplay | None = None
        """The run before, of whose tokens the server remembers the state."""
        self._last_begun = 0
        """Tokens of its prompt before its answer began."""
        self._address: Address
        most = int(option(model, self.OPTIONS, "parking_mb")) * MEGABYTE
        bytes_each = gguf.cache_bytes_per_token()
        self._parking = LlamaCppParking(lambda: self._address, most, bytes_each) if most else None
        self._server: ServerProcess | None = None
        self.tokenizer = ServerTokenizer(model, self._folder, self._vocabulary, self)
        self._matchers = Matchers(self._vocabulary, self.tokenizer)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def open(model: Model, setup: Setup) -> LlamaCppEngine:
        """Load the weights. Raises `ModelRefused`, `OutOfMemory`, `EngineFailed`."""
        return LlamaCppEngine(model, setup)

    @staticmethod
    def open_tokenizer(model: Model, setup: Setup) -> ServerTokenizer:
        """Asks the loaded engine; it decodes without one."""
        return ServerTokenizer(model, model_dir(model, setup.runtime_dir), Vocabulary(read_gguf(_weights(model))), None)

    @staticmethod
    def describe(model: Model, setup: Setup) -> Facts:
        """From the file's metadata."""
        return _facts(model, read_gguf(_weights(model)), setup)

    @staticmethod
    def chat_template(model: Model) -> ChatTemplate | None:
        """From beside the weights, or from inside them."""
        return find_template(model, read_gguf(_weights(model)))

    def generate(
        self, prompt: Prompt, sampling: Sampling, on_prefill: Callable[[int], None] | None = None
    ) -> LlamaCppGeneration | LlamaCppReplay:
        """Prepare one run. Raises `SamplingRefused`, `ContextTooLong`, `PromptRefused`; `EngineFailed` once closed."""
        if self._closed:
            raise EngineFailed("This engine was closed. Open it anew.")
        check_sampling(sampling, len(self._vocabulary))
        if not prompt.tokens:
            raise PromptRefused("The prompt is empty. Send at least one token.")
        if len(prompt.tokens) + prompt.max_tokens > self.context_length:
            raise ContextTooLong(len(prompt.tokens), prompt.max_tokens, self.context_length)
        if max(prompt.tokens) >= len(self._vocabulary) or min(prompt.tokens) < 0:
            last = len(self._vocabulary) - 1
            raise PromptRefused(f"The prompt has a token outside the vocabulary, whose ids go from 0 to {last}.")
        if prompt.adapter is not None:
            raise AdapterMissing(self._model.id, prompt.adapter)
        self.revive()
        begun = len(prompt.tokens) - prompt.said
        known = max(begun, self._remembers(prompt.tokens, begun))

        def behind(count: int) -> LlamaCppGeneration:
            part = prompt.tokens[:count]
            matcher = None
            if sampling.constraint is not None:
                matcher = self._matchers.match(sampling.constraint, part[begun:])
            return LlamaCppGeneration(
                self._address,
                self._vocabulary,
                self.context_length,
                replace(
                    prompt,
                    tokens=part,
                    said=count - begun,
                    max_tokens=prompt.max_tokens + len(prompt.tokens) - count,
                ),
                sampling,
                on_prefill,
                self.last_words,
                self.memory_mb,
                matcher,
                self._parking if os.getpid() == self._owner else None,
            )

        run: LlamaCppGeneration | LlamaCppReplay
        if prompt.said and sampling.temperature == 0 and known < len(prompt.tokens):
            behind(known)  # what it is held to is refused now
            run = LlamaCppReplay(behind, prompt, known, on_prefill)
        else:
            run = behind(len(prompt.tokens))
        self._last, self._last_begun = run, begun
        return run

    def _remembers(self, tokens: Sequence[int], begun: int) -> int:
        """How many of `tokens` the run before read and said, when its answer began at the same place."""
        if self._last is None or self._last_begun != begun:
            return 0
        pairs = zip(self._last.tokens, tokens, strict=False)
        return next(
            (place for place, (one, other) in enumerate(pairs) if one != other),
            min(len(self._last.tokens), len(tokens)),
        )

    @property
    def parks(self) -> bool:
        """See `ParkingEngine`."""
        return self._parking is not None and self._parking.parking.works

    @property
    def parked_bytes(self) -> int:
        """See `ParkingEngine`."""
        return self._parking.parking.size if self._parking is not None else 0

    def park(self) -> float:
        """See `ParkingEngine`."""
        if self._parking is None or self._server is None or not self._server.running:  # its cache is gone
            return 0.0
        return self._parking.park()

    def unpark(self) -> None:
        """See `ParkingEngine`."""
        if self._parking is not None:
            self._parking.parking.empty()

    def pause_parking(self, seconds: float) -> None:
        """See `ParkingEngine`."""
        if self._parking is not None:
            self._parking.parking.pause(seconds)

    def close(self) -> None:
        """Kill the server, remove the socket. Twice is safe, from any thread; in a forked child it does nothing."""
        if os.getpid() != self._owner:
            return
        self._closed = True
        if self._server is not None:
            self._server.close()
        if self._parking is not None:
            self._parking.parking.close()
        with self._lock:  # Who was starting a server has noticed by now.
            withdraw_address(self._folder)
            self._vocabulary.close()

    def revive(self) -> None:
        """Start a new server if this one died while nobody asked it anything. Raises as `open` does."""
        if os.getpid() != self._owner or self._server is None or self._server.running:
            return
        with self._lock:
            if not self._closed and not self._server.running:
                self._start()

    def restart(self, address: Address) -> None:
        """Replace the server that listens at `address`, whatever it is doing. Raises as `open` does."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            if not self._closed and self._address == address:
                assert self._server is not None
                self._server.close()
                self._start()

    def last_words(self) -> str | None:
        """How the server ended, as a sentence; None while it runs, and in a forked child, which cannot know."""
        return self._server.last_words() if self._server is not None and os.getpid() == self._owner else None

    def memory_mb(self) -> float:
        """Millions of bytes the server held at the most; 0 while there is none."""
        return self._server.memory_mb if self._server is not None else 0.0

    def _start(self) -> None:
        self._last = None
        if self._parking is not None:
            self._parking.forget()
        self._address = publish_address(self._folder, self.context_length)
        self._server = ServerProcess()
        if self._closed:
            self._server.close()
        self._server.load(
            ServerSettings(
                path=str(_weights(self._model)),
                socket=str(self._address.socket),
                key=self._address.key,
                context=self.context_length,
                batch=int(option(self._model, self.OPTIONS, "batch_size")),
                threads=self._threads,
                files=folder_of_files() if self._parking is not None else "",
            )
        )


def _weights(model: Model) -> Path:
    if model.path is None:
        raise ModelRefused(
            f'{model.id}: the engine llamacpp needs weights. Name the file in the manifest: `file = "….gguf"`.'
        )
    return model.path


def _facts(model: Model, gguf: Gguf, setup: Setup) -> Facts:
    if gguf.text("general.type") == "adapter":
        raise ModelRefused(
            f"{gguf.path} is a LoRA adapter and no model, and llama.cpp is given none here. For a model on the NPU, put it "
            "beside that model and name it in its manifest."
        )
    trained = gguf.context_length
    wanted = setup.context_length or model.context_length
    notes: list[str] = []

    def needed(context: int) -> int:
        return memory_needed(gguf.path.stat().st_size, gguf.cache_bytes_per_token(), context)

    if wanted == AUTO:
        given = model.context_length
        most = min(trained or DEFAULT_CONTEXT_LENGTH, given if isinstance(given, int) else STEPS[-1])
        length = largest_that_fits(most, setup.model_memory, needed)
        notes.append(story(length, setup.model_memory, needed(length)))
    else:
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
    notes.append(
        "Above temperature 0, an answer that was interrupted goes on unbroken, but not in the words it would have had."
    )
    template = find_template(model, gguf)
    if template is None:
        notes.append(
            "This is a base model: it has no chat template, so it continues text and cannot chat. Use completions, or give "
            "it a `chat_template`."
        )
    return Facts(
        context_length=length,
        version=f"llama.cpp (xllamacpp {xllamacpp_version()})",
        chat=template is not None,
        template=template,
        memory_bytes=needed(length),
        family=model.family or gguf.text("general.basename").lower() or gguf.architecture,
        parameters=model.parameters or gguf.size_label,
        quantization=model.quantization or gguf.quantization,
        notes=(*notes, *model.notes),
    )


def memory_needed(weights: int, cache: int, context: int) -> int:
    """Bytes that a model takes once loaded, with so many of weights, and so many in its cache for each token of the context."""
    return weights + cache * max(SMALLEST_CONTEXT_LENGTH, context) + OVERHEAD_BYTES


def _check_memory(model: Model, facts: Facts) -> None:
    # Asked for too much, llama.cpp takes it page by page until the kernel kills the process.
    available = read_memory().available
    if available and facts.memory_bytes > available:
        raise OutOfMemory(
            f"{model.id} needs about {facts.memory_bytes >> 20} MB with a context of {facts.context_length} tokens, and "
            f"{available >> 20} MB are free. Lower `context_length` in its manifest, or unload another model."
        )


def _free_cores() -> int:
    # llama.cpp waits for its slowest thread at every step, busily: one core more than is free makes it many times slower.
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    big = allowed & set(read_big_cores())
    return max(1, min(len(big) or len(allowed), len(allowed) - 1))
