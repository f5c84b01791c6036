"""One trace from a client's span through HTTP and the queue to the engine, as a collector gets it from real processes."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.settings import ROOT
from tests.installed import install_packages
from tests.stack import LIMIT, Stack, eventually

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What sends traces. At home it is done without when it cannot be fetched."""
    folder = tmp_path_factory.mktemp("otel")
    install_packages("requirements-otel.lock", folder)
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    return folder


class Collector(ThreadingHTTPServer):
    """Takes traces, by OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def spans(self, trace: str) -> dict[str, Any]:
        """Those of one trace, by their names."""
        collected = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        read = (collected.ExportTraceServiceRequest.FromString(body) for body in tuple(self.bodies))
        each = [span for one in read for part in one.resource_spans for in_ in part.scope_spans for span in in_.spans]
        found = [span for span in each if span.trace_id.hex() == trace]
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def stack(packages: Path, collector: Collector) -> Iterator[Stack]:
    stack = Stack({"echo": {}}, otlp_endpoint=f"http://127.0.0.1:{collector.server_port}")
    # They are sent at once, and not after five seconds.
    stack.preload({"PYTHONPATH": os.pathsep.join((str(packages), str(ROOT))), "OTEL_BSP_SCHEDULE_DELAY": "100"})
    with stack:
        yield stack


def ask(stack: Stack, body: dict[str, Any], trace: str) -> httpx.Response:
    headers = {"traceparent": f"00-{trace}-{SPAN}-01"}
    return httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=LIMIT)


def test_a_chat_is_one_trace(stack: Stack, collector: Collector) -> None:
    """Of its client's, each span within what asked for it, with the job's figures and nothing of its words."""
    asked = ask(stack, CHAT, TRACE)
    assert asked.status_code == 200, asked.text
    names = {"POST /v1/chat/completions", "queue", "job echo", "prefill", "decode"}
    eventually(lambda: names <= collector.spans(TRACE).keys(), what="the trace")
    spans = collector.spans(TRACE)
    assert spans.keys() <= names | {"loading"}
    http, served = spans["POST /v1/chat/completions"], spans["job echo"]
    assert http.parent_span_id.hex() == SPAN
    assert {name for name, span in spans.items() if span.parent_span_id == http.span_id} == {"queue", "job echo"}
    assert {name for name, span in spans.items() if span.parent_span_id == served.span_id} >= {"prefill", "decode"}
    about = {each.key: each.value for each in served.attributes}
    assert about["rockchipllama.job"].string_value == asked.headers["x-job-id"]
    assert about["rockchipllama.board"].string_value == "test-board"
    usage = asked.json()["usage"]
    assert about["gen_ai.usage.input_tokens"].int_value == usage["prompt_tokens"]
    assert about["gen_ai.usage.output_tokens"].int_value == usage["completion_tokens"]
    moments = [
        moment
        for name in ("queue", "prefill", "decode")
        for moment in (spans[name].start_time_unix_nano, spans[name].end_time_unix_nano)
    ]
    assert moments == sorted(moments)
    assert served.start_time_unix_nano <= moments[2] and moments[-1] <= served.end_time_unix_nano
    assert not any(b"three" in body for body in collector.bodies)


def test_a_job_that_failed_is_told_as_such(stack: Stack, collector: Collector) -> None:
    """With its code."""
    trace = TRACE[::-1]
    ask(stack, CHAT, "1".zfill(32))  # a worker has its model then; before, the board refuses what can never run
    long = {**CHAT, "messages": [{"role": "user", "content": "word " * 20_000}]}
    asked = ask(stack, long, trace)
    assert asked.status_code == 400
    eventually(lambda: "job echo" in collector.spans(trace), what="the trace")
    status = collector.spans(trace)["job echo"].status
    assert (status.code, status.message) == (2, "failed: context_too_long")


def test_a_collector_that_is_away_holds_nobody_up(packages: Path) -> None:
    """Requests are answered, and the parts leave when they are told to."""
    stack = Stack({"echo": {}}, otlp_endpoint="http://127.0.0.1:9")
    stack.preload({"PYTHONPATH": os.pathsep.join((str(packages), str(ROOT)))})
    with stack:
        assert ask(stack, CHAT, TRACE).status_code == 200
        for name in ("api", "board"):
            stack.process(name).terminate()
            stack.process(name).wait(LIMIT)
