"""Fields that would change an answer and stand elsewhere in the Ollama wire: refused by name, with the right place.

Ollama itself reads over them.
"""

from __future__ import annotations

from collections.abc import Mapping

from api.ollama.options import RANGES
from api.refusals import Refusal

_LENGTH = "Send the most tokens of an answer as 'num_predict', inside 'options'."
_FORMAT = "Send what an answer is held to as 'format'."

REFUSED: Mapping[str, Refusal] = {
    **{option: ((), "Send {field} inside 'options'.") for option in (*RANGES, "stop") if option != "num_ctx"},
    "max_tokens": ((), _LENGTH),
    "max_completion_tokens": ((), _LENGTH),
    "max_output_tokens": ((), _LENGTH),
    "max_new_tokens": ((), _LENGTH),
    "n_predict": ((-1,), _LENGTH),
    "stop_sequences": (([],), "Send them as 'stop', inside 'options'."),
    "repetition_penalty": ((1,), "Send it as 'repeat_penalty', inside 'options'."),
    "response_format": (({"type": "text"},), _FORMAT),
    "json_schema": (({},), _FORMAT),
    "reasoning_effort": ((), "Send it as 'think'."),
    "enable_thinking": ((), "Send it as 'think'."),
    "logit_bias": (({},), "This dialect has no such field; /v1/chat/completions has it."),
    "shift": ((False,), "An answer ends where the context does, with the reason 'length'; leave {field} out."),
    "n": ((1,), "There is one answer to a request here."),
}
