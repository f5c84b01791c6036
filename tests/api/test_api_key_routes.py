"""API keys over HTTP, for administrators."""

from __future__ import annotations

import pytest

from tasks.api_keys import Scope, digest_of
from tasks.limits import Limits
from tests.api.site import Site


def test_a_key_is_made_listed_limited_and_revoked(place: Site) -> None:
    """Only the answer that made it has the key itself."""
    made = place.http.post("/v1/keys", json={"name": "tablet", "limits": {"requests": 30}}).json()
    assert made["scopes"] == ["batch", "inference"]
    assert made["limits"] == {"requests": 30, "tokens": None, "jobs": None}
    plain = made.pop("key")
    place.world.api_keys.make("admin-key", Scope.ADMIN)
    admin = {"authorization": "Bearer admin-key"}
    assert made in place.http.get("/v1/keys", headers=admin).json()["data"]
    place.http.patch("/v1/keys/tablet", json={"jobs": 2}, headers=admin)
    assert place.world.api_keys.by_digest[digest_of(plain.encode())].limits == Limits(jobs=2)
    place.http.patch(f"/v1/keys/{made['id']}", json={}, headers=admin)
    assert place.world.api_keys.by_digest[digest_of(plain.encode())].limits is None
    place.world.api_keys.make("a/slash", Scope.INFERENCE)
    assert place.http.delete("/v1/keys/a/slash", headers=admin).json()["name"] == "a/slash"
    gone = place.http.delete("/v1/keys/tablet", headers=admin)
    assert (gone.status_code, gone.json()["deleted"]) == (200, True)
    assert digest_of(plain.encode()) not in place.world.api_keys.by_digest


def test_only_administrators_touch_keys(place: Site) -> None:
    """Nor does anybody else learn their names."""
    place.world.api_keys.make("user-key", Scope.INFERENCE, Scope.BATCH)
    user = {"authorization": "Bearer user-key"}
    for method, path in (("GET", ""), ("POST", ""), ("PATCH", "/user-key"), ("DELETE", "/user-key")):
        reply = place.http.request(method, f"/v1/keys{path}", json={"name": "x"}, headers=user)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "insufficient_permissions")
    assert [key.name for key in place.world.api_keys.by_digest.values()] == ["user-key"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "", {"name": "x", "scopes": []}, 400, "scopes"),
        ("POST", "", {"name": "x", "scopes": ["everything"]}, 400, "scopes.0"),
        ("POST", "", {}, 400, "name"),
        ("POST", "", {"name": "x", "limits": {"requests": 0}}, 400, "limits.requests"),
        ("POST", "", {"name": "x", "scope": ["admin"]}, 400, "scope"),
        ("PATCH", "/nobody", {"request": 5}, 400, "request"),
        ("PATCH", "/nobody", {"requests": True}, 400, "requests"),
        ("PATCH", "/nobody", {"jobs": 1}, 404, "name"),
        ("DELETE", "/nobody", {}, 404, "name"),
    ],
)
def test_what_is_refused_names_the_field(
    place: Site, method: str, path: str, body: dict[str, object], status: int, param: str
) -> None:
    """In the form of every other error."""
    reply = place.http.request(method, f"/v1/keys{path}", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
