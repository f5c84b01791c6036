"""Who may use the API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from api.auth import ALLOWED, OWNER, Auth, BindRefused, check_bind
from api.client_address import ClientAddress
from api.settings import ApiSettings
from tasks.api_keys import Scope
from tests.api.site import Site, site


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
    sent = headers == {"authorization": "Bearer wrong"}
    told = "This server does not know the API key that was sent." if sent else "This server needs an API key."
    assert reply.json()["error"]["message"].startswith(told) and "wrong" not in reply.text


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
    assert "first-key" not in repr(locked.app.state.settings.now)


def test_without_keys_a_client_is_known_by_its_address(place: Site) -> None:
    """Turns in the queue are then between machines."""
    place.http.post("/v1/completions", json={"prompt": "x"}).raise_for_status()
    assert place.relay.calls[-1].owner == "127.0.0.1"


def passes(host: str, *networks: str) -> bool:
    """Whether a client at `host` needs no key."""
    auth = Auth(None, ApiSettings(trusted_networks=networks), None)  # type: ignore[arg-type]
    scope = {"type": "http", "path": "/v1/models", "headers": [], "client": (host, 1), OWNER: host}
    return auth.refusal(scope, None, {}) is None


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
    assert [line.split("=")[0].strip() for line in lines[1:3]] == [
        "ROCKCHIPLLAMA_API_KEYS",
        "ROCKCHIPLLAMA_TRUSTED_NETWORKS",
    ]
    check_bind(ApiSettings(host=host, api_keys=("k",)))
    check_bind(ApiSettings(host=host, trusted_networks=("10.0.0.0/8",)))
    check_bind(ApiSettings(host=host), keys=True)


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


def test_a_made_key_opens_and_closes_the_rest(place: Site) -> None:
    """The first key that is made ends the time when everybody may, without a restart."""
    assert place.http.get("/v1/models").status_code == 200
    place.world.api_keys.make("rl-made", Scope.INFERENCE)
    assert place.http.get("/v1/models").status_code == 401
    assert place.http.get("/v1/models", headers={"authorization": "Bearer rl-other"}).status_code == 401
    assert place.http.get("/v1/models", headers={"authorization": "Bearer rl-made"}).status_code == 200
    assert place.http.get("/healthz").status_code == 200


def test_a_wide_service_whose_last_key_is_gone_lets_nobody_in() -> None:
    """It was let listen there for a key, which may be revoked since, or forgotten by its Redis."""
    auth = Auth(None, ApiSettings(host="0.0.0.0"), None)  # type: ignore[arg-type]
    for host in ("192.168.1.7", "127.0.0.1"):
        scope = {"type": "http", "path": "/v1/models", "headers": [], "client": (host, 1), OWNER: host}
        refused = auth.refusal(scope, None, {})
        assert refused is not None and refused.status == 401 and "keys create" in refused.message


def test_keys_of_the_settings_and_made_ones_stand_together(locked: Site) -> None:
    """Making one takes nothing from the others."""
    locked.world.api_keys.make("rl-made", Scope.INFERENCE)
    try:
        for key in ("first-key", "rl-made"):
            assert locked.http.get("/v1/models", headers={"x-api-key": key}).status_code == 200
    finally:
        locked.world.api_keys.by_digest.clear()


def test_a_key_without_the_scope_may_not_ask_models(place: Site) -> None:
    """403 in the clients' own words, not to be tried again, and what would mend it; looking on is open to any key."""
    place.world.api_keys.make("rl-batch", Scope.BATCH)
    headers = {"authorization": "Bearer rl-batch"}
    reply = place.http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "insufficient_permissions"
    assert "--scope inference" in reply.json()["error"]["message"]
    assert reply.headers["x-should-retry"] == "false"
    assert place.relay.calls == []
    assert place.http.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "x"}),
        ("/detokenize", {"tokens": [1]}),
        ("/apply-template", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/responses/input_tokens", {"input": "x"}),
        ("/v1/messages/count_tokens", {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_nor_may_it_ask_boards(place: Site, path: str, body: dict[str, Any]) -> None:
    """What takes no turn in the queue takes a board's time all the same."""
    place.world.api_keys.make("rl-batch", Scope.BATCH)
    reply = place.http.post(path, json=body, headers={"authorization": "Bearer rl-batch"})
    assert reply.status_code == 403


def test_while_keys_cannot_be_read_nobody_is_let_in_or_turned_away(place: Site) -> None:
    """A server that has never read its keys says so with 503."""
    place.world.api_keys.away = True
    reply = place.http.get("/v1/models", headers={"authorization": "Bearer rl-made"})
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "queue_unavailable"


def test_a_key_of_the_settings_needs_no_redis(locked: Site) -> None:
    """It is known from the start."""
    locked.world.api_keys.away = True
    try:
        assert locked.http.get("/v1/models", headers={"x-api-key": "first-key"}).status_code == 200
    finally:
        locked.world.api_keys.away = False


def allowed(host: str, **settings: Any) -> frozenset[Scope]:
    """What somebody without a key may do from `host`."""
    auth = Auth(None, ApiSettings(**settings), None)  # type: ignore[arg-type]
    scope: dict[str, Any] = {"type": "http", "path": "/v1/models", "headers": [], OWNER: host}
    assert auth.refusal(scope, None, {}) is None
    return scope[ALLOWED]  # type: ignore[no-any-return]


def test_without_keys_only_this_machine_may_administer() -> None:
    """Destructive routes answer loopback until there are keys; a trusted network never gets them."""
    assert Scope.ADMIN in allowed("127.0.0.1")
    assert allowed("192.168.1.7") == {Scope.INFERENCE, Scope.BATCH}
    assert allowed("127.0.0.1", trusted_networks=("127.0.0.0/8",)) == {Scope.INFERENCE, Scope.BATCH}


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.2", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.2", ["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        ("10.0.0.2", ["6.6.6.6", "203.0.113.9, 10.0.0.3"], "203.0.113.9"),
        ("10.0.0.2", ["10.0.0.7, 10.0.0.3"], "10.0.0.7"),
        ("10.0.0.2", ["unknown"], "10.0.0.2"),
        ("10.0.0.2", [], "10.0.0.2"),
        ("203.0.113.5", ["10.0.0.9"], "203.0.113.5"),
    ],
)
def test_a_trusted_proxy_tells_who_its_client_is(peer: str, forwarded: list[str], client: str) -> None:
    """The last hop that is none of the proxies; what a client wrote into the header itself stands before it."""
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert ClientAddress(["10.0.0.0/8"]).of({"client": (peer, 1), "headers": headers}) == client


def test_turns_are_between_the_clients_of_a_proxy() -> None:
    """Else everybody behind one would be one client."""
    with site(trusted_proxies=("127.0.0.0/8",), drain=0) as place:
        place.http.post("/v1/completions", json={"prompt": "x"}, headers={"x-forwarded-for": "203.0.113.9"})
        assert place.relay.calls[-1].owner == "203.0.113.9"
