"""What the vendor's documents give no figures for, measured: each gives rows for a table, and no answer."""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from ctypes import CDLL, c_void_p
from pathlib import Path

from npu.rkllm.abi import Mode, Settings, State, bind, family_of
from npu.rkllm.acceptance.listener import Heard, Listener, Outcome
from npu.rkllm.acceptance.material import Material
from npu.rkllm.acceptance.notes import Notes
from npu.rkllm.acceptance.question import Question, Unanswered
from npu.rkllm.init_log import capture_output, parse_init_log

ABORTS = 5
STEPS = 8
"""Logits asked for in a row."""
SPOKEN = 16
"""Tokens that are said at each depth."""
FIRST_DEPTH, LAST_DEPTH = 128, 16384
REUSED = (64, 512)
IN_CACHE = 512
BATCHES = (1, 2, 4, 8)
BATCH_TOKENS = 32
GROWTH = 3.0
"""A prompt twice as long is taken to need at most so many times longer."""
_DEFAULTS = ("max_context_len", "max_new_tokens", "n_keep", "skip_special_token", "is_async", "ignore_eos_token")
_EXTENDED = ("embed_flash", "enabled_cpus_num", "enabled_cpus_mask", "n_batch", "use_cross_attn", "base_domain_id")


def defaults(material: Material, notes: Notes) -> str:
    lib, abi = CDLL(material.library), family_of(material.runtime)
    bind(lib, abi)
    params = abi.default_params(lib)
    for names, struct in ((_DEFAULTS, params), (_EXTENDED, params.extend_param)):
        for name in names:
            if hasattr(struct, name):
                notes.row(field=name, value=int(getattr(struct, name)))
    return ""


def failed_init(material: Material, notes: Notes) -> str:
    lib, abi = CDLL(material.library), family_of(material.runtime)
    bind(lib, abi)
    callback = abi.LLMResultCallback(lambda *_: 0)
    for what, path in (("a file that is not there", "/nowhere.rkllm"), ("a file that is no model", __file__)):
        settings = Settings(model=Path(path), context_length=512, max_tokens=1)
        with capture_output():
            loaded = abi.init_with(lib, settings, callback)
        given = loaded.handle.value if isinstance(loaded.handle, c_void_p) else None
        notes.row(given=what, status=loaded.status, handle="NULL" if not given else "set")
    return ""


def load(material: Material, notes: Notes) -> str:
    begun = time.monotonic()
    with capture_output() as said:
        Listener(material, max_tokens=1)
    took = time.monotonic() - begun
    facts = parse_init_log(said.text())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    notes.row(
        seconds=round(took, 2),
        context=material.context_length,
        resident_mb=int(status["VmRSS"].split()[0]) // 1024,
        most_mb=int(status["VmHWM"].split()[0]) // 1024,
        open_files=len(os.listdir("/proc/self/fd")),
    )
    for name in (
        *("runtime", "driver", "platform", "toolkit", "target_platform", "dtype", "max_context_limit"),
        *("npu_cores", "cpus"),
    ):
        notes.note(f"{name}: {getattr(facts, name)}")
    return ""


def abort(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=IN_CACHE)
    begun = threading.Event()
    aborted = [_aborted(listener, material.long, begun, 0.0, begun.set) for _ in range(ABORTS)]
    told = _abort_row(notes, "between two tokens", aborted)
    prompt = _text(material, 1, min(1024, len(material.text) - 64))
    listener.clear()
    whole = listener.run(prompt, reply=_stop_at_once(listener)).prefill_ms / 1000
    listener.clear()
    begun.set()
    aborted = [_aborted(listener, _text(material, 3, len(prompt)), begun, whole / 4)]
    told = _abort_row(notes, f"in a prefill of {len(prompt)} tokens", aborted) or told
    notes.note(f"That prefill takes {whole * 1000:.0f} ms, and was aborted after a quarter of it.")
    if not told:
        raise Unanswered("every run had ended before it could be aborted")
    return ""


def reuse(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=1)
    for count in (count for count in REUSED if count < len(material.text)):
        listener.clear()
        prompt = _text(material, count, count)
        first, again = listener.run(prompt), listener.run(prompt)
        longer = listener.run((*prompt[:-1], *_text(material, 5, 32)))
        notes.row(
            tokens=count,
            first_ms=_ms(first.prefill_ms),
            again_ms=_ms(again.prefill_ms),
            with_32_new_ms=_ms(longer.prefill_ms),
            counted=_counted(first),
            counted_again=_counted(again),
            counted_with_32_new=_counted(longer),
        )
    return ""


def logits(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=1)
    for count in (0, min(IN_CACHE, len(material.text) // 2)):
        listener.clear()
        if count:
            listener.run(_text(material, 7, count), keep_history=True)
        times = []
        for token in material.text[:STEPS]:
            outcome = listener.run([token], mode=Mode.LOGITS, keep_history=True)
            if not outcome.spoken or outcome.spoken[0].rows < 1:
                raise Unanswered(f"no logits came; rkllm_run returned {outcome.status}")
            times.append((outcome.ended - outcome.began) * 1000)
        notes.row(cached=count, median_ms=_ms(statistics.median(times)), longest_ms=_ms(max(times)))
    return ""


def batches(material: Material, notes: Notes) -> str:
    for slots in BATCHES:
        listener = Listener(material, max_tokens=BATCH_TOKENS, context_length=512, slots=slots)
        outcome = listener.run(*[material.long] * slots)
        said = [sum(1 for heard in outcome.spoken if heard.tokens[slot] >= 0) for slot in range(slots)]
        seconds = outcome.spoken[-1].at - outcome.spoken[0].at if len(outcome.spoken) > 1 else 0.0
        notes.row(
            slots=slots,
            together_tps=round(sum(max(0, count - 1) for count in said) / seconds, 1) if seconds else None,
            prefill_ms=_ms((outcome.spoken[0].at - outcome.began) * 1000) if outcome.spoken else None,
            fewest_tokens=min(said),
            most_tokens=max(said),
            ended=",".join(State(heard.state).name for heard in outcome.terminal),
        )
        listener.close()
    return ""


def speeds(material: Material, notes: Notes) -> str:
    listener = Listener(material, max_tokens=SPOKEN)
    took = 0.0
    for count in _depths(len(material.text) - SPOKEN):
        if took * GROWTH > notes.left():
            notes.note(f"{count} tokens and more were left out for want of time.")
            break
        listener.clear()
        begun = time.monotonic()
        outcome = listener.run(_text(material, count, count))
        took = time.monotonic() - begun
        if not outcome.spoken:
            raise Unanswered(f"a prompt of {count} tokens was not answered; rkllm_run returned {outcome.status}")
        first = (outcome.spoken[0].at - outcome.began) * 1000
        said, seconds = len(outcome.spoken) - 1, outcome.spoken[-1].at - outcome.spoken[0].at
        perf = outcome.perf
        notes.row(
            tokens=count,
            first_token_ms=_ms(first),
            prefill_tps=_rate(count, first),
            decode_tps=_rate(said, seconds * 1000),
            own_prefill_tps=_rate(perf.prefill_tokens, perf.prefill_ms) if perf is not None else None,
            own_decode_tps=_rate(perf.generate_tokens, perf.generate_ms) if perf is not None else None,
        )
    return ""


def _aborted(
    listener: Listener,
    prompt: Sequence[int],
    begun: threading.Event,
    wait: float,
    on_token: Callable[[], None] = lambda: None,
) -> tuple[Outcome, float]:
    """A run that is aborted from another thread `wait` seconds after `begun`, and by the monotonic clock when that was:
    infinity when it had ended before."""
    at: list[float] = []
    over = threading.Event()

    def end() -> None:
        begun.wait()
        if not over.wait(wait):
            at.append(time.monotonic())
            listener.abort()

    def reply(heard: Heard) -> int:
        on_token()
        return 0

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    outcome = listener.run(prompt, reply=reply)
    over.set()
    begun.set()
    thread.join()
    begun.clear()
    return outcome, at[0] if at else math.inf


def _abort_row(notes: Notes, where: str, aborted: Sequence[tuple[Outcome, float]]) -> bool:
    """Of those that came in time; False when there are none."""
    heard = [(outcome, at) for outcome, at in aborted if at < outcome.ended]
    if not heard:
        return False
    times = [(outcome.ended - at) * 1000 for outcome, at in heard]
    notes.row(
        where=where,
        times=len(heard),
        median_ms=_ms(statistics.median(times)),
        longest_ms=_ms(max(times)),
        most_tokens_after=max(sum(1 for one in outcome.spoken if one.at > at) for outcome, at in heard),
        ended=_words(State(one.state).name for outcome, _ in heard for one in outcome.terminal),
        returned=_words(str(outcome.status) for outcome, _ in heard),
    )
    return True


def _words(found: Iterable[str]) -> str:
    return " or ".join(sorted(set(found))) or "nothing"


def _stop_at_once(listener: Listener) -> Callable[[Heard], int]:
    def reply(heard: Heard) -> int:
        listener.abort()
        return 0

    return reply


def _depths(most: int) -> Iterator[int]:
    count = FIRST_DEPTH
    while count < min(most, LAST_DEPTH):
        yield count
        count *= 2
    if most > 0:
        yield min(most, LAST_DEPTH)  # as much as the context holds


def _text(material: Material, start: int, count: int) -> tuple[int, ...]:
    """So many tokens of text, which begin otherwise for another start, so that nothing of them is cached."""
    start %= len(material.text)
    return (material.text[start:] + material.text[:start])[:count]


def _counted(outcome: Outcome) -> int | None:
    return outcome.perf.prefill_tokens if outcome.perf is not None else None


def _ms(value: float) -> float:
    return round(value, 1)


def _rate(count: int, milliseconds: float) -> float | None:
    return round(count / milliseconds * 1000, 2) if count > 0 and milliseconds > 0 else None


MEASURES: Sequence[Question] = (
    Question(name="load", asks="What does loading take, and what does the library tell meanwhile?", ask=load),
    Question(name="defaults", asks="What are the library's own defaults?", ask=defaults, seconds=30.0),
    Question(name="failed_init", asks="What comes of a load that fails?", ask=failed_init, seconds=60.0),
    Question(name="abort", asks="How long does an abort take?", ask=abort, seconds=300.0),
    Question(name="reuse", asks="Is a prefix prefilled once?", ask=reuse, seconds=300.0),
    Question(
        name="logits",
        asks="How long does one token's logits take, by tokens in the cache?",
        ask=logits,
        applies=lambda can: can.logits and can.keep_history,
        seconds=300.0,
    ),
    Question(
        name="batches",
        asks="How fast are several prompts in lock-step?",
        ask=batches,
        applies=lambda can: can.batches,
        seconds=600.0,
    ),
    Question(name="speeds", asks="How fast is it, by the length of the prompt?", ask=speeds, seconds=1800.0),
)
