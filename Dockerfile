ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /app
RUN python -m venv .venv
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
COPY pyproject.toml README.md ./
COPY api api
COPY tasks tasks
COPY npu npu
COPY ops ops
RUN --mount=type=cache,target=/root/.cache/pip \
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --config-settings editable_mode=compat -e . \
    && .venv/bin/python -m compileall -q api tasks npu ops

FROM ${PYTHON_IMAGE}
# llama.cpp, inside xllamacpp, computes with OpenMP, which slim images leave out.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin rockchipllama \
    && mkdir -p /app/models /app/data \
    && chown rockchipllama /app/models /app/data
COPY --from=build /app /app
COPY --chown=rockchipllama models/echo /app/models/echo
WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["rockchipllama"]
CMD ["--help"]
