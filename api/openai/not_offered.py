"""Parts of OpenAI's API that this service does not have: each says so, rather than that nothing is known of its path."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.errors import HttpProblem, Problem

router = APIRouter()

_SOUND = "the models here read and write text, not sound"
_PICTURES = "the models here read and write text, not pictures"
_AGENTS = "send a whole conversation to /v1/chat/completions, or go on with a stored one at /v1/responses"
_TRAINING = "models are trained elsewhere, and put into the models folder"

NOT_OFFERED: Mapping[str, tuple[str, str]] = {
    "moderations": ("Moderation", "there is no model for it here"),
    "audio": ("Audio", _SOUND),
    "realtime": ("Realtime sessions", _SOUND),
    "images": ("Images", _PICTURES),
    "videos": ("Videos", _PICTURES),
    "assistants": ("Assistants", _AGENTS),
    "threads": ("Threads", _AGENTS),
    "conversations": ("Conversations", _AGENTS),
    "responses/compact": ("Compaction", "send fewer items, or let `truncation` leave out the oldest"),
    "vector_stores": ("Vector stores", "make vectors at /v1/embeddings, and keep them where you like"),
    "containers": ("Containers", "nothing is run here but models"),
    "uploads": ("Uploads in parts", "a file goes up in one piece"),
    "fine_tuning": ("Fine-tuning", _TRAINING),
    "fine-tunes": ("Fine-tuning", _TRAINING),
    "evals": ("Evaluations", "ask the model what you want to know of it, and judge the answers yourself"),
    "edits": ("Edits", "ask for them at /v1/chat/completions"),
}
"""By the first word of the path behind `/v1`: what is not offered, and why or what to do instead."""

METHODS = ["GET", "POST", "DELETE"]


def _refusal(what: str, why: str) -> HttpProblem:
    # A 501 would be tried again by the official clients.
    message = f"{what}: not offered by this service; {why}."
    return HttpProblem(Problem(404, "not_offered", message, retry=False))


def _add(word: str, what: str, why: str) -> None:
    async def refuse(http: Request) -> Response:
        raise _refusal(what, why)

    for path in (f"/v1/{word}", f"/v1/{word}/{{rest:path}}"):
        router.add_api_route(path, refuse, methods=METHODS, include_in_schema=False)


for _word, (_what, _why) in NOT_OFFERED.items():
    _add(_word, _what, _why)
