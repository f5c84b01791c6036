"""What an API process holds for its whole life: one Redis pool, one live subscription, the roster, the relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from api.blobs import Blobs
from api.loading import Loading
from api.needs import Services
from api.openai.feeding import Feeding
from api.presence import breathing
from api.relay import Relay
from api.runtime_settings import following
from api.runtimes import Runtimes
from api.settings import ApiSettings
from api.shelf import Shelf
from api.storage import LocalStorage, Storage
from api.sweeping import sweeping
from api.texts import Texts
from api.webhooks import calling
from tasks import logs
from tasks.api_keys import ApiKeys
from tasks.asking import Commander
from tasks.batch import BatchBook
from tasks.boards import BoardBook
from tasks.connection import connect_async, unavailable_as_refusal
from tasks.disk import Disk
from tasks.feed import LiveFeed
from tasks.files import FileBook
from tasks.job_book import JobBook
from tasks.live_settings import LiveSettings, SettingsBook
from tasks.queue_book import QueueBook
from tasks.roster import Roster
from tasks.settings import TaskSettings, redis_url
from tasks.store import JobStore
from tasks.tracing import Tracing
from tasks.tracing import current as current_span
from tasks.webhooks import CallBook


def storage_of(settings: ApiSettings, data_dir: Path) -> Storage:
    """Where files lie, as the settings say. Raises `OSError` when that names no object store."""
    if settings.files_url is None:
        return LocalStorage(data_dir / "files")
    # Few need it, and it is larger than the rest of the API.
    from api.object_storage import ObjectStorage

    return ObjectStorage(settings.files_url)


@asynccontextmanager
async def open_services(
    live: LiveSettings[ApiSettings], tasks_settings: TaskSettings, tracing: Tracing | None = None
) -> AsyncIterator[Services]:
    """Open everything; close it in reverse, `tracing` last. Starts also while Redis is away: requests get 503 until it is."""
    settings, live_tasks = live.now, LiveSettings(tasks_settings)
    url = redis_url(tasks_settings)
    async with AsyncExitStack() as stack:
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        client = connect_async(url)
        stack.push_async_callback(client.aclose)
        feed = await stack.enter_async_context(LiveFeed(client))
        commander = await stack.enter_async_context(Commander(client, feed))
        roster = await stack.enter_async_context(Roster(client, tasks_settings.aliases, tasks_settings.default_model))
        stack.enter_context(sweeping(url, tasks_settings.lease, roster.models))
        disk = Disk(client)
        stack.push_async_callback(disk.close)
        waits_for = disk if tasks_settings.durability == "disk" else None
        store = JobStore(
            client,
            queue_limit=tasks_settings.queue_limit,
            job_ttl=tasks_settings.job_ttl,
            deadline=tasks_settings.deadline,
            disk=waits_for,
        )
        relay = Relay(
            client,
            feed,
            store,
            roster,
            commander,
            name=await stack.enter_async_context(breathing(client, tasks_settings.lease)),
            patience=settings.patience,
            keep_alive=settings.keep_alive_comment,
            record_limit=tasks_settings.record_limit,
            trace=current_span if tracing is not None else lambda: None,
        )
        stack.push_async_callback(relay.finish)

        def obey() -> None:
            now = live_tasks.now
            store.set_limits(queue_limit=now.queue_limit, job_ttl=now.job_ttl, deadline=now.deadline)
            relay.set_waits(patience=live.now.patience, keep_alive=live.now.keep_alive_comment)
            logs.set_level(now.log_level)

        book = SettingsBook(client, (live_tasks, live), obey)
        await stack.enter_async_context(following(book))

        files, batches = FileBook(client), BatchBook(client, waits_for)
        storage = storage_of(settings, tasks_settings.data_dir)
        feeding = Feeding(batches, files, storage, relay, roster, settings, tasks_settings.lease)
        await stack.enter_async_context(feeding.running())
        jobs = JobBook(store, feed)
        if settings.webhook_secret is not None:
            await stack.enter_async_context(calling(CallBook(client), jobs, settings))

        async def ping() -> None:
            with unavailable_as_refusal():
                await client.ping()

        yield {
            "relay": relay,
            "roster": roster,
            "jobs": jobs,
            "queues": QueueBook(client, store),
            "boards": BoardBook(client),
            "api_keys": ApiKeys(client),
            "settings": book,
            "files": files,
            "storage": storage,
            "batches": batches,
            "feeding": feeding,
            "texts": Texts(roster, commander),
            "loading": Loading(roster, commander),
            "runtimes": Runtimes(roster, commander),
            "shelf": Shelf(roster, commander, feed),
            "blobs": Blobs(tasks_settings.models_dir),
            "ping": ping,
        }
