"""The OpenAI front."""

from api.fronts import Front
from api.openai.problems import render
from api.openai.routes import SHAPES, router

FRONT = Front(
    name="openai",
    router=router,
    # The default dialect: whoever asks for an unknown path most likely speaks it.
    owns=lambda path: True,
    render=render,
    shapes=SHAPES,
    headers=((b"openai-version", b"2020-10-01"),),
    elapsed_header=b"openai-processing-ms",
)
