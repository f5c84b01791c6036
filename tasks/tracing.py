"""Traces in the manner of OpenTelemetry, from a request through the queue to the engine. Nothing is loaded while that is off."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

_PARENT = "traceparent"
_SENDING = 3.0
"""Seconds for one call to the collector."""
_FAREWELL = 5.0
"""Seconds for what was not sent yet when a process ends: a collector that is away holds nobody up."""


def installed() -> bool:
    """Whether the packages that it takes are there."""
    try:
        return all(map(find_spec, ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")))
    except ModuleNotFoundError:  # not even what they lie in
        return False


def exporter(endpoint: str) -> SpanExporter:
    """What sends spans to a collector, as OTLP over HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_SENDING)


class Tracing:
    """What one process says of what it does. Spans are sent by a thread of its own, so make it after a fork."""

    def __init__(self, endpoint: str, process: str) -> None:
        """`endpoint` is the collector's URL, `process` the part of the service that this one is."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._closed = False
        self.provider: TracerProvider = TracerProvider(
            resource=Resource.create({"service.name": f"rockchipllama-{process}"}), shutdown_on_exit=False
        )
        self.provider.add_span_processor(BatchSpanProcessor(exporter(endpoint)))

    @property
    def tracer(self) -> Tracer:
        """What makes spans."""
        tracer: Tracer = self.provider.get_tracer("rockchipllama")
        return tracer

    def close(self) -> None:
        """Send what is left, within a few seconds. Twice is safe."""
        if not self._closed:
            self._closed = True
            last = threading.Thread(target=self.provider.shutdown, name="last spans", daemon=True)
            last.start()
            last.join(_FAREWELL)


def current() -> str | None:
    """The span that this task is in, in the words of the header `traceparent`; None when it is in none."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(_PARENT)


def within(traceparent: str) -> Context:
    """The context whose current span those words name."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({_PARENT: traceparent})
