"""The interactive description of the API at `/docs`, from files that came with the installation."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from api.errors import Problem, Renderer
from api.fronts import Front

router = APIRouter(include_in_schema=False)

ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}

# The page could not reach the internet even if one of its files tried.
_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'"
)


def _folder() -> Path:
    # Found, not imported: only its files are wanted.
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise HTTPException(404)
    return Path(spec.origin).parent / "static"


@router.get("/docs")
async def docs(http: Request) -> Response:
    """The page itself."""
    root = http.scope.get("root_path", "").rstrip("/")
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="RockchipLlama API",
        swagger_js_url=f"{root}/docs/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/docs/swagger-ui.css",
        swagger_favicon_url=f"{root}/docs/favicon.png",
        # By default the page asks a server on the internet whether its document is valid.
        swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True},
    )
    page.headers["content-security-policy"] = _POLICY
    return page


@router.get("/docs/{asset}")
async def asset(asset: str) -> Response:
    """One of the page's files."""
    if asset not in ASSETS:
        raise HTTPException(404)
    return FileResponse(_folder() / asset, media_type=ASSETS[asset], headers={"cache-control": "max-age=86400"})


def _refusal(render: Renderer) -> dict[str, Any]:
    """What the document says of every answer that is none: made of two that this front would give."""
    full = json.loads(render(Problem(400, "invalid_value", "What is wrong, and what to do.", "field")))
    bare = json.loads(render(Problem(400, None, "What is wrong, and what to do.")))
    content = {"application/json": {"schema": _shape(full, bare), "example": full}}
    return {"description": "What was refused or failed, and why, in the form of this dialect.", "content": content}


def _names_a_body(operation: dict[str, Any]) -> str:
    """The shape of an operation's body; empty where it has none."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]


def _shape(full: Any, bare: Any) -> dict[str, Any]:
    if isinstance(full, dict):
        properties = {name: _shape(full[name], bare[name]) for name in bare}
        return {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": ["string", "null"]} if bare is None else {"type": "string"}


def takes(shape: type[BaseModel]) -> dict[str, Any]:
    """What a route with such a body adds to its part of the document, for `openapi_extra`."""
    # The routes read their bodies themselves, so FastAPI cannot know what is in them.
    schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, shapes: tuple[type[BaseModel], ...], front_of: Callable[[str], Front]) -> None:
    """Let `/openapi.json` hold the request bodies as well, which FastAPI cannot see as the routes read them themselves, and
    in which form streams and refusals come at each path: in that of its front, which `front_of` the path gives."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            streamed = {shape.__name__ for shape in shapes if "stream" in shape.model_fields}
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            # FastAPI promises a 422 of its own wherever a path has a parameter; here every refusal is a front's error.
            for path, operations in document["paths"].items():
                front = front_of(path)
                refusal = _refusal(front.render)
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    operation["responses"]["default"] = refusal
                    if _names_a_body(operation) in streamed:
                        kind = "application/x-ndjson" if front.lines else "text/event-stream"
                        operation["responses"]["200"]["content"][kind] = {}
            components = document.setdefault("components", {}).setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                components.pop(name, None)
            for shape in shapes:
                schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
                components |= schema.pop("$defs", {})
                components[shape.__name__] = schema
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
