"""The network before a server, Redis most often, in the hands of a test: it delays, loses replies, and breaks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path


class Cable:
    """Passes connections to `near` on to `far`; each is a Unix socket, or a port of loopback."""

    def __init__(self, near: Path | int, far: Path | int) -> None:
        self.near, self._far = near, far
        self._delay = 0.0
        self._whole = True
        self._swallows = False
        self._connections: dict[asyncio.Task[None], bool] = {}
        """Those that stand; True: a reply was lost on it, so that whatever came later would be taken for it."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    async def _listen(self) -> asyncio.Server:
        if isinstance(self.near, int):
            return await asyncio.start_server(self._connect, "127.0.0.1", self.near)
        return await asyncio.start_unix_server(self._connect, str(self.near))

    @property
    def url(self) -> str:
        """What goes through it says this for Redis."""
        return f"unix://{self.near}"

    def cut(self) -> None:
        """End all connections, and each new one at once."""
        self._whole = False
        self._loop.call_soon_threadsafe(self._end, list(self._connections))

    def swallow_replies(self) -> None:
        """Redis does what it is told, and nobody hears of it."""
        self._swallows = True

    def delay(self, seconds: float) -> None:
        """Whatever passes takes so much longer, each way."""
        self._delay = seconds

    def mend(self) -> None:
        """All is well; connections with lost replies are ended, as their time-outs would."""
        self._whole, self._swallows, self._delay = True, False, 0.0
        self._loop.call_soon_threadsafe(lambda: self._end([task for task, lost in self._connections.items() if lost]))

    def close(self) -> None:
        """Take it away."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        tasks = list(self._connections)
        self._end(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _end(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = False
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                if self._whole:
                    await self._join(task, reader, writer)
        finally:
            del self._connections[task]
            writer.close()

    async def _join(self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(self._far, int):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._far)
        else:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._far))
        both = [
            asyncio.ensure_future(self._pass_on(task, reader, far_writer, replies=False)),
            asyncio.ensure_future(self._pass_on(task, far_reader, writer, replies=True)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._end(both)
            await asyncio.gather(*both, return_exceptions=True)
            far_writer.close()

    async def _pass_on(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        while data := await reader.read(1 << 16):
            if self._delay:
                await asyncio.sleep(self._delay)
            if replies and self._swallows:
                self._connections[task] = True
            if replies and self._connections[task]:
                continue
            writer.write(data)
            await writer.drain()
