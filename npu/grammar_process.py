"""Tries a grammar in a process of its own, which may die of it: the compiler goes deeper with each rule, until the stack ends.

It runs as a script and imports nothing of this project: `python -I grammar_process.py MEMORY_BYTES STACK_BYTES STATES`, with
`{"grammar": TEXT}` or `{"gbnf": TEXT}` as standard input. It writes `{"error": WHY}`, which is empty for a good grammar, or
`{"lark": TEXT}`, what the other is in Lark's notation.
"""

from __future__ import annotations

import json
import resource
import sys
import threading

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark


def try_out(asked: dict[str, str], states: int) -> None:
    """Answer what was asked."""
    if "gbnf" in asked:
        try:
            answer = {"lark": any_to_lark(asked["gbnf"])}
        except Exception as error:  # it raises bare ones
            answer = {"error": f"the grammar cannot be read: {error}"}
    else:
        limits = LLParserLimits(max_lexer_states=states, verbose_errors=False)
        answer = {"error": LLMatcher.validate_grammar(asked["grammar"], limits=limits)}
    sys.stdout.write(json.dumps(answer))


def main() -> None:
    """Try one, with less of a stack than whoever will use it."""
    memory, stack, states = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    threading.stack_size(stack)
    thread = threading.Thread(target=try_out, args=(json.load(sys.stdin), states))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
