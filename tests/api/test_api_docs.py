"""The description of the API, offline."""

from __future__ import annotations

import re

import pytest

from api.app import FRONTS
from tests.api.site import Site


def test_the_page_has_local_files_only(place: Site) -> None:
    """Every file it names is served from here, and a policy keeps it from asking elsewhere."""
    page = place.http.get("/docs")
    named = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert sorted(named) == ["/docs/favicon.png", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"]
    assert not re.findall(r"https?://", page.text)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in named:
        reply = place.http.get(path)
        assert reply.status_code == 200
        assert len(reply.content) > 1000


@pytest.mark.parametrize("path", ["/docs/nothing.js", "/docs/..%2f__init__.py", "/docs/redoc.standalone.js"])
def test_nothing_else_of_the_package_is_served(place: Site, path: str) -> None:
    """Only the files that the page needs."""
    assert place.http.get(path).status_code == 404


def test_the_description_knows_the_bodies(place: Site) -> None:
    """Every operation is there, with its body's fields, and every reference leads somewhere."""
    document = place.http.get("/openapi.json").json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "422" not in place.http.get("/openapi.json").text
    assert body == {"$ref": "#/components/schemas/ChatCompletionBody"}
    schemas = document["components"]["schemas"]
    assert {"messages", "temperature", "stop", "logit_bias"} <= set(schemas["ChatCompletionBody"]["properties"])
    for reference in set(re.findall(r"#/components/schemas/(\w+)", place.http.get("/openapi.json").text)):
        assert reference in schemas


def test_the_description_knows_refusals(place: Site) -> None:
    """Of every operation, in the form in which they really come."""
    paths = place.http.get("/openapi.json").json()["paths"]
    for path, error in (("/v1/chat/completions", {}), ("/api/chat", ""), ("/v1/messages", {})):
        described = paths[path]["post"]["responses"]["default"]["content"]["application/json"]
        found = place.http.post(path, content=b"nothing").json()
        assert set(described["schema"]["required"]) <= set(found)
        assert type(found["error"]) is type(described["example"]["error"]) is type(error)
    assert all("default" in each["responses"] for operations in paths.values() for each in operations.values())


def test_the_description_knows_streams(place: Site) -> None:
    """Of what can be streamed, as each front does it."""
    paths = place.http.get("/openapi.json").json()["paths"]
    kinds = {path: set(paths[path]["post"]["responses"]["200"]["content"]) for path in ("/v1/messages", "/api/chat")}
    assert kinds == {
        "/v1/messages": {"application/json", "text/event-stream"},
        "/api/chat": {"application/json", "application/x-ndjson"},
    }
    assert set(paths["/v1/embeddings"]["post"]["responses"]["200"]["content"]) == {"application/json"}


def test_no_two_bodies_share_a_name() -> None:
    """What one front calls a shape no other may, or the page would show it in the wrong place."""
    named: dict[str, object] = {}
    for shape in (shape for front in FRONTS for shape in front.shapes):
        schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
        for name, part in [*schema.pop("$defs", {}).items(), (shape.__name__, schema)]:
            assert named.setdefault(name, part) == part, name
