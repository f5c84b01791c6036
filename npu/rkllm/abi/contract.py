"""What every family of runtimes is asked and what it answers, in values that know no version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import CDLL, Structure, c_void_p, string_at
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Prototype(NamedTuple):
    """One exported function: its name, what it returns, what it takes."""

    name: str
    restype: Any
    argtypes: tuple[Any, ...]


class State(IntEnum):
    """Why the runtime calls back. The numbers are those of every family; 1.1 has one more, read as NORMAL."""

    NORMAL = 0
    """A token, or in the other modes what was asked for."""
    WAITING = 1
    """A token whose bytes do not yet complete a character."""
    FINISH = 2
    ERROR = 3


class Mode(IntEnum):
    """What a run is to give. The numbers are those of every family that has the mode."""

    GENERATE = 0
    HIDDEN = 1
    """The last hidden layer, a row for each token of the input."""
    LOGITS = 2
    """Logits, a row for each token of the input: never ask this of a long one."""


class Answer(IntEnum):
    """What a callback returns."""

    CONTINUE = 0
    PAUSE = 1
    """Let the run return and keep its cache; the next run goes on from there. Only without history."""
    RELEASE = 2
    """Free the buffer of these rows now instead of keeping it until the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a family can do: declared here, so that nobody finds out from a crash. It can do what is named in its file."""

    max_context: int
    """Tokens the longest context may hold, as far as the vendor has said."""
    answers: frozenset[Answer] = frozenset({Answer.CONTINUE})
    """What its callback may return. Any other answer becomes CONTINUE."""
    clear_cache_arguments: int = 0
    """How many its call to clear the cache takes; 0 where it has none."""
    running_value: int | None = None
    """What `rkllm_is_running` returns during a run; None where the vendor's texts contradict each other."""

    hidden_states: bool = False
    logits: bool = False
    """Logits, but never of several slots at once."""
    perf: bool = False
    """Counts and times with FINISH."""
    adapters: bool = False
    """LoRA adapters, several loaded and one chosen per run."""
    cache_files: bool = False
    """The cache of a prompt written to a file and read back."""
    batches: bool = False
    """Several slots advanced in lock-step by one run."""

    per_run_sampling: bool = False
    """Otherwise the values given to `init` stay."""
    per_run_max_tokens: bool = False
    """Otherwise the limit given to `init` stays."""
    keep_history: bool = False
    """A run may go on where the one before it ended."""
    prefix_reuse: bool = False
    """A prompt that begins as the last one did is not prefilled from its start, on models with full attention."""
    cache_size: bool = False
    """It tells how many tokens its cache holds."""
    keep_tokens: bool = False
    """Tokens at the start of the context can be spared when it overflows."""
    ignore_eos: bool = False
    several_eos: bool = False
    """A model may have more than one token that ends an answer."""

    chat_template: bool = False
    """Its template for text can be replaced, or emptied."""
    function_tools: bool = False
    roles: bool = False
    """Text may come from a tool instead of the user."""
    thinking_flag: bool = False
    """Thinking can be switched off for text that the runtime's own template renders."""

    embed_flash: bool = False
    """The embedding table may stay on storage."""
    cpu_choice: bool = False
    """The processor cores that help the NPU can be named."""
    memory_domains: bool = False
    """A model may be put into another of the NPU's memory domains than the first without harm."""
    cross_attention: bool = False
    host_tokenizer: bool = False
    """A model exported without tokenizer or embedding table may ask the host for them."""


@dataclass(frozen=True, slots=True)
class NativeSampling:
    """The nine numbers the runtime itself samples by, under C's names, with the defaults the vendor documents.

    `top_k` 1 is greedy. There is no seed, no min_p and no bias: whoever needs those samples from logits.
    """

    top_k: int = 40
    top_p: float = 0.9
    temperature: float = 0.8
    repeat_penalty: float = 1.1
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is fixed for the life of a handle. None and the empty sequence leave the library's own default."""

    model: Path
    context_length: int
    """Tokens, prompt and answer together; its cache is allocated whole."""
    max_tokens: int
    """The longest answer of any run."""
    sampling: NativeSampling = NativeSampling()
    skip_special_tokens: bool = True
    """Leave the text of control tokens out of what callbacks carry."""
    keep_tokens: int | None = None
    """Tokens spared at the start when the context overflows."""
    ignore_eos: bool = False
    memory_domain: int = 0
    """The NPU's IOMMU domain the model is put into; one domain addresses about 4 GB."""
    embed_flash: bool | None = None
    """Whether the embedding table stays on storage: less memory, more latency."""
    cpus: Sequence[int] = ()
    """Numbers of the processor cores to use; at least as many as the model has NPU cores."""
    slots: int = 1
    """Inputs each run takes, and results each callback carries."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text of one turn, which the runtime's own template wraps and its own tokenizer reads."""

    text: str
    role: str = "user"
    """`user` or `tool`."""
    thinking: bool = True


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids, which no template touches."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One call of the runtime. None leaves what `init` was given."""

    inputs: Sequence[Text | Tokens]
    """One for each slot, all of them every time."""
    mode: Mode = Mode.GENERATE
    keep_history: bool = False
    sampling: NativeSampling | None = None
    max_tokens: int | None = None
    adapter: str | None = None
    """Name of a loaded adapter; None is the model alone."""
    cache_file: Path | None = None
    """Where the cache of this prompt is written when the run ends."""
    number: int = 0
    """Comes back with each of its callbacks, so that a late one is not taken for the next run's; 0 is none."""


class Rows:
    """Rows of 32-bit floats in the library's memory: `count` of them, `width` numbers each.

    They are the callback's for as long as it lasts, and what should stay must be copied by then. Afterwards every
    copy is refused, for the memory is the library's again.
    """

    __slots__ = ("_address", "count", "width")

    def __init__(self, address: int, count: int, width: int) -> None:
        self._address = address
        self.count = count
        self.width = width

    def copy(self, first: int = 0, stop: int | None = None) -> memoryview[float]:
        """The numbers of rows `first` to before `stop`, one after another. Raises `ValueError` after the callback."""
        if not self._address:
            raise ValueError("These rows went back to the library when its callback returned.")
        first, stop, _ = slice(first, stop).indices(self.count)
        size = max(0, stop - first) * self.width * 4
        return memoryview(string_at(self._address + first * self.width * 4, size)).cast("f")

    def last(self) -> memoryview[float]:
        """The numbers of the last row."""
        return self.copy(self.count - 1)

    def expire(self) -> None:
        """Refuse every copy from now on."""
        self._address = 0


@dataclass(frozen=True, slots=True)
class Perf:
    """What a run cost, by the runtime's own clock. `prefill_tokens` does not count what was reused."""

    prefill_ms: float
    prefill_tokens: int
    generate_ms: float
    generate_tokens: int
    memory_mb: float
    """The most memory the process ever held."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one callback says of one slot. NULL text is empty text; the bytes may end inside a character."""

    text: bytes
    token: int
    """Negative: this slot had ended before."""
    hidden: Rows | None = None
    logits: Rows | None = None
    perf: Perf | None = None
    """With FINISH, where the family has it."""


OnResult = Callable[[State, tuple[Result, ...], int], Answer]
"""Told of each callback: the state, a result for each slot, and the number of the run they belong to (0: it has none).
No results come with ERROR, since nobody says what they hold.

It is called from a thread that is not documented, holds up the runtime as long as it lasts, and must not call the
library, `rkllm_abort` excepted. It should not raise: what it raises is logged by type and answered with CONTINUE.
"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One try of `init`. Its owner holds on to it until `rkllm_destroy` has returned, and so keeps `alive` alive."""

    lib: CDLL
    status: int
    """0 when the model is loaded; then alone may it be given to other calls."""
    handle: c_void_p
    """NULL after a failure on some runtimes, anything on others: judge by `status`."""
    slots: int
    """Inputs each run must bring."""
    alive: list[object]
    """What the library may still point at: the parameters with their strings, the callback, adapters."""


class Abi(Protocol):
    """One family of runtimes with the same layout. Each is a module; `bind` comes before any of its calls.

    Calls return the library's status: 0 is good. They refuse, before the library is touched, what the family cannot
    do by its `CAPABILITIES`, and numbers or strings that C would silently cut: `init` and `load_adapter` raise
    `ModelRefused`, `infer` raises `PromptRefused`, and a path no file can have raises `ModelRefused` anywhere.
    """

    @property
    def RUNTIMES(self) -> tuple[str, ...]:
        """Its versions, oldest first; the first one names the family."""

    @property
    def CAPABILITIES(self) -> Capabilities: ...

    @property
    def PROTOTYPES(self) -> tuple[Prototype, ...]:
        """Every function its library exports."""

    @property
    def LLMResultCallback(self) -> Any:
        """The C type of its callback."""

    def default_params(self, lib: CDLL) -> Structure:
        """The library's own defaults, as its `RKLLMParam`."""

    def init(self, lib: CDLL, settings: Settings, on_result: OnResult) -> Loaded:
        """Load a model. Blocks for seconds to a minute."""

    def init_with(self, lib: CDLL, settings: Settings, callback: Any) -> Loaded:
        """The same with an `LLMResultCallback` of one's own, which nothing stands before: for who asks the library itself."""

    def infer(self, loaded: Loaded, run: Run) -> int:
        """Run once. Blocks until the run has finished, failed, paused or been aborted; callbacks come meanwhile.

        Everything the library is given here lives until this returns.
        """

    def load_adapter(self, loaded: Loaded, path: Path, name: str, scale: float = 1.0) -> int:
        """Load a LoRA adapter under a name for `Run.adapter`."""

    def clear_cache(self, loaded: Loaded, keep_system_prompt: bool = False) -> int:
        """Forget every slot's conversation. Does nothing where a family keeps nothing from run to run."""

    def cache_sizes(self, loaded: Loaded) -> tuple[int, ...] | None:
        """Tokens in the cache of each slot; None where the runtime cannot or will not tell."""

    def result_callback(self, on_result: OnResult, slots: int) -> Any:
        """The C function that tells `on_result`. It never raises; whoever passes it to C keeps it alive."""

    def read_result(self, result: Structure, state: State) -> Result:
        """One `RKLLMResult` as a neutral record."""
