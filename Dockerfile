# The service in images, small enough for a board: `docker build --target TARGET .`
#   api         the HTTP API, and Flower; without engines
#   worker      a board: its agent, the workers, both engines
#   all-in-one  all of it and the queue, for one board in one container
#   dev         what tests need; the project is mounted over it
# RKLLM_VERSION=1.3.0 has `worker` and `all-in-one` hold that release of Rockchip's library. Without it the board's own is mounted.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
WORKDIR /app
# With the pip of the image below: the demo model is fetched by it.
RUN python3 -m venv --without-pip --system-site-packages .venv
# Symbols are three quarters of llama.cpp, and nobody tests packages here, compiles against them, translates them, or looks for
# faults in the scripts of their pages; /docs is without ReDoc. Most lexers of pygments are never used: compiled on demand.
# The libraries of numpy were moved about in their files when it was packed; they stay as they are.
COPY --chmod=755 <<"EOF" /usr/local/bin/install-packages
#!/bin/sh
set -eu
python3 -m pip --python .venv/bin/python install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$1"
find .venv -type d \( -name tests -o -name test -o -path '*/numpy/f2py' -o -path '*/pygments/lexers/__pycache__' \) -prune -exec rm -r {} +
find .venv \( -name '*.py[ix]' -o -name '*.px[di]' -o -name '*.[ach]' -o -name '*.map' -o -name '*.po' -o -name 'redoc.*' \) -delete
find .venv -name '*.so' ! -path '*/numpy*' -exec strip --strip-unneeded {} +
EOF

FROM build AS api-packages
COPY requirements-api.lock ./
RUN --mount=type=cache,target=/root/.cache/pip install-packages requirements-api.lock

FROM build AS worker-packages
COPY requirements-worker.lock ./
RUN --mount=type=cache,target=/root/.cache/pip install-packages requirements-worker.lock

FROM build AS all-packages
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip install-packages requirements.lock

FROM build AS project
COPY pyproject.toml README.md ./
COPY external external
COPY api api
COPY tasks tasks
COPY npu npu
COPY ops ops
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python .venv/bin/python install --quiet --disable-pip-version-check --no-deps --config-settings editable_mode=compat -e . \
    && .venv/bin/python -m compileall -q api tasks npu ops

FROM worker-packages AS runtime
COPY --from=project /app /app
ARG RKLLM_VERSION=
# For releases whose digest external/rkllm/libraries.toml does not list.
ARG RKLLM_SHA256=listed
RUN mkdir -p /data/runtime \
    && if [ -n "$RKLLM_VERSION" ]; then \
        .venv/bin/python -m ops.fetch_runtime "$RKLLM_VERSION" --sha256 "$RKLLM_SHA256" --data-dir /data; \
    fi

FROM ${PYTHON_IMAGE} AS base
# Whatever user runs it, the group is root's where none is named, and may write here.
RUN useradd --system --uid 10001 --gid 0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin rockchipllama \
    && install -d -o 10001 -g 0 -m 775 /app /app/models /app/data
COPY --chown=10001:0 models/echo /app/models/echo
WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    ROCKCHIPLLAMA_MODELS_DIR=/app/models \
    ROCKCHIPLLAMA_DATA_DIR=/app/data
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["rockchipllama"]

FROM base AS api
COPY --from=api-packages /app/.venv /app/.venv
COPY --from=project /app /app
USER 10001
CMD ["api"]

FROM base AS engines
# llama.cpp, inside xllamacpp, computes with OpenMP, which slim images leave out.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

FROM engines AS worker
COPY --from=worker-packages /app/.venv /app/.venv
COPY --from=runtime /data/runtime /app/external/rkllm
COPY --from=project /app /app
USER 10001
CMD ["board"]

FROM ${PYTHON_IMAGE} AS dev
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
WORKDIR /app
COPY pyproject.toml README.md requirements.lock requirements-test.lock ./
COPY ops ops
RUN --mount=type=cache,target=/root/.cache/pip ops/setup test && chmod -R a+rwX .venv
ENV HOME=/tmp
CMD ["ops/test"]

FROM engines AS all-in-one
COPY --from=all-packages /app/.venv /app/.venv
COPY --from=runtime /data/runtime /app/external/rkllm
COPY --from=project /app /app
USER 10001
ENV ROCKCHIPLLAMA_HOST=0.0.0.0
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s \
    CMD ["python", "-m", "ops.up.health"]
CMD ["up"]
