"""Where the time of a job went: parts that follow one another and add up to all of it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import msgspec

from tasks.events import Timings, Usage
from tasks.jobs import JobView
from tasks.waits_for import WaitsFor


class PartKind(StrEnum):
    """What a job's time was spent on."""

    WAITING = "waiting"
    """It waited for a worker."""
    INTERRUPTED = "interrupted"
    """A worker had it, and it was paused or handed back."""
    HANDED_OVER = "handed_over"
    """A worker had it, and another board read it meanwhile, to go on behind what was said."""
    LOADING = "loading"
    """Its model was being loaded."""
    PREFILL = "prefill"
    """Its prompt was computed."""
    DECODE = "decode"
    """Its answer was made."""
    HANDLING = "handling"
    """A worker had it and the engine did not compute: the prompt was prepared, the answer parsed."""
    PUBLISH = "publish"
    """The end's way into the record, and the claim's out of it. What is published before goes while the engine computes."""
    RUNNING = "running"
    """A worker had it, and it failed or was cancelled before anybody said what the time went on."""


_BROKEN = {
    "here": "it goes on with what this board served last, but differs from that after token {}",
    "elsewhere": "another board had its conversation in its cache",
    "gone": "others were served since its conversation was",
}
"""What broke the prefix, by where its conversation was."""


_HELD: dict[str, str] = {
    WaitsFor.LOAD: "its model was not loaded yet",
    WaitsFor.ROOM: "its model waited for room",
    WaitsFor.BOARD: "no board that had its model was there",
    WaitsFor.QUEUE: "its queue was paused",
}
"""What else kept a job, by the word in its record."""


class Part(msgspec.Struct, frozen=True):
    """Some milliseconds, on a board unless it waited, and what there is to say of them."""

    kind: PartKind
    ms: float
    board: str | None = None
    why: str | None = None


def account(view: JobView, *, ids: bool = False) -> list[Part]:
    """The parts in their order: up to the end of a job that has ended, else up to the newest wait or claim. `ids` has those of
    the jobs that were before it told."""
    return list(_parts(view, ids))


def _parts(view: JobView, ids: bool) -> Iterator[Part]:
    now = view.created_at
    why = _stood(view, ids)
    for claim in view.claims:
        yield _waited(now, claim.started_at, why)
        over = claim.goes_to is not None
        yield Part(
            PartKind.HANDED_OVER if over else PartKind.INTERRUPTED,
            _ms(claim.started_at, claim.ended_at),
            claim.board,
            f"{claim.why}; what was said is kept" if over else claim.why,
        )
        now, why = claim.ended_at, "after it was handed over" if over else "after it was interrupted"
    if view.waiting_since is not None and view.waiting_since > now:
        # More claims than a record keeps.
        yield Part(PartKind.INTERRUPTED, _ms(now, view.waiting_since), None, "further times, of which nothing is kept")
        now = view.waiting_since
    if view.board is not None and view.started_at is not None:
        yield _waited(now, view.started_at, why)
        if view.ended_at is not None:
            yield from _ran(view, _ms(view.started_at, view.ended_at))
    elif view.ended_at is not None:
        yield _waited(now, view.ended_at, why)


def _waited(since: float, until: float, why: str) -> Part:
    return Part(PartKind.WAITING, _ms(since, until), None, why or None)


def _ran(view: JobView, ms: float) -> Iterator[Part]:
    times = view.timings or Timings()
    decode_ms = times.decode_ms - times.earlier_ms
    known = times.load_ms + times.prefill_ms + decode_ms
    if not known:
        yield Part(PartKind.RUNNING, ms, view.board, view.error.message if view.error is not None else None)
        return
    # The engine's clock is another, and counts no whole milliseconds.
    scale = min(1.0, ms / known)
    again = f"{view.prompt_tokens_again} tokens of it had been computed before" if view.prompt_tokens_again else None
    # What is known of its conversation is from the first claim, and what was cached from the last.
    cached = _cached(view.usage, None if view.claims else view.home) if view.usage else None
    spent = (
        (PartKind.LOADING, times.load_ms, None),
        (PartKind.PREFILL, times.prefill_ms, "; ".join(word for word in (cached, again) if word) or None),
        (PartKind.DECODE, decode_ms, _said(view.usage, times) if view.usage else None),
    )
    for kind, took, why in spent:
        if took:
            yield Part(kind, took * scale, view.board, why)
    rest = max(0.0, ms - known)
    if not times.work_ms:  # an earlier release did not tell
        yield Part(PartKind.HANDLING, rest, view.board)
        return
    publish = min(rest, max(0.0, ms - times.work_ms))
    yield Part(PartKind.HANDLING, rest - publish, view.board)
    yield Part(PartKind.PUBLISH, publish, view.board)


def _said(usage: Usage, times: Timings) -> str:
    return f"{usage.completion_tokens} tokens{', with those of earlier attempts' if times.earlier_ms else ''}"


def _stood(view: JobView, ids: bool) -> str:
    """What it waited for when it was accepted. Nobody before it is told only where nothing else is known."""
    held = _HELD.get(view.held or "")
    if view.ahead is None or (held and not view.ahead):
        return f"{held} when it was accepted" if held else ""
    return f"{view.ahead} before it when it was accepted{_behind(view, ids)}{f'; {held} then' if held else ''}"


def _behind(view: JobView, ids: bool) -> str:
    told = [
        f"{'one that ran' if before.running else 'one that waited'} ({before.lane}{f', {before.id}' if ids else ''})"
        for before in view.behind
    ]
    return f": {', '.join(told)}" if told else ""


def _cached(usage: Usage, home: str | None) -> str:
    loaded = f", {usage.parked_tokens} of them loaded from where they were parked" if usage.parked_tokens else ""
    said = f"{usage.cached_tokens} of {usage.prompt_tokens} tokens from the cache{loaded}"
    if usage.cached_tokens * 2 >= usage.prompt_tokens or usage.parked_tokens or home not in _BROKEN:
        return said
    return f"{said}: {_BROKEN[home].format(usage.cached_tokens)}"


def _ms(since: float, until: float) -> float:
    return round((until - since) * 1000, 3)
