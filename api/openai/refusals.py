"""Fields of the OpenAI wire that would change an answer and cannot be honoured: refused by name, never forgotten."""

from __future__ import annotations

from collections.abc import Mapping

from api.refusals import Refusal

_TOOLS = "Only a chat can be given tools: send it to /v1/chat/completions."
_SAMPLER = "Leave {field} out; the other sampling fields are listed in docs/openai.md."
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
    "continue_final_message": (
        (False,),
        "The last message is never continued; the model always begins a turn of its own.",
    ),
    "add_generation_prompt": ((True,), "The prompt always ends where the model's own turn begins."),
    "options": (({},), "Send sampling fields at the top level of the body, not inside 'options'."),
}
"""Fields that would change the answer and cannot be honoured; true in every body of this front."""

REFUSED_IN_CHAT: Mapping[str, Refusal] = {
    "best_of": ((1,), _SAMPLER),
}
REFUSED_IN_COMPLETIONS: Mapping[str, Refusal] = {
    "tools": (([],), _TOOLS),
    "tool_choice": (("none", "auto"), _TOOLS),
    "functions": (([],), _TOOLS),
    "function_call": (("none", "auto"), _TOOLS),
    "thinking_budget_tokens": ((-1,), "A text is continued without a template, so nobody knows what is thought in it."),
    "top_logprobs": ((0,), "Send the number as 'logprobs'."),
    "suffix": (
        ("",),
        "Filling in the middle is not supported: send the text before the gap as 'prompt' and leave 'suffix' out.",
    ),
}
