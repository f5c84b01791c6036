"""Fields of the OpenAI wire that would change an answer and cannot be honoured: refused by name, never forgotten."""

from __future__ import annotations

from collections.abc import Mapping

from api.refusals import Refusal

_TOOLS = "Only a chat can be given tools: send it to /v1/chat/completions."
_SAMPLER = "Leave {field} out; the other sampling fields are listed in docs/openai.md."
_LENGTH = "Send the most tokens of an answer as 'max_tokens'."
_NO_AUDIO = "The models here answer in text only."

REFUSED: Mapping[str, Refusal] = {
    "modalities": ((["text"], []), _NO_AUDIO),
    "audio": (({},), _NO_AUDIO),
    "web_search_options": ((), "The models here cannot search the web."),
    "n_probs": ((0,), "Send 'logprobs' instead, and 'top_logprobs' in a chat."),
    "prompt_logprobs": ((0, False), "The prompt's own log probabilities are not computed; leave {field} out."),
    "min_tokens": ((0,), "An answer has no least number of tokens."),
    "use_beam_search": ((False,), _SAMPLER),
    "length_penalty": ((1,), _SAMPLER),
    "dynatemp_range": ((0,), _SAMPLER),
    "dry_multiplier": ((0,), _SAMPLER),
    "xtc_probability": ((0,), _SAMPLER),
    "top_n_sigma": ((-1, 0), _SAMPLER),
    "stop_token_ids": (([],), "Answers do not stop at token ids; use 'stop' with text."),
    "bad_words": (([],), "Words cannot be forbidden; use 'logit_bias'."),
    "include_stop_str_in_output": ((False,), "A stop sequence is never part of the answer here."),
    "samplers": (([], ""), "The order of the samplers is fixed; leave {field} out."),
    "allowed_token_ids": (([],), "Send 'logit_bias', or what an answer is held to as 'response_format'."),
    "lora": (([],), "An adapter is a name behind the model's, with a colon between."),
    "t_max_predict_ms": ((0, -1), "An answer has no longest time; cancel its job instead, or set the most tokens."),
    "cache_prompt": (
        (True,),
        "What was read of a prompt is always used again where the engine can; leave {field} out.",
    ),
    "id_slot": ((-1, 0), "Which cache a prompt is read into is chosen by the service; leave {field} out."),
    "options": (({},), "Send sampling fields at the top level of the body, not inside 'options'."),
}
"""Fields that would change the answer and cannot be honoured; true in every body of this front."""


def of_other_dialects(length: str, output: str, system: str) -> dict[str, Refusal]:
    """What other dialects call the most tokens of an answer, what it is held to, and the system message; and what else they
    have that an endpoint has under another name. The three sentences say the names it has there."""
    return {
        "max_output_tokens": ((), length),
        "max_new_tokens": ((), length),
        "max_tokens_to_sample": ((), length),
        "num_predict": ((-1,), length),
        "n_predict": ((-1,), length),
        "stop_sequences": (([],), "Send them as 'stop'."),
        "format": (("",), output),
        "output_config": (({},), output),
        "output_format": ((), output),
        "system": (("", []), system),
        "instructions": (("",), system),
    }


_THINKING = "Send 'think', or 'thinking_budget_tokens' with the most tokens of a thought."

REFUSED_IN_CHAT: Mapping[str, Refusal] = {
    "best_of": ((1,), _SAMPLER),
    "thinking": ((), _THINKING),
    "enable_thinking": ((), _THINKING),
    "chat_template": (("",), "A model's chat template is set in its manifest, or with POST /api/create."),
    "documents": (([],), "Put their text into the 'messages'."),
    **of_other_dialects(
        "Send the most tokens of an answer as 'max_completion_tokens'.",
        "Send what an answer is held to as 'response_format'.",
        "Send it as the first of the 'messages', with the role 'system'.",
    ),
}
REFUSED_IN_COMPLETIONS: Mapping[str, Refusal] = {
    "continue_final_message": ((False,), "A text is always continued; there are no messages here."),
    "add_generation_prompt": ((True,), "A text is continued without a template."),
    "tools": (([],), _TOOLS),
    "tool_choice": (("none", "auto"), _TOOLS),
    "functions": (([],), _TOOLS),
    "function_call": (("none", "auto"), _TOOLS),
    "thinking_budget_tokens": ((-1,), "A text is continued without a template, so nobody knows what is thought in it."),
    "top_logprobs": ((0,), "Send the number as 'logprobs'."),
    "max_completion_tokens": ((), _LENGTH),
    **of_other_dialects(
        _LENGTH,
        "Send what an answer is held to as 'response_format'.",
        "A text is continued without a template; write all that the model shall read into 'prompt'.",
    ),
}
