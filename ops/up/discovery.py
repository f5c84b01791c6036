"""The service in the local network, by mDNS: told where it is shared, found by a board that has a token and no address.

What is told is an address, and for each token a proof that only who knows the token could make for that address. So a board
shows its token to no other machine that answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ops.up import listen
from ops.up.sharing import Token, TokenRefused, digest_of

if TYPE_CHECKING:
    from zeroconf import IPVersion, ServiceInfo, Zeroconf

log = logging.getLogger("rockchipllama.up")
# It has a traceback for each network that is away for a moment; what comes of that is said here.
logging.getLogger("zeroconf").setLevel(logging.ERROR)

KIND = "_rockchipllama._tcp.local."
PATIENCE = 10.0
"""Seconds in which a service has answered, whatever else its board has to do."""
ANSWER = 3000
"""Milliseconds that one may take to say its address."""
LOOK = 2.0
"""Seconds between two looks whether there are other tokens."""
AGAIN = 10.0
"""Seconds between two tries where the network cannot be told."""
PROOF = 16
"""Letters of a proof."""
_EVERYWHERE = ("0.0.0.0", "::")
_IN_A_FIELD = 15
"""Proofs in one field; one may have 255 bytes."""
MOST = 60
"""Proofs that are told; more do not fit into a packet."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a service tells of itself."""

    host: str
    port: int
    proofs: frozenset[str]

    def takes(self, token: Token) -> bool:
        """Whether it knows the token."""
        return proof(digest_of(token.secret), self.host, self.port) in self.proofs


def installed() -> bool:
    """Whether the package that speaks mDNS is there."""
    return find_spec("zeroconf") is not None


def proof(digest: str, host: str, port: int) -> str:
    """That somebody knows the token of this digest, and means this address."""
    return hmac.new(digest.encode(), f"{host} {port}".encode(), hashlib.sha256).hexdigest()[:PROOF]


class Announcement:
    """The service told to the local network, in a thread of its own, until it is closed. Where that fails, it is logged."""

    def __init__(self, name: str, listens_on: str, port: int, digests: Callable[[], Iterable[str]]) -> None:
        """`name` is that of its board; `listens_on` an address of this machine, or every one. `digests` are those of the
        tokens now."""
        self._name, self._listens_on, self._port = name, listens_on, port
        self._digests = digests
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announcement", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell the network that it is gone. Twice is safe."""
        self._closed.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        why = ""
        while not self._closed.is_set():
            try:
                self._tell(self._host())
            except Exception as error:  # there may be no network yet
                if str(error) != why:
                    why = str(error)
                    log.warning("boards do not find this service by themselves, its address has to be typed: %s", why)
                self._closed.wait(AGAIN)

    def _host(self) -> str:
        address = str(listen.resolve(listen.network_address(self._listens_on), self._port)[1][0])
        if address in _EVERYWHERE:  # a board that joined it would show its token to itself
            raise OSError("this machine has no address in any network")
        return address

    def _tell(self, host: str) -> None:
        """Tell it until it is closed, or has another address."""
        with _network(self._listens_on if self._listens_on in _EVERYWHERE else host) as network:
            told = self._info(host)
            network.register_service(told, allow_name_change=True)
            while not self._closed.wait(LOOK) and self._host() == host:
                now = self._info(host, told.name)
                if now.text != told.text:
                    told = now
                    network.update_service(told)
            network.unregister_service(told)

    def _info(self, host: str, name: str | None = None) -> ServiceInfo:
        from zeroconf import ServiceInfo

        proofs = [proof(digest, host, self._port) for digest in self._digests()][:MOST]
        fields = {
            f"proofs{place:02}": "".join(proofs[place : place + _IN_A_FIELD])
            for place in range(0, len(proofs), _IN_A_FIELD)
        }
        label = self._name.encode()[:50].decode(errors="ignore").replace(".", "-")
        return ServiceInfo(
            KIND,
            name or f"{label}.{KIND}",
            port=self._port,
            parsed_addresses=[host],
            properties=fields,
            server=f"rockchipllama-{proof(self._name, host, self._port)}.local.",
        )


def find(token: Token) -> tuple[str, int]:
    """The host and port of the service that takes this token. Raises `TokenRefused` when none answers that does."""
    if not installed():
        raise TokenRefused(
            "To find the service by its token alone takes a package that is not installed here: `.venv/bin/pip install zeroconf` "
            "does that. Or add the address, as `up --share` prints it: rl://…@HOST:PORT."
        )
    try:
        found = asyncio.run(_told(lambda told: told.takes(token)))
    except (OSError, RuntimeError) as error:  # the latter is zeroconf's, for a machine in no network at all
        raise TokenRefused(f"This machine cannot ask its network for the service ({error}).") from error
    for told in found:
        if told.takes(token):
            return told.host, told.port
    others = ", ".join(sorted(f"{told.host}:{told.port}" for told in found))
    raise TokenRefused(
        f"No service that takes the token '{token.name}' was found in this network within {PATIENCE:.0f} s"
        + (f"; those at {others} do not." if others else ".")
        + " Is `rockchipllama up --share` running there, and not told to be silent (`announce`)? Where the address is known, add "
        "it: rl://…@HOST:PORT."
    )


async def _told(enough: Callable[[Told], bool]) -> set[Told]:
    """What services in this machine's networks tell, up to the first that is enough."""
    from zeroconf import ServiceStateChange
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

    found: set[Told] = set()
    known = asyncio.Event()
    names: asyncio.Queue[str] = asyncio.Queue()

    def hear(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed:
            names.put_nowait(name)

    async def ask(name: str) -> None:
        info = AsyncServiceInfo(KIND, name)
        if await info.async_request(network.zeroconf, ANSWER):
            told = {Told(host, info.port or 0, _proofs(info.properties)) for host in info.parsed_addresses()}
            found.update(told)
            if any(map(enough, told)):
                known.set()

    async def ask_all() -> None:
        async with asyncio.TaskGroup() as asking:  # all at once: one that does not answer holds up no other
            while True:
                asking.create_task(ask(await names.get()))

    network = AsyncZeroconf(ip_version=_versions())
    asking = asyncio.create_task(ask_all())
    try:
        AsyncServiceBrowser(network.zeroconf, KIND, handlers=[hear])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(known.wait(), PATIENCE)
        return found
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await network.async_close()


def _proofs(fields: Mapping[bytes, bytes | None]) -> frozenset[str]:
    letters = b"".join(value for name, value in sorted(fields.items()) if name.startswith(b"proofs") and value)
    text = letters.decode("ascii", "replace")
    return frozenset(text[place : place + PROOF] for place in range(0, len(text), PROOF))


def _network(host: str) -> Zeroconf:
    from zeroconf import InterfaceChoice, Zeroconf

    if host in _EVERYWHERE:
        return Zeroconf(interfaces=InterfaceChoice.All, ip_version=_versions())
    return Zeroconf(interfaces=[host])


def _versions() -> IPVersion:
    """Those of the protocol that this machine speaks."""
    from zeroconf import IPVersion

    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return IPVersion.V4Only
    return IPVersion.All
