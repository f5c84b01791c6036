"""From which pages, and under which names, the API may be called without a key."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest

from tests.api.site import Site, site

BODY = {"prompt": "x"}
FOREIGN = {"host": "evil.example.com"}


def post(place: Site, **headers: str) -> httpx.Response:
    """A completion, asked for with these headers."""
    return place.http.post("/v1/completions", json=BODY, headers=headers)


def names() -> list[str]:
    """What this machine is called."""
    machine = socket.gethostname()
    return [machine, machine.upper(), f"{machine}:8080", f"{machine.partition('.')[0]}.local"]


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8080", "LOCALHOST", "ui.localhost:3000", "localhost."),
        *("127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080", "192.168.1.5:8080", "[fd00::7]:80", "10.0.0.1."),
        *("api", "api:8080", "host.docker.internal:8080", "board.local"),
        *names(),
    ],
)
def test_a_server_goes_by_addresses_and_its_own_names(host: str) -> None:
    """Whatever no public DNS can point at it: so also the names of containers."""
    with site(host="board.local", trusted_networks=("127.0.0.0/8",), drain=0) as place:
        assert post(place, host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example.com", "evil.example.com:8080", "127.0.0.1.evil.example", "localhost.evil.example", "1.2.3"]
)
def test_a_foreign_name_is_refused(place: Site, host: str) -> None:
    """A page whose own name was pointed at this machine gets nothing but what mends it, if it is meant to be so."""
    reply = post(place, host=host)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "host_not_allowed")
    assert "ROCKCHIPLLAMA_ALLOWED_HOSTS" in reply.json()["error"]["message"]
    assert reply.headers["x-request-id"]
    assert place.relay.calls == []
    assert place.http.get("/v1/models", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin",
    [
        *("http://localhost:3000", "http://127.0.0.1:5173", "tauri://localhost", "https://ui.example.com"),
        *("http://192.168.1.5:8080", "https://192.168.1.5:8080"),
    ],
)
def test_pages_of_this_machine_may_call(origin: str) -> None:
    """And those that are named, and those that this very server has sent."""
    with site(cors_origins=("https://ui.example.com",), drain=0) as place:
        assert post(place, origin=origin, host="192.168.1.5:8080").status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example.com", "null", "http://localhost.evil.example", "http://192.168.1.5:3000", "", "x" * 5000],
)
def test_pages_of_other_sites_may_not(place: Site, origin: str) -> None:
    """A browser sends a plain POST for any page; that the page cannot read the answer does not undo it."""
    reply = post(place, origin=origin, host="192.168.1.5:8080")
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "ROCKCHIPLLAMA_CORS_ORIGINS" in reply.json()["error"]["message"]
    assert len(reply.text) < 1000
    assert place.relay.calls == []


@pytest.mark.parametrize("path", ["/", "/health", "/v1/health", "/healthz", "/readyz", "/docs"])
def test_probes_may_use_any_name(place: Site, path: str) -> None:
    """They ask for what everybody may know."""
    assert place.http.get(path, headers={**FOREIGN, "origin": "https://evil.example.com"}).status_code == 200


@pytest.mark.parametrize(
    "setting", [{"allowed_hosts": ("Evil.example.com",)}, {"allowed_hosts": ("*",)}], ids=["named", "any"]
)
def test_further_names_can_be_allowed(setting: dict[str, Any]) -> None:
    """For a server behind a proxy, or with a name in DNS."""
    with site(**setting, drain=0) as place:
        assert post(place, **FOREIGN).status_code == 200


def test_any_page_can_be_allowed() -> None:
    """With the same word that opens CORS."""
    with site(cors_origins=("*",), drain=0) as place:
        assert post(place, origin="null").status_code == 200


def test_a_key_is_enough() -> None:
    """No page can know it, so whoever sends it may come from anywhere, under any name."""
    with site(api_keys=("key",), drain=0) as place:
        headers = {**FOREIGN, "origin": "https://evil.example.com", "authorization": "Bearer key"}
        assert post(place, **headers).status_code == 200
        assert post(place, **FOREIGN).status_code == 401


def test_a_trusted_network_is_no_protection_against_its_own_browsers() -> None:
    """Their addresses are trusted; the pages they show are not."""
    with site(api_keys=("key",), trusted_networks=("127.0.0.0/8",), drain=0) as place:
        assert post(place).status_code == 200
        assert post(place, **FOREIGN).status_code == 403
