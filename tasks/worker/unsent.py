"""What of an answer's events a client has not read yet, where an earlier claim has sent a part of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.events import Event, ReasoningDelta, TextDelta, ToolCallDelta
from tasks.worker.begun import CannotContinue


def unsent(said: Sequence[Event], sent: Sequence[Event]) -> list[Event]:
    """The rest of `said` behind `sent`, however either of them is cut into events. Raises `CannotContinue`."""
    whole, part = _runs(said), _runs(sent)
    for place, (kind, text) in enumerate(part):
        last = place == len(part) - 1
        if place >= len(whole) or whole[place][0] != kind or not _begins(whole[place][1], text, last):
            raise CannotContinue(
                "What is on record of this answer does not spell what was sent of it, as when two versions of the service "
                "work side by side, so it cannot be gone on with. Ask again."
            )
    rest = whole[len(part) :]
    if part and (left := whole[len(part) - 1][1][len(part[-1][1]) :]):
        rest = [(part[-1][0], left), *rest]
    return [_with(event, text) for event, text in rest]


def _begins(whole: str, part: str, last: bool) -> bool:
    return whole.startswith(part) if last else whole == part


def _runs(events: Iterable[Event]) -> list[tuple[Event, str]]:
    """Neighbours that say more of the same thing as one: each without its text, and the text."""
    runs: list[tuple[Event, list[str]]] = []
    for event in events:
        kind = _with(event, "")
        if not runs or runs[-1][0] != kind or kind is event:
            runs.append((kind, []))
        runs[-1][1].append(_text(event))
    return [(kind, "".join(texts)) for kind, texts in runs]


def _text(event: Event) -> str:
    match event:
        case TextDelta(text) | ReasoningDelta(text) | ToolCallDelta(_, text):
            return text
    return ""


def _with(event: Event, text: str) -> Event:
    match event:
        case TextDelta(_, choice):
            return TextDelta(text, choice)
        case ReasoningDelta(_, choice):
            return ReasoningDelta(text, choice)
        case ToolCallDelta(index, _, choice):
            return ToolCallDelta(index, text, choice)
    return event
