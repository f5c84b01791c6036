"""Traffic to measure with: who asks what, and when. From a file, or like that of a program that people use."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from tasks.jobs import Lane

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]

OPEN_WEBUI, HOME_ASSISTANT = "open-webui", "home-assistant"


class TraceError(Exception):
    """Raised when a trace cannot be read; the message is for the user."""

    usage = True
    """It was asked wrongly: exit code 2."""


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request, a line of JSON in a trace.

    It is sent `at` so many seconds from the start, or once the request before it has ended: the last one above it of its own
    conversation, or of the one that it comes `after`.
    """

    at: Annotated[float, msgspec.Meta(ge=0, le=10_000_000)]
    prompt_tokens: Tokens
    """What is new in this turn; what was said before in its conversation comes on top."""
    answer_tokens: Tokens
    user: Name = "user-1"
    conversation: Name | None = None
    """Whose turn this is; None: it stands alone."""
    after: Name | None = None
    prefix: Name | None = None
    """The system message it begins with, which others of the same name share."""
    prefix_tokens: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    lane: Lane = Lane.INTERACTIVE


def read(path: Path) -> list[Ask]:
    """The requests in a file, by the time they are sent at. Raises `TraceError`."""
    decoder = msgspec.json.Decoder(Ask)
    asks = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TraceError(f"The trace {path} cannot be read: {error.strerror}.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            asks.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TraceError(
                f'Line {number} of {path} is no request ({error}). One looks like this: {{"at": 1.5, "prompt_tokens": 120, '
                '"answer_tokens": 80}'
            ) from error
    if not asks:
        raise TraceError(f"The trace {path} has no requests.")
    return sorted(asks, key=lambda ask: ask.at)


def write(path: Path, asks: Sequence[Ask]) -> None:
    """The file that `read` reads."""
    path.write_bytes(b"".join(msgspec.json.encode(ask) + b"\n" for ask in asks))


def before_each(asks: Sequence[Ask]) -> list[int | None]:
    """For each request the place of the one that must have ended before it is sent; None: there is none."""
    last: dict[str, int] = {}
    found: list[int | None] = []
    for place, ask in enumerate(asks):
        found.append(last.get(ask.after or ask.conversation or ""))
        if ask.conversation is not None:
            last[ask.conversation] = place
    return found


def named(name: str, users: int, seconds: float, seed: int) -> list[Ask]:
    """The traffic of so many users of `open-webui` or `home-assistant`, else that in the file `name`, whose users are its own.

    Raises `TraceError`.
    """
    if is_file(name):
        return read(Path(name))
    chance = random.Random(f"{name} {users} {seconds} {seed}")
    asks = [ask for user in range(1, users + 1) for ask in _PROGRAMS[name](f"user-{user}", seconds, chance)]
    asks = sorted((ask for ask in asks if ask.at < seconds), key=lambda ask: ask.at)
    if not asks:
        raise TraceError(f"Nobody asks anything within {seconds:.0f} s: measure for longer, or with more users.")
    return asks


def is_file(name: str) -> bool:
    """Whether that is the traffic in a file, which has its own users and times."""
    return name not in _PROGRAMS


def _open_webui(user: str, seconds: float, chance: random.Random) -> Iterator[Ask]:
    """Conversations of some turns, with time to read and to write; behind the first answer the program asks for a title,
    tags and follow-up questions by itself."""
    at, count = chance.expovariate(1 / 20), 0
    while at < seconds:
        count += 1
        conversation = f"{user}/{count}"
        for turn in range(chance.randint(1, 6)):
            prompt, answer = _about(chance, 40, 10, 400), _about(chance, 150, 20, 500)
            yield Ask(at=at, user=user, conversation=conversation, prompt_tokens=prompt, answer_tokens=answer)
            for side in (20, 30, 60) if turn == 0 else ():
                yield Ask(
                    at=at,
                    user=user,
                    after=conversation,
                    prompt_tokens=300 + prompt + answer,
                    answer_tokens=side,
                    lane=Lane.BACKGROUND,
                )
            at += 10 + chance.expovariate(1 / 30)
        at += chance.expovariate(1 / 120)


def _home_assistant(user: str, seconds: float, chance: random.Random) -> Iterator[Ask]:
    """Short commands, each a conversation of its own or two, behind a long description of the house."""
    at, count = chance.expovariate(1 / 30), 0
    while at < seconds:
        count += 1
        for _ in range(chance.randint(1, 2)):
            yield Ask(
                at=at,
                user=user,
                conversation=f"{user}/{count}",
                prefix=f"the house of {user}",
                prefix_tokens=900,
                prompt_tokens=_about(chance, 14, 5, 40),
                answer_tokens=_about(chance, 25, 8, 80),
            )
            at += 4 + chance.expovariate(1 / 5)
        at += chance.expovariate(1 / 60)


def _about(chance: random.Random, middle: int, least: int, most: int) -> int:
    """Mostly around `middle`, sometimes several times as much."""
    return max(least, min(most, round(chance.lognormvariate(0, 0.7) * middle)))


_PROGRAMS = {OPEN_WEBUI: _open_webui, HOME_ASSISTANT: _home_assistant}
