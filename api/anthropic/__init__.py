"""The Anthropic front."""

from api.anthropic.problems import STATUSES, render
from api.anthropic.routes import SHAPES, asked, asking, router
from api.anthropic.speech import speaks
from api.anthropic.translate.kept import NAME, whole, writer_of
from api.fronts import Front

FRONT = Front(
    name=NAME,
    asking=asking,
    router=router,
    owns=speaks,
    render=render,
    writer=writer_of,
    whole=whole,
    askings={"/v1/messages": asked},
    shapes=SHAPES,
    statuses=STATUSES,
    echoes={
        b"x-request-id": b"request-id",
        b"x-ratelimit-limit-requests": b"anthropic-ratelimit-requests-limit",
        b"x-ratelimit-remaining-requests": b"anthropic-ratelimit-requests-remaining",
        b"x-ratelimit-limit-tokens": b"anthropic-ratelimit-tokens-limit",
        b"x-ratelimit-remaining-tokens": b"anthropic-ratelimit-tokens-remaining",
    },
)
