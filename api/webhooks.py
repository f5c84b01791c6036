"""Webhooks: tells an address that a job has ended, signed, and again until it answers.

The form is that of Standard Webhooks, which OpenAI's client checks as well. A name is resolved here and the connection made to
the address that was looked at, so it cannot become another one in between; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import msgspec

from api.errors import HttpProblem, invalid
from api.jobs import render
from api.needs import JobBook
from api.settings import ApiSettings
from tasks.connection import UNREACHABLE, Outages
from tasks.errors import JobNotFound, QueueUnavailable
from tasks.webhooks import Call, CallBook

log = logging.getLogger("rockchipllama.webhooks")

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

LOOK = 1.0
"""Seconds between two looks for calls that are due."""
AT_ONCE = 16
ANSWER = 10.0
"""Seconds that a call may take."""
HOLD = 30.0
"""Seconds for which a process holds a call; another one makes it after that."""
AGAIN = (5.0, 30.0, 120.0, 600.0, 1800.0)
"""Seconds until the next attempt after each one that failed; none after the last."""


class Refused(Exception):
    """Raised for an address that may not be called; the message says why."""


def check_address(url: str, settings: ApiSettings) -> None:
    """Refuse what could never be called. Raises `HttpProblem`."""
    if settings.webhook_secret is None:
        raise invalid(
            "This service calls no webhooks: it has no ROCKCHIPLLAMA_WEBHOOK_SECRET to sign with. Ask for the job with "
            "`?wait=60s` instead.",
            "webhook",
            "unsupported_parameter",
        )
    # Few need it, so it is loaded with the first address.
    import httpx

    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url)  # whoever calls reads it in a way of its own
    except (ValueError, httpx.InvalidURL):
        raise _invalid("it is no URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise _invalid("it should begin with https:// or http:// and name a host")
    if parts.username is not None or not url.isascii() or not url.isprintable() or " " in url:
        raise _invalid("it should hold no name or password, and ASCII characters only")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return  # what a name stands for is looked at when it is called
    if not may_call(address, settings):
        raise _invalid(f"the address {address} is not on the internet, and in none of ROCKCHIPLLAMA_WEBHOOK_NETWORKS")


def _invalid(why: str) -> HttpProblem:
    return invalid(f"Invalid 'webhook': {why}.", "webhook")


def may_call(address: Address, settings: ApiSettings) -> bool:
    """Whether a webhook may be there: on the internet, or in a network that the settings allow."""
    if isinstance(address, ipaddress.IPv6Address):
        # Others that carry an address of the older kind lead wherever that does.
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is not None:
            return may_call(inner, settings)
    if any(address in ipaddress.ip_network(word) for word in settings.webhook_networks):
        return True
    return address.is_global and not address.is_multicast and not any(address in network for network in _INWARD)


_INWARD = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "fec0::/10")))
"""Networks that may lead to private addresses, and do not count as private themselves."""


def signature(secret: str, call: str, moment: int, body: bytes) -> str:
    """Of a call, as Standard Webhooks has it. A secret with `whsec_` before it is base64, any other its own bytes."""
    key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
    digest = hmac.new(key, f"{call}.{moment}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


@asynccontextmanager
async def calling(book: CallBook, jobs: JobBook, settings: ApiSettings) -> AsyncIterator[None]:
    """Make calls that are due while the block lasts."""
    task = asyncio.create_task(_keep_calling(book, jobs, settings), name="webhooks")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _keep_calling(book: CallBook, jobs: JobBook, settings: ApiSettings) -> None:
    redis = Outages(log, "the calling of webhooks")
    while True:
        try:
            due = await book.take(AT_ONCE, HOLD)
            redis.found()
            await asyncio.gather(*(_make(call, book, jobs, settings) for call in due))
        except (QueueUnavailable, *UNREACHABLE) as error:
            redis.lost(error)
        except Exception:
            log.exception("a round of calls to webhooks broke off")
        await asyncio.sleep(LOOK)


async def _make(call: Call, book: CallBook, jobs: JobBook, settings: ApiSettings) -> None:
    try:
        async with asyncio.timeout(ANSWER):
            status = await _send(call, await _body(call, jobs), settings)
        problem = None if 200 <= status < 300 else f"it answered with the status {status}"
        over = problem is None or status == 410
    except Refused as error:
        problem, over = str(error), False
    except (OSError, TimeoutError, ValueError) as error:
        problem, over = str(error) or type(error).__name__, False
    except QueueUnavailable:
        raise  # it is no attempt's fault
    except Exception as error:
        log.exception("a call to a webhook broke off", extra={"job": call.job})
        problem, over = type(error).__name__, False
    if problem is None:
        await book.settle(call)
        return
    over = over or call.attempt > len(AGAIN)
    # Not the address: it may hold a secret.
    words = "a webhook could not be called%s: %s"
    log.warning(words, ", and is given up" if over else "", problem, extra={"job": call.job, "attempt": call.attempt})
    await book.settle(call, None if over else AGAIN[call.attempt - 1])


async def _body(call: Call, jobs: JobBook) -> bytes:
    try:
        job: dict[str, Any] = render(await jobs.view(call.job))
    except JobNotFound:
        job = {"object": "job", "id": call.job, "state": call.state.value}
    moment = job.get("ended_at") or time.time()
    return msgspec.json.encode(
        {"object": "event", "id": f"evt_{call.job}", "type": f"job.{call.state.value}", "created_at": int(moment)}
        | {"data": job}
    )


async def _send(call: Call, body: bytes, settings: ApiSettings) -> int:
    """The status that came back. Raises `Refused`, `OSError`."""
    import httpx

    assert settings.webhook_secret is not None
    url = httpx.URL(call.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    address = await _resolve(url.host, port, settings)
    moment = int(time.time())
    name = f"evt_{call.job}"
    headers = {
        "host": url.netloc.decode(),
        "content-type": "application/json",
        "user-agent": "rockchipllama",
        "webhook-id": name,
        "webhook-timestamp": str(moment),
        "webhook-signature": signature(settings.webhook_secret.get_secret_value(), name, moment, body),
    }
    extensions = {"sni_hostname": url.host}
    try:
        async with httpx.AsyncClient(
            verify=_trusted(settings.webhook_certificates), trust_env=False, follow_redirects=False, timeout=ANSWER
        ) as http:
            target = url.copy_with(host=str(address))
            async with http.stream(
                "POST", target, content=body, headers=headers, extensions=extensions
            ) as reply:  # what it says besides is not read
                return reply.status_code
    except httpx.HTTPError as error:
        raise OSError(str(error) or type(error).__name__) from error


@cache
def _trusted(more: Path | None) -> ssl.SSLContext:
    """Whose certificates are good: those that this machine trusts, and those in a file."""
    import certifi  # slim systems have none of their own

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    if more is not None:
        context.load_verify_locations(more)
    return context


async def _resolve(host: str, port: int, settings: ApiSettings) -> Address:
    """An address of that name that may be called. Raises `Refused`, `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, place in found:
        address = ipaddress.ip_address(str(place[0]).partition("%")[0])
        if may_call(address, settings):
            return address
    raise Refused("its name stands for no address on the internet, nor for one in ROCKCHIPLLAMA_WEBHOOK_NETWORKS")
