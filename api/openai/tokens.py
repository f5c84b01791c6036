"""Texts and tokens, in the forms of llama.cpp's and vLLM's servers; a board answers at once, whatever is being generated."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from api.body import Wire, check, parse, read_body, read_bytes
from api.delivery import as_read
from api.docs_page import takes
from api.errors import invalid
from api.needs import settings_of
from api.openai.schemas import ChatCompletionBody, token_ids
from api.openai.translate import chat
from api.texts import ask_board
from tasks.commands import Detokenize, Encode, Render, Tokenize
from tasks.roster import ModelStatus

router = APIRouter(tags=["Tokens"])


class TokenizeBody(Wire):
    """The body of `POST /tokenize`: `content` as llama.cpp has it, `prompt` or `messages` as vLLM has them."""

    model: str | None = Field(None, max_length=512)
    content: str | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    prompt: str | None = None
    messages: list[Any] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeBody(Wire):
    """The body of `POST /detokenize`."""

    model: str | None = Field(None, max_length=512)
    tokens: Annotated[
        tuple[int, ...],
        PlainValidator(lambda value: token_ids(value) if value else ()),
        WithJsonSchema({"type": "array", "items": {"type": "integer"}}),
    ]


SHAPES: tuple[type[BaseModel], ...] = (TokenizeBody, DetokenizeBody)


@router.post("/v1/tokenize", include_in_schema=False)
@router.post("/tokenize", summary="Tokenize a text or a chat", openapi_extra=takes(TokenizeBody))
async def tokenize(http: Request) -> Response:
    """The token ids of a text, or of a chat as the model would read it."""
    settings = settings_of(http)
    data = parse(await read_bytes(http, settings))
    body = check(data, TokenizeBody, settings)
    if body.messages is not None:
        request = as_read(http, chat.to_request(check(data, ChatCompletionBody, settings)))
        status, tokens = await ask_board(http, body.model, lambda model: Encode(model, request), list[int])
        return await _counted(http, body, status, tokens)
    if body.prompt is not None:
        prompt, special = body.prompt, body.add_special_tokens
        status, tokens = await ask_board(http, body.model, lambda model: Tokenize(model, prompt, special), list[int])
        return await _counted(http, body, status, tokens)
    if body.content is None:
        raise invalid("There is nothing to tokenize: send 'content', 'prompt' or 'messages'.", "content")
    text = body.content
    _, tokens = await ask_board(
        *(http, body.model),
        lambda model: Tokenize(model, text, body.add_special, body.parse_special),
        list[int],
    )
    if not body.with_pieces:
        return _json({"tokens": tokens})
    pieces = await _pieces(http, body.model, tokens)
    return _json(
        {"tokens": [{"id": token, "piece": _piece(piece)} for token, piece in zip(tokens, pieces, strict=True)]}
    )


@router.post("/v1/detokenize", include_in_schema=False)
@router.post("/detokenize", summary="The text of tokens", openapi_extra=takes(DetokenizeBody))
async def detokenize(http: Request) -> Response:
    """The text that tokens spell; control tokens add nothing to it."""
    body = await read_body(http, DetokenizeBody)
    text = b"".join(await _pieces(http, body.model, body.tokens)).decode(errors="replace")
    # The one server calls it so, the other so.
    return _json({"content": text, "prompt": text})


@router.post("/v1/apply-template", include_in_schema=False)
@router.post("/apply-template", summary="The prompt of a chat", openapi_extra=takes(ChatCompletionBody))
async def apply_template(http: Request) -> Response:
    """The text that the model would read of a chat."""
    body = await read_body(http, ChatCompletionBody)
    request = as_read(http, chat.to_request(body))
    _, prompt = await ask_board(http, body.model, lambda model: Render(model, request), str)
    return _json({"prompt": prompt})


async def _counted(http: Request, body: TokenizeBody, status: ModelStatus, tokens: list[int]) -> Response:
    said: dict[str, Any] = {"count": len(tokens), "max_model_len": status.card.context_length, "tokens": tokens}
    if body.return_token_strs:
        pieces = await _pieces(http, body.model, tokens)
        said["token_strs"] = [piece.decode(errors="replace") for piece in pieces]
    return _json(said)


async def _pieces(http: Request, model: str | None, tokens: list[int] | tuple[int, ...]) -> list[bytes]:
    _, pieces = await ask_board(http, model, lambda name: Detokenize(name, tuple(tokens)), list[bytes])
    return pieces


def _piece(piece: bytes) -> str | list[int]:
    # A piece that is a part of a character only is no text; llama.cpp gives its bytes then.
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
