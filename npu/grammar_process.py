"""Tries a grammar in a process of its own, which may die of it: the compiler goes deeper with each rule, until the stack ends.

It runs as a script and imports nothing of this project: `python -I grammar_process.py MEMORY_BYTES STACK_BYTES STATES SECONDS`,
with `{"grammars": [TEXT, …]}` or `{"gbnf": TEXT}` as standard input. It writes `{"error": WHY}`, which is empty for good
grammars, or `{"lark": TEXT}`, what the other is in Lark's notation.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import threading
import time
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

WALK_SECONDS = 1.0
"""Of a processor's time, for which answers are tried out, for all grammars together; most end within some milliseconds."""
END = 256
CLOSING = b'"}])>\n, '
"""What is likely to end something."""


class Bytes:
    """A vocabulary of all bytes, and an end."""

    eos_token_id = END
    bos_token_id = None
    tokens = (*(bytes((byte,)) for byte in range(256)), b"\xff<end>")
    special_token_ids = (END,)

    def __call__(self, data: bytes) -> list[int]:
        return list(data)


def try_out(asked: dict[str, Any], states: int) -> None:
    """Answer what was asked."""
    if "gbnf" in asked:
        try:
            answer = {"lark": any_to_lark(asked["gbnf"])}
        except Exception as error:  # it raises bare ones
            answer = {"error": f"the grammar cannot be read: {error}"}
    else:
        limits = LLParserLimits(max_lexer_states=states, verbose_errors=False)
        found = (LLMatcher.validate_grammar(text, limits=limits) for text in asked["grammars"])
        answer = {"error": next(filter(None, found), "") or walk(asked["grammars"], limits)}
    sys.stdout.write(json.dumps(answer))


def walk(grammars: list[str], limits: LLParserLimits) -> str:
    """Why no answer can be given that fits, as far as it shows on the way to a short one. Some grammars are read well, and then
    nothing fits them, or what fits is too much to be followed."""
    tokenizer = LLTokenizer(TokenizerWrapper(Bytes()), slices=[])
    left = WALK_SECONDS
    for text in grammars:
        matcher, chance = LLMatcher(tokenizer, text, log_level=0, limits=limits), random.Random(0)
        end = time.process_time() + left  # what it takes to read it is not counted
        if matcher.is_error():  # it names tokens of its model, of which nothing is known here
            continue
        while not matcher.is_accepting() and time.process_time() < end:
            mask = matcher.compute_bitmask()
            if not matcher.is_error():
                start = chance.randrange(256)
                order = (*CLOSING, *range(start, 256), *range(start))
                byte = next((byte for byte in order if mask[byte >> 3] >> (byte & 7) & 1), None)
                if byte is None:  # it asks for a token of its model
                    break
                matcher.consume_token(byte)
            if matcher.is_error():
                return str(matcher.get_error())
        left = end - time.process_time()
    return ""


def main() -> None:
    """Try one, with less of a stack than whoever will use it."""
    memory, stack, states = map(int, sys.argv[1:4])
    # Its signal ends this process, also in the midst of C code.
    signal.setitimer(signal.ITIMER_PROF, float(sys.argv[4]))
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
