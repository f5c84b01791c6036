"""The watch over the disk of the embedded Valkey, on a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
import redis.asyncio

from ops.up.disk import DiskWatch
from tasks import keys
from tasks.errors import StorageFull
from tasks.jobs import Lane, new_job_id
from tasks.requests import ChatRequest, Message
from tasks.store import JobStore

pytestmark = pytest.mark.anyio


async def test_little_room_refuses_what_is_new(
    client: redis.Redis, aclient: redis.asyncio.Redis, valkey_url: str, tmp_path: Path
) -> None:
    """With the figures, to client and owner once each; what was accepted before stays so, and with room all is as before, also
    for an `up` that comes after one that was killed."""
    sock = Path(valkey_url.removeprefix("unix://"))
    store = JobStore(aclient, queue_limit=5, job_ttl=60, deadline=600)
    said: list[str] = []

    async def accept(job: str) -> None:
        await store.accept(job, "echo", ChatRequest((Message("user", "hi"),)), lane=Lane.INTERACTIVE, owner="")

    before = new_job_id()
    await accept(before)
    for _ in range(2):
        DiskWatch(tmp_path, sock, 10**18, said.append).look()
    watch = DiskWatch(tmp_path, sock, 10**18, said.append)
    watch.look()
    watch.look()
    assert len(said) == 3 and "1,000,000,000,000 MB are left to requests accepted before" in said[0]
    with pytest.raises(StorageFull, match=r"The disk of the job queue has [\d,]+ MB of [\d,]+ MB free; .* try again"):
        await accept(new_job_id())
    await accept(before)
    assert 0 < client.pttl(keys.REFUSAL) <= 60_000
    watch._reserve = 0
    watch.look()
    assert len(said) == 4 and "requests are accepted" in said[3]
    await accept(new_job_id())

    client.set(keys.REFUSAL, "left behind")
    DiskWatch(tmp_path, sock, 0, said.append).look()
    await accept(new_job_id())
    assert len(said) == 4 and client.zcard(keys.waiting("echo")) == 3
