"""The open questions about the vendor's library: the answers are the words of the simulator's switches of the same names."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from npu.rkllm.abi import Answer, Mode, State
from npu.rkllm.acceptance.listener import Heard, Listener, Outcome
from npu.rkllm.acceptance.material import Material
from npu.rkllm.acceptance.notes import Notes
from npu.rkllm.acceptance.question import UNKNOWN, Question, Unanswered

CONTEXT = 1024
"""Tokens of context that most questions are content with."""
BRIEF = 3
"""Tokens of an answer of which only the beginning is of interest; fewer than any answer has."""
LONG = 24
LONGEST = 512
"""Of an answer that is to end by itself."""
LOGIT_TOKENS = 4
"""A row of logits is up to 1 MB, and nothing says what the library does with many."""
REUSED_TOKENS = 256
MEASURABLE_MS = 5.0
"""A prefill that is shorter tells nothing by its time."""
PATIENCE = 5.0
"""Seconds that a callback is held up at most while something is looked at from another thread."""
ADAPTER: Final = "acceptance"


def callback_thread(material: Material, notes: Notes) -> str:
    outcome = Listener(material, max_tokens=BRIEF, context_length=CONTEXT).run(material.long)
    threads = {heard.thread for heard in outcome.heard}
    mine = threading.get_ident()
    if not threads:
        raise Unanswered("nothing was called back")
    others = len(threads - {mine})
    notes.note(f"{len(outcome.heard)} callbacks came on {len(threads)} thread(s), {others} of them not the caller's.")
    return "caller" if not others else "own"


def copies_structs(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=LONG, context_length=CONTEXT)
    before = _some(listener.run(material.long))
    params: Any = listener.loaded.alive[0]
    strays: list[int] = []

    def count_stray(*_: object) -> int:
        strays.append(1)
        return Answer.CONTINUE

    stray = listener.abi.LLMResultCallback(count_stray)
    notes.crash_means("no")
    # All of it stays valid memory: who reads it again sees other values, and nothing worse.
    params.model_path = b"/nowhere"
    params.max_new_tokens = 1
    callbacks: Any = listener.loaded.alive[1]
    if isinstance(callbacks, ctypes.Structure):
        callbacks.result_callback = stray
    after = listener.run(material.long)
    notes.crash_means("")
    if strays:
        notes.note(f"After the callback in its struct was exchanged, the new one was called {len(strays)} times.")
        return "no"
    if after.tokens != before:
        notes.note(f"After the parameters were changed it said {len(after.tokens)} tokens instead of {len(before)}.")
        return "no"
    notes.note(f"Path, limit and callback given to rkllm_init were changed, and the same {len(before)} tokens came.")
    return "yes"


def running_polarity(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=BRIEF, context_length=CONTEXT)

    def look() -> int:
        running: int = listener.lib.rkllm_is_running(listener.loaded.handle)
        return running

    begun, seen = threading.Event(), threading.Event()
    looked: list[int] = []

    def watch() -> None:
        if begun.wait(notes.left()):
            looked.append(look())
        seen.set()

    def reply(heard: Heard) -> int:
        begun.set()
        seen.wait(PATIENCE)  # so that the run is under way when it is looked at
        return Answer.CONTINUE

    idle = look()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    listener.run(material.long, reply=reply)
    if not looked:
        raise Unanswered("it did not say whether it runs while its callback was held up")
    notes.note(f"rkllm_is_running returned {idle} before a run and {looked[0]} during it.")
    return {(0, 1): "one", (1, 0): "zero"}.get((idle, looked[0]), UNKNOWN)


def state_after_abort(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=LONGEST, context_length=CONTEXT)
    statuses: list[int] = []

    def reply(heard: Heard) -> int:
        if not statuses:
            statuses.append(listener.abort())
        return Answer.CONTINUE

    outcome = listener.run(material.long, reply=reply)
    late = len(outcome.spoken) - 1
    notes.note(f"rkllm_abort returned {statuses[0] if statuses else None}, and rkllm_run {outcome.status}.")
    notes.note(f"{max(0, late)} more callbacks with a token came after the abort.")
    if not statuses or late > LONG:
        raise Unanswered("the abort came to nothing")
    return {0: "none", 2: "finish", 3: "error"}[outcome.terminal[-1].state if outcome.terminal else 0]


def error_status(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=BRIEF, context_length=256)
    outcome = listener.run((material.text * 2)[:300])
    if not any(heard.state == State.ERROR for heard in outcome.heard):
        raise Unanswered(f"a prompt longer than the context gave no ERROR; rkllm_run returned {outcome.status}")
    notes.note(f"A prompt of 300 tokens in a context of 256 gave ERROR, and rkllm_run returned {outcome.status}.")
    return {-1: "minus_one", 0: "zero", 1: "one"}.get(outcome.status, str(outcome.status))


def return_two(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=LONG, context_length=CONTEXT)
    usual = _some(listener.run(material.long))
    listener.clear()
    outcome = listener.run(material.long, reply=lambda heard: Answer.RELEASE)
    texts = [heard.texts[0] for heard in outcome.spoken]
    notes.note(
        f"Answered with 2 each time, it said {len(texts)} tokens instead of {len(usual)}, {sum(1 for text in texts if text)} "
        f"of them with a text, and {'ended' if outcome.terminal else 'did not end'} with FINISH."
    )
    if len(texts) < len(usual):
        return "stop"
    return "drop" if not any(texts[1:]) else "continue"


def history_zero_clears(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=LONG, context_length=CONTEXT)
    _some(listener.run(material.remember, keep_history=True))
    after = listener.run(material.recall).tokens
    size = listener.cached()
    listener.clear()
    alone = listener.run(material.recall).tokens
    if size is not None:
        notes.note(
            f"After a conversation that was kept, a run of {len(material.recall)} tokens that said {len(after)} left {size} "
            "in the cache."
        )
        return "yes" if size <= len(material.recall) + len(after) else "no"
    notes.note(f"After a conversation that was kept, its answer was {'the same' if after == alone else 'another'}.")
    return "yes" if after == alone else "no"


def after_pause(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=LONG, context_length=CONTEXT)
    prompt = material.long
    listener.run(prompt, reply=lambda heard: Answer.PAUSE)
    paused = listener.cached()
    listener.run((*prompt, *prompt[:2]), reply=lambda heard: Answer.PAUSE)
    size = listener.cached()
    notes.note(f"A pause after {len(prompt)} tokens left {paused} cached; the same prompt with 2 more left {size}.")
    if paused is None or size is None or paused < len(prompt):
        raise Unanswered("what the cache holds does not tell")
    return "append" if size >= 2 * len(prompt) else "compare"


def last_token_cached(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=BRIEF, context_length=CONTEXT)
    said = listener.run(material.long).tokens
    size = listener.cached()
    notes.note(f"A prompt of {len(material.long)} tokens, cut short after {len(said)}, left {size} in the cache.")
    if size is None or len(said) != BRIEF:
        raise Unanswered("the answer was not cut short as asked")
    return {len(material.long) + BRIEF: "yes", len(material.long) + BRIEF - 1: "no"}.get(size, UNKNOWN)


def adapter_keeps_cache(material: Material, notes: Notes) -> str:
    if material.adapter is None:
        raise Unanswered("the model's manifest names no adapter")
    listener = Listener(material, max_tokens=LONG, context_length=CONTEXT)
    if listener.abi.load_adapter(listener.loaded, Path(material.adapter), ADAPTER) != 0:
        raise Unanswered("the adapter did not load")
    prompt = (*material.text[: min(REUSED_TOKENS, len(material.text) // 2)], *material.long)
    listener.run(prompt)
    after = listener.run(prompt, adapter=ADAPTER)
    alone = []
    for _ in range(2):  # twice, lest something else on this machine made the first one slow
        listener.clear()
        alone.append(listener.run(prompt, adapter=ADAPTER))
    if after.tokens != alone[0].tokens:
        notes.note("After a run without the adapter its answer was another one than from an empty cache.")
        return "yes"
    whole = min(run.prefill_ms for run in alone)
    notes.note(
        f"After a run without the adapter its answer was the same as from an empty cache, and the prefill of {len(prompt)} "
        f"tokens took {after.prefill_ms:.1f} ms instead of {whole:.1f} ms."
    )
    if whole < MEASURABLE_MS:
        raise Unanswered("that is too short to tell whether anything was reused")
    return "yes" if after.prefill_ms < whole / 2 else "no"


def eos_delivered(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=LONGEST, context_length=CONTEXT)
    outcome = listener.run(material.short)
    said = _some(outcome)
    if len(said) >= LONGEST:
        raise Unanswered(f"the answer did not end within {LONGEST} tokens")
    told = said[-1] in material.end_tokens
    notes.note(f"The last of {len(said)} tokens {'was' if told else 'was not'} one that ends an answer.")
    for last in outcome.terminal:
        notes.note(f"{State(last.state).name} came with token {last.tokens[0] if last.tokens else None}.")
    return "yes" if told else "no"


def null_text(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=LONG, context_length=CONTEXT)
    found: dict[str, set[str]] = {}
    for prompt in (material.long, material.character):
        for heard in listener.run(prompt).heard:
            if heard.state in (State.WAITING, State.FINISH):
                found.setdefault(State(heard.state).name, set()).add(_shown(heard.texts[0]))
    for name, ways in sorted(found.items()):
        notes.note(f"With {name} the text was {' or '.join(sorted(ways))}.")
    ways = set().union(*found.values())
    if "FINISH" not in found:
        raise Unanswered("no run ended with FINISH")
    return {frozenset({"NULL"}): "yes", frozenset({"empty"}): "no"}.get(frozenset(ways), UNKNOWN)


def logits_rows(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=1, context_length=CONTEXT)
    outcome = listener.run(material.text[:LOGIT_TOKENS], mode=Mode.LOGITS)
    rows = outcome.spoken[0].rows if outcome.spoken else 0
    notes.note(f"For {LOGIT_TOKENS} tokens came {rows} row(s) of logits.")
    return {LOGIT_TOKENS: "all", 1: "last"}.get(rows, UNKNOWN)


def prefill_counts_cached(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=1, context_length=CONTEXT)
    prompt = material.text[: min(REUSED_TOKENS, len(material.text) // 2)]
    first, again = listener.run(prompt).perf, listener.run(prompt).perf
    if first is None or again is None:
        raise Unanswered("a run gave no figures")
    notes.note(
        f"The same {len(prompt)} tokens took {first.prefill_ms:.1f} ms and then {again.prefill_ms:.1f} ms, and were counted "
        f"as {first.prefill_tokens} and then {again.prefill_tokens}."
    )
    if again.prefill_tokens < first.prefill_tokens / 2:
        return "no"
    if first.prefill_ms >= MEASURABLE_MS and again.prefill_ms < first.prefill_ms / 2:
        return "yes"
    raise Unanswered("nothing seems to have been reused")


def _some(outcome: Outcome) -> list[int]:
    if not outcome.tokens:
        raise Unanswered(f"a run said nothing; rkllm_run returned {outcome.status}")
    return outcome.tokens


def _shown(text: bytes | None) -> str:
    return "NULL" if text is None else "empty" if text == b"" else "there"


def _pauses(can: Any) -> bool:
    return Answer.PAUSE in can.answers


QUESTIONS: Sequence[Question] = (
    Question(
        name="callback_thread",
        asks="Do callbacks come on the thread of rkllm_run, or on one of the library's own?",
        ask=callback_thread,
    ),
    Question(
        name="copies_structs",
        asks="Does it copy what rkllm_init is given?",
        ask=copies_structs,
    ),
    Question(
        name="running_polarity",
        asks="What does rkllm_is_running return during a run?",
        ask=running_polarity,
    ),
    Question(
        name="state_after_abort",
        asks="What is the last callback of an aborted run?",
        ask=state_after_abort,
    ),
    Question(
        name="error_status",
        asks="What does rkllm_run return after an ERROR callback?",
        ask=error_status,
    ),
    Question(
        name="return_two_before_1_3",
        asks="What does a callback's answer 2 do where it has no meaning?",
        ask=return_two,
        applies=lambda can: _pauses(can) and Answer.RELEASE not in can.answers,
    ),
    Question(
        name="history_zero_clears",
        asks="Does a run with keep_history=0 forget a conversation that was kept with 1?",
        ask=history_zero_clears,
        applies=lambda can: can.keep_history,
    ),
    Question(
        name="after_pause",
        asks="Is the input after a pause appended to the cache, or compared with it?",
        ask=after_pause,
        applies=lambda can: _pauses(can) and can.cache_size,
    ),
    Question(
        name="last_token_cached",
        asks="Is the last token of an answer that was cut short in the cache?",
        ask=last_token_cached,
        applies=lambda can: can.cache_size,
    ),
    Question(
        name="adapter_keeps_cache",
        asks="Is the cache of the model alone reused for a run with an adapter?",
        ask=adapter_keeps_cache,
        applies=lambda can: can.adapters and can.prefix_reuse,
    ),
    Question(
        name="eos_delivered",
        asks="Is the token that ends an answer told?",
        ask=eos_delivered,
        seconds=300.0,
    ),
    Question(
        name="null_text_in_waiting_finish",
        asks="Is text NULL with WAITING and FINISH, or empty?",
        ask=null_text,
    ),
    Question(
        name="logits_rows",
        asks="Do logits come for all tokens that were read, or for the last?",
        ask=logits_rows,
        applies=lambda can: can.logits,
    ),
    Question(
        name="prefill_counts_cached",
        asks="Does the count of prefilled tokens have those in it that were reused?",
        ask=prefill_counts_cached,
        applies=lambda can: can.perf and can.prefix_reuse,
    ),
)
