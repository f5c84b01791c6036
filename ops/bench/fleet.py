"""What boards would make of some traffic, in virtual time: a day of it in seconds.

The queue is the service's own, with all its rules, on a Valkey of its own (`ops/bench/virtual.py`). Boards are reckoned: they
read and say tokens at the pace the vendor measured, keep the last conversation in their cache, read long prompts in slices and
are paused by chats between two of them, as the engine for the NPU does. What the service adds to that is two constants.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from npu.errors import ModelRefused
from npu.simulator.profile import Profile, measured, profile_of
from ops.bench.fleet_board import Board, Held, prefill_of
from ops.bench.served import Served, summary
from ops.bench.trace import Ask, before_each
from ops.bench.virtual import VirtualQueue, virtual_queue
from tasks import keys
from tasks.claims import Claim, Later, Renewal, claim_next, hand_back, renew
from tasks.errors import TasksError
from tasks.events import Failed, FailureCode, Finished, FinishReason, Timings, Usage, encode_events
from tasks.jobs import JobState, Lane, new_job_id
from tasks.policy import Ageing
from tasks.queue import send
from tasks.requests import ChatRequest, Message
from tasks.scripts import END, FAIL_QUEUED
from tasks.settings import TaskSettings
from tasks.store import JobStore

MODEL = "fleet"
FIRST_TOKEN = 4.0
"""Milliseconds that the service adds to a first token, and before a worker is at its next job (`bench overhead`)."""
KNOCK = 5.0
"""Milliseconds until a worker that need not serve its job now has looked whether a chat waits."""
LEASE = 1e6
"""Seconds: nobody dies here."""
ROUNDING = 1.0
"""Milliseconds after which a moment is surely over by the service's clock, which knows whole ones."""
TTL = 1.0
"""Seconds, real ones, for which ended jobs are kept."""

_FAILED = encode_events([Failed(FailureCode.DEADLINE, "")])


@dataclass(slots=True)
class Progress:
    """One request on its way."""

    ask: Ask
    history: int = 0
    """Tokens that were said before in its conversation, its prefix included."""
    sent: float | None = None
    first: float | None = None
    ended: float | None = None
    said: int = 0
    cached: int = 0
    last_token: float = 0.0
    longest_gap: float = 0.0
    refused: str = ""


@dataclass(slots=True)
class Conversation:
    """What was said so far."""

    tokens: int = 0
    messages: list[Message] = field(default_factory=list)


class Fleet:
    """`run` may be called once."""

    def __init__(
        self,
        queue: VirtualQueue,
        asks: Sequence[Ask],
        profiles: Sequence[Profile],
        settings: TaskSettings,
        *,
        own_keys: bool = False,
    ) -> None:
        """With `own_keys` each user shows an API key of its own, so that they take turns; else all share one."""
        self._queue = queue
        self._clock = queue.clock
        self._start = queue.clock.now
        self._settings = settings
        self._own_keys = own_keys
        self.served: list[Served] = []
        """What became of each request, once it has run."""
        self._store = JobStore(
            queue.async_client, queue_limit=settings.queue_limit, job_ttl=TTL, deadline=settings.deadline
        )
        self._boards = [Board(f"board-{number}", profile) for number, profile in enumerate(profiles, 1)]
        self._idle = deque(self._boards)
        self._asks = [Progress(ask) for ask in asks]
        self._before = before_each(asks)
        self._behind: dict[int, list[int]] = {}
        self._conversations: dict[str, Conversation] = {}
        self._jobs: dict[str, int] = {}
        self._moments: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def run(self) -> dict[str, Any]:
        """Serve it all; the figures, as `summary` has them, and each board's."""
        # They breathe for as long as this lasts, so that conversations may wait for them.
        self._queue.client.hset(
            keys.PRESENCE, mapping={f"{MODEL}@{board.name}": f"{10**15}:" for board in self._boards}
        )
        for place, before in enumerate(self._before):
            if before is None:
                self._at(self._start + self._asks[place].ask.at * 1000, partial(self._send, place))
            else:
                self._behind.setdefault(before, []).append(place)
        while self._moments:
            when, _, what = heapq.heappop(self._moments)
            self._clock.now = max(self._clock.now, when)
            what()
        self.served = [self._served(progress) for progress in self._asks]
        found = summary(self.served)
        span = found["seconds"] * 1000
        found["boards"] = [
            {
                "name": board.name,
                "answered": board.answered,
                "tokens": board.tokens,
                "utilisation": round(board.busy / span, 3) if span else 0.0,
            }
            for board in self._boards
        ]
        return found

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._moments, (when, next(self._count), what))

    def _after(self, ms: float, what: Callable[[], None]) -> None:
        self._at(self._clock.now + ms, what)

    def _send(self, place: int) -> None:
        progress = self._asks[place]
        ask = progress.ask
        progress.sent = self._clock.now
        talk = Conversation() if ask.conversation is None else self._talk(ask.conversation)
        progress.history = talk.tokens or ask.prefix_tokens
        talk.messages.append(Message(role="user", content=f"{ask.conversation or place}/{len(talk.messages)}"))
        job = new_job_id()
        self._jobs[job] = place
        request = ChatRequest(messages=tuple(talk.messages))
        try:
            self._queue.run(
                self._store.accept(
                    *(job, MODEL, request),
                    lane=ask.lane,
                    owner=ask.user if self._own_keys else "",
                    deadline=self._settings.deadline,
                    on_disk=False,
                )
            )
        except TasksError as error:
            self._refuse(place, type(error).__name__)
            return
        self._after(self._settings.deadline * 1000 + ROUNDING, partial(self._give_up, job))
        self._call()
        if ask.lane is Lane.INTERACTIVE:
            for board in self._boards:
                if board.held is not None and self._asks[board.held.place].ask.lane is not Lane.INTERACTIVE:
                    self._after(KNOCK, partial(self._look, board, board.run))

    def _talk(self, name: str) -> Conversation:
        return self._conversations.setdefault(name, Conversation())

    def _give_up(self, job: str) -> None:
        """Its deadline is over, whether it waits or runs. A claim may have found that before."""
        place = self._jobs[job]
        if self._asks[place].ended is not None:
            return
        for board in self._boards:
            if (held := board.held) is not None and held.place == place:
                self._leave_off(board, held, self._clock.now - held.began)
                self._end(held.claim, _FAILED, JobState.FAILED)
                self._free(board, held)
                break
        else:
            FAIL_QUEUED.run(self._queue.client, [keys.job(job), keys.events(job), keys.waiting(MODEL)], job, _FAILED, 1)
        self._refuse(place, "deadline")

    def _refuse(self, place: int, why: str) -> None:
        """What was not answered was not said in its conversation."""
        progress = self._asks[place]
        progress.refused = why
        if progress.ask.conversation is not None:
            self._talk(progress.ask.conversation).messages.pop()
        self._ended(place)

    def _call(self) -> None:
        """Whoever is idle takes calls, in turn, as Celery's workers do."""
        while self._idle and self._queue.client.rpop(keys.calls(MODEL)) is not None:
            board = self._idle.popleft()
            self._after(FIRST_TOKEN / 2, partial(self._claim, board))

    def _claim(self, board: Board) -> None:
        found = claim_next(
            *(self._queue.client, MODEL),
            worker=f"{MODEL}@{board.name}",
            board=board.name,
            child=1,
            call_id="-",
            lease=LEASE,
            ageing=Ageing(self._settings.background_wait, self._settings.batch_wait),
        )
        if isinstance(found, Claim):
            self._begin(board, found)
            return
        if isinstance(found, Later):
            self._after(found.seconds * 1000, self._call_again)
        self._idle.append(board)
        self._call()

    def _call_again(self) -> None:
        send(self._queue.client, MODEL)
        self._call()

    def _begin(self, board: Board, claim: Claim) -> None:
        place = self._jobs[claim.job]
        progress = self._asks[place]
        ask = progress.ask
        prompt = progress.history + ask.prompt_tokens + progress.said
        cached = 0
        if ask.conversation is not None and ask.conversation == board.conversation:
            cached = min(board.resident, prompt - 1)
        elif ask.prefix is not None and ask.prefix == board.prefix:
            cached = min(board.prefix_tokens, prompt - 1)
        to_read = prompt - cached
        prefill, stops = prefill_of(board, to_read)
        board.run += 1
        board.held = Held(claim, place, self._clock.now, cached, to_read, prefill, stops, progress.said)
        board.conversation, board.prefix, board.prefix_tokens = ask.conversation, ask.prefix, ask.prefix_tokens
        progress.cached = max(progress.cached, cached) if progress.said else cached
        left = ask.answer_tokens - progress.said
        self._after(prefill + left * board.token_ms, partial(self._finish, board, board.run))

    def _look(self, board: Board, run: int) -> None:
        """A chat waits: the worker renews its lease, and hears whether it is to pause."""
        held = board.held
        if held is None or board.run != run:
            return
        if renew(self._queue.client, held.claim, LEASE, "decode", 0) is not Renewal.PAUSED:
            return
        since = self._clock.now - held.began
        if since < held.prefill:
            heard = next((stop for stop in held.stops if stop >= since), held.prefill)
        else:
            said = math.ceil((since - held.prefill) / board.token_ms) if board.token_ms else 0
            heard = held.prefill + said * board.token_ms
        self._at(held.began + heard, partial(self._pause, board, run, heard))

    def _pause(self, board: Board, run: int, heard: float) -> None:
        held = board.held
        if held is None or board.run != run:
            return
        self._leave_off(board, held, heard)
        hand_back(
            *(self._queue.client, MODEL, held.claim.job, held.claim.token, "a chat came first"),
            crashed=False,
            paused_after=min(heard, held.prefill),
        )
        self._free(board, held)

    def _leave_off(self, board: Board, held: Held, heard: float) -> None:
        """Keep what was read and said by then, so many milliseconds after it began."""
        said = int((heard - held.prefill) / board.token_ms + 0.001) if board.token_ms and heard > held.prefill else 0
        self._note(board, held, said)
        read = held.to_read if heard >= held.prefill else round(held.to_read * heard / held.prefill)
        board.resident = held.cached + read + said

    def _end(self, claim: Claim, last: bytes, state: JobState) -> None:
        END.run(
            self._queue.client,
            [keys.job(claim.job), keys.events(claim.job), keys.running(MODEL)],
            *(claim.token, claim.seq, claim.seq + 1, last, b"", state.value, last),
        )

    def _finish(self, board: Board, run: int) -> None:
        held = board.held
        if held is None or board.run != run:
            return
        progress = self._asks[held.place]
        ask = progress.ask
        self._note(board, held, ask.answer_tokens - held.said_before)
        prompt = progress.history + ask.prompt_tokens
        board.resident = prompt + ask.answer_tokens
        last = encode_events(
            [Finished(FinishReason.LENGTH, Usage(prompt, ask.answer_tokens, progress.cached), Timings())]
        )
        self._end(held.claim, last, JobState.FINISHED)
        board.answered += 1
        progress.ended = self._clock.now + FIRST_TOKEN / 2
        if ask.conversation is not None:
            talk = self._talk(ask.conversation)
            talk.tokens = prompt + ask.answer_tokens
            talk.messages.append(Message(role="assistant", content="said"))
        self._ended(held.place)
        self._free(board, held)

    def _note(self, board: Board, held: Held, said: int) -> None:
        """So many tokens were said since it began."""
        if not said:
            return
        progress = self._asks[held.place]
        board.tokens += said
        first = held.began + held.prefill + board.token_ms + FIRST_TOKEN / 2
        if progress.first is None:
            progress.first = first
        else:
            progress.longest_gap = max(progress.longest_gap, (first - progress.last_token) / 1000)
        if said > 1:
            progress.longest_gap = max(progress.longest_gap, board.token_ms / 1000)
        progress.last_token = first + (said - 1) * board.token_ms
        progress.said = held.said_before + said

    def _free(self, board: Board, held: Held) -> None:
        board.busy += self._clock.now - held.began
        board.held = None
        self._after(FIRST_TOKEN / 2, partial(self._claim, board))

    def _ended(self, place: int) -> None:
        for behind in self._behind.get(place, ()):
            when = self._start + self._asks[behind].ask.at * 1000
            self._at(max(when, self._clock.now), partial(self._send, behind))

    def _served(self, progress: Progress) -> Served:
        def seconds(ms: float | None) -> float | None:
            return None if ms is None else (ms - self._start) / 1000

        sent = seconds(progress.sent)
        return Served(
            ask=progress.ask,
            sent=progress.ask.at if sent is None else sent,
            first=seconds(progress.first),
            ended=seconds(progress.ended),
            tokens=progress.said,
            prompt_tokens=progress.history + progress.ask.prompt_tokens,
            cached_tokens=progress.cached,
            longest_gap=progress.longest_gap,
            refused=progress.refused,
        )


def reckon(
    asks: Sequence[Ask], profiles: Sequence[Profile], settings: TaskSettings, *, own_keys: bool = False
) -> dict[str, Any]:
    """What boards of these paces would make of that traffic. Raises `UpError` where no Valkey can be had."""
    with virtual_queue() as queue:
        return Fleet(queue, asks, profiles, settings, own_keys=own_keys).run()


def profile_named(name: str) -> Profile:
    """The one of a chip and a model, such as `rk3588:qwen3-0.6b` or `rk3576:qwen3-0.6b:w4a16`. Raises `ModelRefused`."""
    soc, _, rest = name.partition(":")
    model, _, dtype = rest.partition(":")
    family, _, size = model.rpartition("-")
    if not (soc and family and size):
        raise ModelRefused(
            f"'{name}' is no profile: a chip and a model belong there, such as rk3588:qwen3-0.6b, or with a "
            f"quantization rk3576:qwen3-0.6b:w4a16. {measured(soc)}"
        )
    return profile_of(soc, family, size, dtype or "w8a8")
