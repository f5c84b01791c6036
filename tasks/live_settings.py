"""Settings that may be changed while the service runs: kept in Redis, and obeyed by every process within about `FRESH` seconds.

A process starts with settings of its own. What is kept for the whole service goes before them until somebody takes it back.
What a process reads is always a whole, frozen settings object: `LiveSettings.now`.
"""

from __future__ import annotations

import difflib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar, cast

import msgspec
import redis
import redis.asyncio
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tasks import keys, logs
from tasks.connection import unavailable_as_refusal
from tasks.readings import Readings
from tasks.settings import Settings, TaskSettings, fault_of, live_names, unit_of

log = logging.getLogger("rockchipllama.settings")

FRESH = 2.0
"""Seconds between two readings by one process. A reading of nothing costs Redis about as much as a ping."""
LONGEST_VALUE = 200
"""Characters of a value, as JSON."""

S = TypeVar("S", bound=Settings)


class SettingRefused(Exception):
    """Raised when a setting cannot be changed so; the message is for whoever asked, `name` the setting."""

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        super().__init__(why)


class KeptSetting(msgspec.Struct, frozen=True):
    """What is kept of a setting: its value, who changed it, and when, in Unix seconds by that API's clock."""

    value: Any
    by: str
    at: float


class SettingView(msgspec.Struct, frozen=True):
    """One setting: its value in force, the one that this process started with, and who changed it when, if anybody did."""

    name: str
    description: str
    value: Any
    own: Any
    changed_by: str | None = None
    changed_at: float | None = None
    unit: str | None = None
    """Of its values: `s` for seconds; None where they are no amounts of anything."""


_decoder = msgspec.json.Decoder(KeptSetting)


@functools.cache
def _reader(owner: type[Settings], name: str) -> TypeAdapter[Any]:
    field = owner.model_fields[name]
    kind: Any = Annotated[field.annotation, field]
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def _checked(owner: type[Settings], name: str, value: Any) -> Any:
    try:
        # Strictly, and as JSON: true is no number, and "128" none either.
        return _reader(owner, name).validate_json(msgspec.json.encode(value), strict=True)
    except ValidationError as error:
        why = fault_of(error.errors()[0])
        meaning = owner.model_fields[name].description
        raise SettingRefused(name, f"Invalid '{name}': {why}. ({meaning})") from error


class LiveSettings(Generic[S]):
    """The settings of one class as they stand."""

    def __init__(self, own: S) -> None:
        """`own` is what the process was started with."""
        self.own = own
        self.now = own
        self._kept: Mapping[bytes, bytes] = {}
        self._found: dict[str, KeptSetting] = {}

    def obey(self, kept: Mapping[bytes, bytes]) -> bool:
        """What the service keeps: name -> `KeptSetting`. Whether that was news.

        What another version of this service means, which this one does not know or would refuse, is left out.
        """
        if kept == self._kept:
            return False
        self._kept = kept
        owner = type(self.own)
        found: dict[str, KeptSetting] = {}
        values = {}
        for name in live_names(owner):
            if (raw := kept.get(name.encode())) is not None:
                try:
                    read = _decoder.decode(raw)
                    values[name] = _checked(owner, name, read.value)
                    found[name] = read
                except (msgspec.DecodeError, SettingRefused) as error:
                    log.warning("what is kept for the setting %s is not obeyed: %s", name, error)
        self._found = found
        self.now = self.own.model_copy(update=values)
        return True

    def kept(self, name: str) -> KeptSetting | None:
        """What is kept of a setting and obeyed."""
        return self._found.get(name)


def follow(client: redis.Redis, settings: LiveSettings[TaskSettings]) -> None:
    """Read what is kept, and obey it. Raises what the client raises."""
    if settings.obey(cast("dict[bytes, bytes]", client.hgetall(keys.SETTINGS))):
        logs.set_level(settings.now.log_level)


class SettingsBook:
    """What is kept, for an API process: read every `FRESH` seconds, and changed."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        parts: Sequence[LiveSettings[Any]],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """`then` is called after each change of `parts`, whoever made this process read of it."""
        self._client = client
        self._parts = parts
        self._then = then
        self._readings = Readings()
        self._owners = {name: type(part.own) for part in parts for name in live_names(type(part.own))}

    async def refresh(self) -> None:
        """Obey what is kept now. Raises `QueueUnavailable`."""
        reading = self._readings.begin()
        kept = await self._read()
        if not self._readings.keeps(reading):
            return
        news = [part.obey(kept) for part in self._parts]
        if any(news):
            self._then()

    async def view(self) -> list[SettingView]:
        """Every setting that may be changed. Raises `QueueUnavailable`."""
        await self.refresh()
        return [_view(part, name) for part in self._parts for name in live_names(type(part.own))]

    async def change(self, wanted: Mapping[str, Any], by: str) -> list[SettingView]:
        """Keep these values from now on, None meaning what each process was started with; all of them or none. The view then.

        Raises `SettingRefused` and `QueueUnavailable`.
        """
        new = {name: self._checked(name, value, by) for name, value in wanted.items()}
        before = {shown.name: shown.value for shown in await self.view()}
        await self._write(
            {name: raw for name, raw in new.items() if raw is not None},
            [name for name, raw in new.items() if raw is None],
        )
        after = await self.view()
        for shown in after:
            if shown.name in wanted:
                was = before[shown.name]
                log.info("%s changed the setting %s from %s to %s", by, shown.name, was, shown.value)
        return after

    def _checked(self, name: str, value: Any, by: str) -> bytes | None:
        owner = self._owners.get(name)
        if owner is None:
            raise SettingRefused(name[:60], self._no_owner(name[:60]))
        if value is None:
            return None
        checked = _checked(owner, name, value)
        if len(str(checked)) > LONGEST_VALUE:
            raise SettingRefused(name, f"Invalid '{name}': it is longer than {LONGEST_VALUE} characters.")
        return msgspec.json.encode(KeptSetting(checked, by, time.time()))

    def _no_owner(self, name: str) -> str:
        others = (
            f"Those that can are {', '.join(sorted(self._owners))}; others are read when it starts (docs/settings.md)."
        )
        if any(name in owner.model_fields for owner in Settings.__subclasses__()):
            return f"The setting '{name}' cannot be changed while the service runs. {others}"
        nearest = difflib.get_close_matches(name, self._owners, n=1)
        meant = f" Did you mean '{nearest[0]}'?" if nearest else ""
        return f"There is no setting '{name}' that can be changed while the service runs.{meant} {others}"

    async def _read(self) -> dict[bytes, bytes]:
        with unavailable_as_refusal():
            return await cast("Awaitable[dict[bytes, bytes]]", self._client.hgetall(keys.SETTINGS))

    async def _write(self, new: Mapping[str, bytes], gone: Sequence[str]) -> None:
        with unavailable_as_refusal():
            async with self._client.pipeline(transaction=True) as pipe:
                if new:
                    pipe.hset(keys.SETTINGS, items=[part for item in new.items() for part in item])
                if gone:
                    pipe.hdel(keys.SETTINGS, *gone)
                await pipe.execute()


def _view(part: LiveSettings[Any], name: str) -> SettingView:
    field = type(part.own).model_fields[name]
    description = " ".join((field.description or "").split())
    kept = part.kept(name)
    return SettingView(
        name,
        description,
        getattr(part.now, name),
        getattr(part.own, name),
        kept.by if kept else None,
        kept.at if kept else None,
        unit_of(field),
    )
