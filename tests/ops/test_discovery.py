"""A shared service that is found in the local network by a token alone."""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zeroconf.asyncio
from zeroconf import ServiceStateChange

from ops.up import discovery, joining, listen, settings
from ops.up.discovery import Announcement, Told, find, proof
from ops.up.sharing import Token, TokenRefused, digest_of, new_secret, parse_token
from tests.stack import LIMIT, eventually, free_port

TOKEN, OTHER = Token("boards", new_secret()), Token("kitchen", new_secret())


def test_a_token_is_shown_to_its_own_service_alone() -> None:
    """Whoever tells its proofs again at another address or port is not believed, nor whoever knows another token."""
    told = Told("192.168.1.5", 6380, frozenset({proof(digest_of(TOKEN.secret), "192.168.1.5", 6380)}))
    assert told.takes(TOKEN)
    assert not told.takes(OTHER)
    assert not replace(told, host="192.168.1.6").takes(TOKEN)
    assert not replace(told, port=6381).takes(TOKEN)


def test_without_the_package_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the service is to be told as well, and where that was asked for in vain."""
    monkeypatch.setattr(discovery, "find_spec", lambda _: None)
    monkeypatch.setattr(settings, "find_spec", lambda _: None)
    with pytest.raises(TokenRefused, match=r"pip install zeroconf.*HOST:PORT"):
        joining.found(f"{TOKEN.name}.{TOKEN.secret}")
    with pytest.raises(ValueError, match="pip install zeroconf"):
        settings.UpSettings(announce=True)
    assert settings.UpSettings(announce=False).announce is False


def test_a_damaged_token_is_refused() -> None:
    """Before anybody is asked for it, and nothing of it is repeated."""
    assert parse_token(f"{TOKEN.name}.{TOKEN.secret}") == TOKEN
    with pytest.raises(TokenRefused, match="cut off") as refused:
        joining.found(f"{TOKEN.name}.{TOKEN.secret[:8]}")
    assert TOKEN.secret[:8] not in str(refused.value)


def test_who_answers_nothing_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody in the network may tell that there are services, as many as they like."""
    told = proof(digest_of(TOKEN.secret), "192.168.1.5", 6380)

    class Info:
        port, properties = 6380, {b"proofs00": told.encode()}

        def __init__(self, _: str, name: str) -> None:
            self.name = name

        async def async_request(self, *_: object) -> bool:
            if self.name != "ours":
                await asyncio.Event().wait()
            return True

        def parsed_addresses(self) -> list[str]:
            return ["192.168.1.5"]

    def browse(network: object, kind: str, handlers: list[Callable[..., None]]) -> None:
        for name in (*map(str, range(20)), "ours"):
            handlers[0](network, kind, name, ServiceStateChange.Added)

    monkeypatch.setattr(zeroconf.asyncio, "AsyncServiceInfo", Info)
    monkeypatch.setattr(zeroconf.asyncio, "AsyncServiceBrowser", browse)
    assert find(TOKEN) == ("192.168.1.5", 6380)


def test_a_network_that_is_away_shows_nobody_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever tells a service says in a sentence that it cannot be found."""
    with discovery._network("127.0.0.1") as network:
        eventually(lambda: network.engine.protocols, what="its sockets")
        for protocol in network.engine.protocols:
            protocol.error_received(OSError(errno.ENETUNREACH, "Network is unreachable"))
    assert caplog.records == []


@pytest.mark.full
def test_a_service_tells_which_tokens_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was made since, and where it listens on a name. One that is closed is not found any more."""
    port = free_port()
    monkeypatch.setattr(listen, "resolve", lambda *_: (socket.AF_INET, ("127.0.0.1", port)))
    digests = [digest_of(TOKEN.secret)] * 20
    announcement = Announcement("a board of mine", "board.example", port, lambda: digests)
    try:
        assert find(TOKEN) == ("127.0.0.1", port)
        with pytest.raises(TokenRefused, match=f":{port}"):
            find(OTHER)
        digests.append(digest_of(OTHER.secret))
        eventually(lambda: _finds(OTHER), what="the other token")
    finally:
        announcement.close()
    with pytest.raises(TokenRefused) as refused:
        find(TOKEN)
    assert f":{port}" not in str(refused.value), "others may tell of themselves meanwhile"


def _finds(token: Token) -> bool:
    try:
        return bool(find(token))
    except TokenRefused:
        return False


NETWORK = """
set -e
trap 'kill $there $told' EXIT
ip link set lo up
unshare --net sleep 100 & there=$!
until [ "$(readlink /proc/$there/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link add here type veth peer name there netns $there
on() { nsenter --target $there --net "$@"; }
ip addr add $4 dev here ${6:-}
on ip addr add $5 dev there ${6:-}
ip link set here up
on ip link set there up
on ip link set lo up
"$1" -c "
import sys
from ops.up.discovery import Announcement
told = Announcement('first', sys.argv[2], 6380, lambda: [sys.argv[1]])
import time; time.sleep(100)
" "$2" "$7" & told=$!
until on "$1" -c "
import sys
from ops.up import discovery, sharing
print(*discovery.find(sharing.parse_token(sys.argv[1])))
" "$3"; do :; done
"""


@pytest.mark.full
@pytest.mark.skipif(
    subprocess.run(["unshare", "-rn", "true"], check=False).returncode != 0 if shutil.which("unshare") else True,
    reason="this machine makes no network namespaces for its users",
)
@pytest.mark.parametrize(
    ("first", "second", "option", "listens_on", "found"),
    [
        ("10.9.0.1/24", "10.9.0.2/24", "", "0.0.0.0", "10.9.0.1"),
        ("fd00:9::1/64", "fd00:9::2/64", "nodad", "::", "fd00:9::1"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_it_is_found_from_another_machine(first: str, second: str, option: str, listens_on: str, found: str) -> None:
    """Two networks that a cable connects, and nothing beyond: it is told on every one of its own, under the address that others
    reach."""
    asked = subprocess.run(
        [
            *("unshare", "--map-root-user", "--net", "/bin/sh", "-c", NETWORK, "sh", sys.executable),
            *(digest_of(TOKEN.secret), f"{TOKEN.name}.{TOKEN.secret}", first, second, option, listens_on),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert asked.stdout.split() == [found, "6380"], asked.stderr
