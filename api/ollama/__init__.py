"""The Ollama front."""

from fastapi import APIRouter

from api.fronts import Front
from api.ollama.model_routes import router as model_router
from api.ollama.problems import render
from api.ollama.routes import ASKINGS, SHAPES, asking
from api.ollama.schemas import ShowBody
from api.ollama.shelf_routes import SHAPES as SHELF_SHAPES
from api.ollama.shelf_routes import router as shelf_router
from api.ollama.translate.kept import NAME, whole, writer_of

router = APIRouter()
router.include_router(model_router)
router.include_router(shelf_router)

FRONT = Front(
    name=NAME,
    asking=asking,
    router=router,
    owns=lambda scope: scope["path"].startswith("/api/"),
    render=render,
    writer=writer_of,
    whole=whole,
    askings=ASKINGS,
    shapes=(*SHAPES, ShowBody, *SHELF_SHAPES),
    # A full queue is a server that is busy, in this dialect.
    statuses={429: 503},
    lines=True,
)
