"""What can go wrong below the queue, as one tree.

NpuError
├── ModelRefused          the model cannot be used as asked: a bad manifest, a missing file, an unknown engine
│   ├── OutOfMemory       it does not fit into what is free
│   ├── RuntimeNotFound   the vendor's library is nowhere on this machine
│   └── RuntimeRefused    that library cannot be used: damaged, for another machine, of another version than said
├── PromptRefused         this prompt cannot be run; the engine is unharmed
│   ├── ContextTooLong    more tokens than the context holds
│   ├── FieldRefused      a field of the request that this model cannot honour
│   ├── AdapterMissing    the model has no such LoRA adapter, or it could not be loaded
│   └── TemplateFailed    the model's chat template refused the messages, or broke a bound
├── SamplingRefused       a sampling value this engine cannot honour
└── EngineFailed          the engine broke while loading or running; it must be closed
"""


class NpuError(Exception):
    """The root; its message says what happened, why, and what to do."""


class ModelRefused(NpuError):
    """Raised when a model cannot be used: bad manifest, missing or damaged file, unknown engine."""


class OutOfMemory(ModelRefused):
    """Raised when a model does not fit into the memory that is free."""


class RuntimeNotFound(ModelRefused):
    """Raised when the vendor's library is nowhere on this machine; the message lists where it was looked for."""


class RuntimeRefused(ModelRefused):
    """Raised when the vendor's library cannot be used: no library, damaged, for another machine, of an unknown version."""


class PromptRefused(NpuError):
    """Raised when a prompt cannot be run. The engine is unharmed and takes the next one."""


class ContextTooLong(PromptRefused):
    """Raised, before any prefill, when prompt and answer do not fit into the context.

    `prompt_tokens`, `max_tokens` (None when the answer's length was not asked for) and `context_length` are counts of tokens.
    `at_least` says that the prompt has `prompt_tokens` or more: it was too long to be worth counting.
    """

    def __init__(
        self, prompt_tokens: int, max_tokens: int | None, context_length: int, *, at_least: bool = False
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.context_length = context_length
        self.at_least = at_least
        about = "at least " if at_least else ""
        wanted = f"{about}{prompt_tokens} in the prompt"
        if max_tokens is not None:
            wanted = f"{about}{prompt_tokens + max_tokens} ({prompt_tokens} in the prompt, {max_tokens} for the answer)"
        super().__init__(
            f"This model's maximum context length is {context_length} tokens, but the request needs {wanted}. "
            "Shorten the prompt"
            + (" or lower max_tokens." if max_tokens is not None and prompt_tokens < context_length else ".")
        )


class FieldRefused(PromptRefused):
    """Raised when a model cannot honour a field of a request. `field` is its name, `why` the reason and what to do."""

    def __init__(self, field: str, why: str) -> None:
        self.field = field
        super().__init__(f"{field} cannot be honoured: {why}")


class AdapterMissing(PromptRefused):
    """Raised when a prompt is to be answered with a LoRA adapter that is not there to answer with."""

    def __init__(self, model: str, adapter: str, why: str = "") -> None:
        super().__init__(
            f"The adapter '{adapter}' of '{model}' could not be loaded: {why}"
            if why
            else f"The model '{model}' has no adapter '{adapter}' on this board, or was loaded before it had one. Unload it, "
            "or leave the adapter out."
        )


class TemplateFailed(PromptRefused):
    """Raised when the model's chat template refuses the messages, is broken, or exceeds its bounds of time or size."""


class SamplingRefused(NpuError):
    """Raised when an engine cannot honour a sampling value. `field` is its name in `Sampling`, `why` the reason."""

    def __init__(self, field: str, why: str) -> None:
        self.field = field
        self.why = why
        name = "The format of the output" if field == "constraint" else field
        super().__init__(f"{name} cannot be honoured: {why}")


class EngineFailed(NpuError):
    """Raised when the engine broke while loading or running. It must be closed and opened anew."""
