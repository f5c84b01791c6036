"""A reading that is held up on its way back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


class Late:
    """The first of several: what it found is handed over once `passed_on` is set. `arrived` tells that it was found."""

    def __init__(self) -> None:
        self.arrived, self.passed_on = asyncio.Event(), asyncio.Event()

    def read(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """The same as `call`, but for its first time."""

        async def held_up(*arguments: Any) -> Any:
            found, first = await call(*arguments), not self.arrived.is_set()
            self.arrived.set()
            if first:
                await self.passed_on.wait()
            return found

        return held_up
