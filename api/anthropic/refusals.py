"""Fields of the Anthropic wire that would change an answer and cannot be honoured."""

from __future__ import annotations

from collections.abc import Mapping

from api.refusals import Refusal

_LENGTH = "Send the most tokens of an answer as 'max_tokens'."
_FORMAT = "Send what an answer is held to as 'output_config.format'."
_THINKING = "Send 'thinking', and how hard to think as 'output_config.effort'."
_ELSEWHERE = "This dialect has no such field; /v1/chat/completions has it."

REFUSED: Mapping[str, Refusal] = {
    "mcp_servers": (
        ([],),
        "This service connects to no MCP servers: connect to them in your program, and send their tools in 'tools'.",
    ),
    "container": ((), "There are no containers to run code in; leave {field} out."),
    "stop": (("", []), "Send it as 'stop_sequences'."),
    "max_completion_tokens": ((), _LENGTH),
    "max_output_tokens": ((), _LENGTH),
    "max_new_tokens": ((), _LENGTH),
    "max_tokens_to_sample": ((), _LENGTH),
    "num_predict": ((-1,), _LENGTH),
    "n_predict": ((-1,), _LENGTH),
    "response_format": (({"type": "text"},), _FORMAT),
    "format": (("",), _FORMAT),
    "json_schema": (({},), _FORMAT),
    "grammar": (("",), _FORMAT),
    "reasoning_effort": ((), _THINKING),
    "think": ((), _THINKING),
    "enable_thinking": ((), _THINKING),
    "thinking_budget_tokens": ((-1,), "Send it as 'thinking.budget_tokens'."),
    "functions": (([],), "Send them as 'tools'."),
    "function_call": (("none", "auto"), "Send it as 'tool_choice'."),
    "parallel_tool_calls": ((True,), "Send it as 'tool_choice.disable_parallel_tool_use', the other way round."),
    "instructions": (("",), "Send them as 'system'."),
    "options": (({},), "Send sampling fields at the top level of the body, not inside 'options'."),
    "n": ((1,), "There is one answer to a request here."),
    "seed": ((), _ELSEWHERE),
    "min_p": ((0,), _ELSEWHERE),
    "typical_p": ((1,), _ELSEWHERE),
    "presence_penalty": ((0,), _ELSEWHERE),
    "frequency_penalty": ((0,), _ELSEWHERE),
    "repetition_penalty": ((1,), _ELSEWHERE),
    "repeat_penalty": ((1,), _ELSEWHERE),
    "logit_bias": (({},), _ELSEWHERE),
    "logprobs": ((False,), _ELSEWHERE),
    "top_logprobs": ((0,), _ELSEWHERE),
}

SERVED_TOOLS = (
    "web_search_",
    "web_fetch_",
    "code_execution_",
    "tool_search_tool_",
    "advisor_",
)
"""Beginnings of the types of tools that Anthropic's own servers run. Nobody runs them here, so the model is not told of them."""
