"""Who may use the API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from api.auth import OWNER, Auth, BindRefused, check_bind
from api.settings import ApiSettings
from tests.api.scripted import Site, site


@pytest.fixture(scope="module")
def locked() -> Iterator[Site]:
    """A server with two keys."""
    with site(api_keys=("first-key", "second-key"), drain=0) as place:
        yield place


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/health", "/v1/health", "/docs", "/openapi.json"])
def test_health_and_documentation_need_no_key(locked: Site, path: str) -> None:
    """Probes and people who look for the door get in."""
    assert locked.http.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "first-key"}, {"x-api-key": ""}]
)
@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/jobs/x", "/v1/models/", "/nothing"])
def test_without_a_right_key_there_is_a_401(locked: Site, headers: dict[str, str], path: str) -> None:
    """Everything else is closed, what does not exist included, with the error the official clients expect."""
    reply = locked.http.get(path, headers=headers)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer second-key"},
        {"authorization": "Bearer  first-key"},
        {"x-api-key": "second-key"},
    ],
)
def test_any_of_the_keys_opens(locked: Site, headers: dict[str, str]) -> None:
    """Either header does, with any of the keys."""
    assert locked.http.get("/v1/models", headers=headers).status_code == 200


def test_the_key_itself_goes_nowhere(locked: Site) -> None:
    """The queue tells clients apart by a digest; neither settings nor middleware show a key."""
    locked.http.post(
        "/v1/completions", json={"prompt": "x"}, headers={"authorization": "Bearer first-key"}
    ).raise_for_status()
    owner = locked.relay.calls[-1].owner
    assert owner.startswith("key:")
    assert "first-key" not in owner
    assert "first-key" not in repr(locked.app.state.settings)


def test_without_keys_a_client_is_known_by_its_address(place: Site) -> None:
    """Turns in the queue are then between machines."""
    place.http.post("/v1/completions", json={"prompt": "x"}).raise_for_status()
    assert place.relay.calls[-1].owner == "127.0.0.1"


def passes(host: str, *networks: str) -> bool:
    """Whether a client at `host` needs no key."""
    auth = Auth(None, ApiSettings(trusted_networks=networks), None)  # type: ignore[arg-type]
    scope = {"type": "http", "path": "/v1/models", "headers": [], "client": (host, 1), OWNER: host}
    return auth.refusal(scope) is None


@pytest.mark.parametrize(
    ("host", "networks", "open_"),
    [
        ("10.1.2.3", ("10.0.0.0/8",), True),
        ("11.1.2.3", ("10.0.0.0/8",), False),
        ("::ffff:10.1.2.3", ("10.0.0.0/8",), True),
        ("fe80::1%eth0", ("fe80::/10",), True),
        ("2001:db8::1", ("10.0.0.0/8", "2001:db8::/32"), True),
        ("testclient", ("10.0.0.0/8",), False),
    ],
)
def test_a_trusted_network_needs_no_key(host: str, networks: tuple[str, ...], open_: bool) -> None:
    """Addresses are compared as addresses, in whatever clothes a socket shows them."""
    assert passes(host, *networks) is open_


def test_a_forwarded_address_is_not_believed() -> None:
    """A header that anybody can send does not put its sender into a trusted network."""
    with site(trusted_networks=("10.0.0.0/8",), drain=0) as place:
        reply = place.http.get("/v1/models", headers={"x-forwarded-for": "10.0.0.1", "x-real-ip": "10.0.0.1"})
        assert reply.status_code == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.0.1"])
def test_loopback_may_be_open(host: str) -> None:
    """On this machine alone nothing need be set."""
    check_bind(ApiSettings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "board.local"])
def test_an_open_service_is_not_bound_to_a_network(host: str) -> None:
    """Wider than loopback, keys or networks are needed; the message holds both lines that mend it."""
    with pytest.raises(BindRefused) as refused:
        check_bind(ApiSettings(host=host))
    lines = str(refused.value).splitlines()
    assert [line.split("=")[0].strip() for line in lines[1:]] == [
        "ROCKCHIPLLAMA_API_KEYS",
        "ROCKCHIPLLAMA_TRUSTED_NETWORKS",
    ]
    check_bind(ApiSettings(host=host, api_keys=("k",)))
    check_bind(ApiSettings(host=host, trusted_networks=("10.0.0.0/8",)))


def test_settings_come_as_comma_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment several words are one variable; host bits of a network are forgiven."""
    monkeypatch.setenv("ROCKCHIPLLAMA_API_KEYS", "a, b,")
    monkeypatch.setenv("ROCKCHIPLLAMA_TRUSTED_NETWORKS", "192.168.1.7/24,fd00::/8")
    settings = ApiSettings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["a", "b"]
    assert settings.trusted_networks == ("192.168.1.0/24", "fd00::/8")


@pytest.mark.parametrize(
    "bad",
    [
        {"api_keys": ("a b",)},
        {"trusted_networks": ("home",)},
        {"port": 70000},
        {"allowed_hosts": ("https://ai.example.com",)},
        {"allowed_hosts": ("ai.example.com:8080",)},
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_start(bad: dict[str, Any]) -> None:
    """Not at the first request."""
    with pytest.raises(ValidationError):
        ApiSettings(**bad)
