"""The OpenAI front."""

from api.fronts import Front
from api.openai import batches, files, not_offered, tokens
from api.openai.endpoints import ASKINGS
from api.openai.problems import render
from api.openai.routes import SHAPES, asking, router
from api.openai.translate.kept import NAME, whole, writer_of

router.include_router(files.router)
router.include_router(batches.router)
router.include_router(not_offered.router)
router.include_router(tokens.router)

FRONT = Front(
    name=NAME,
    asking=asking,
    router=router,
    # The default dialect claims nothing: what no other front does is its own.
    owns=lambda scope: False,
    render=render,
    writer=writer_of,
    whole=whole,
    askings=ASKINGS,
    shapes=(*SHAPES, batches.BatchBody, *tokens.SHAPES),
    headers=((b"openai-version", b"2020-10-01"),),
    elapsed_header=b"openai-processing-ms",
)
