"""Responses: OpenAI's second way to chat, whose answers are items and may be stored. A front of its own beside `api.openai`."""

from functools import partial

from starlette.types import Scope

from api.fronts import Front
from api.openai.problems import render
from api.openai.responses import stored_routes
from api.openai.responses.routes import SHAPES, asking, router
from api.openai.responses.stored import NAME, whole, writer_of

PARAMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "output": "text.format",
    "logprobs": "top_logprobs",
    "overflow": "truncation",
    "template_options": "reasoning",
    "thinking_budget": "reasoning",
}
"""Fields that the shared vocabulary names otherwise."""


def _owns(scope: Scope) -> bool:
    path = scope["path"].removeprefix("/v1")
    return bool(path == "/responses" or path.startswith("/responses/"))


router.include_router(stored_routes.router)

FRONT = Front(
    name=NAME,
    asking=asking,
    router=router,
    owns=_owns,
    render=partial(render, names=PARAMS),
    writer=writer_of,
    whole=whole,
    shapes=SHAPES,
    headers=((b"openai-version", b"2020-10-01"),),
    elapsed_header=b"openai-processing-ms",
)
