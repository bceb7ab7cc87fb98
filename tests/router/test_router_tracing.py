"""Traces: what reaches a collector, and which trace context reaches engines."""

import re
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from pdctl.errors import PdctlError
from pdctl.router.figures.tracing import Tracing, make_tracer

CHAT = "/v1/chat/completions"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FROM_CLIENT = f"traceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=1\r\n".encode()


class Collector:
    """A server that takes what exporters send."""

    def __init__(self) -> None:
        self.requests: Queue[tuple[str, bytes]] = Queue()
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                requests.put((self.path, self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def exported(self, tracing: Tracing) -> list[Span]:
        """Everything, after the tracer has been closed."""
        tracing.close()
        spans = []
        while not self.requests.empty():
            path, body = self.requests.get()
            assert path == "/v1/traces"
            export = ExportTraceServiceRequest.FromString(body)
            [resource] = export.resource_spans
            assert attributes(resource.resource)["service.name"] == "pdctl-router"
            spans += [span for scope in resource.scope_spans for span in scope.spans]
        return spans


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch):
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def tracer(endpoint: str) -> Tracing:
    tracing = make_tracer(endpoint)
    assert tracing is not None
    return tracing


def attributes(of: Any) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


def test_a_request_and_its_legs_reach_the_collector(collector: Collector):
    tracing = tracer(collector.url)
    request = tracing.begin(CHAT, b"x-a: 1\r\n" + FROM_CLIENT + b"x-b: 2\r\n", "r-1", "smollm2")
    assert request.forwarded == b"x-a: 1\r\nx-b: 2\r\n"
    prefill, decode = request.leg("prefill", "10.0.0.1:8001"), request.leg("decode", "[::1]:8002", attempt=1)
    prefill.end(200)
    decode.end(200)
    request.end(200, prompt_tokens=20, completion_tokens=7, ttft=0.5)
    spans = {span.name: span for span in collector.exported(tracing)}
    assert set(spans) == {f"POST {CHAT}", "prefill", "decode"}
    top = spans[f"POST {CHAT}"]
    assert top.kind == Span.SPAN_KIND_SERVER
    assert (top.trace_id.hex(), top.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(top) == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "pdctl",
        "gen_ai.request.id": "r-1",
        "gen_ai.request.model": "smollm2",
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.response.time_to_first_chunk": 0.5,
    }
    for name, leg in (("prefill", prefill), ("decode", decode)):
        span = spans[name]
        assert span.kind == Span.SPAN_KIND_CLIENT
        assert (span.trace_id, span.parent_span_id) == (top.trace_id, top.span_id)
        assert leg.headers == f"traceparent: 00-{TRACE}-{span.span_id.hex()}-01\r\ntracestate: a=1\r\n".encode()
        assert span.status.code == Status.STATUS_CODE_UNSET
    assert attributes(spans["prefill"]) == {
        "server.address": "10.0.0.1",
        "server.port": 8001,
        "pdctl.role": "prefill",
        "http.response.status_code": 200,
    }
    assert attributes(spans["decode"])["server.address"] == "::1"
    assert attributes(spans["decode"])["http.request.resend_count"] == 1


def test_failures_are_errors(collector: Collector):
    tracing = tracer(collector.url)
    request = tracing.begin(CHAT, b"", "r", "")
    request.leg("prefill", "127.0.0.1:1").end(error="connection refused")
    request.leg("decode", "127.0.0.1:2").end(429)
    request.end(502)
    tracing.begin("/v1/completions", b"", "r2", "m").end(200, error="broken off")
    tracing.begin("/v1/completions", b"", "r3", "m").end(400)
    prefill, decode, failed, broken, refused = collector.exported(tracing)
    assert [(span.status.code, span.status.message) for span in (prefill, decode, failed, broken)] == [
        (Status.STATUS_CODE_ERROR, "connection refused"),
        (Status.STATUS_CODE_ERROR, "status 429"),
        (Status.STATUS_CODE_ERROR, "status 502"),
        (Status.STATUS_CODE_ERROR, "broken off"),
    ]
    assert refused.status.code == Status.STATUS_CODE_UNSET, "the client's mistake is not the server's"
    assert "http.response.status_code" not in attributes(prefill)
    assert "gen_ai.request.model" not in attributes(failed)
    assert attributes(broken)["gen_ai.operation.name"] == "text_completion"


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"tracing: on\r\n",
        b"traceparent: nonsense\r\n",
        f"traceparent: 00-{'0' * 32}-{PARENT}-01\r\n".encode(),
        FROM_CLIENT[: FROM_CLIENT.index(b"tracestate")] * 2,
    ],
)
def test_without_a_parent_a_trace_begins_here(collector: Collector, headers: bytes):
    tracing = tracer(collector.url)
    request = tracing.begin(CHAT, headers, "r", "m")
    leg = request.leg("mixed", "127.0.0.1:1")
    leg.end(200)
    request.end(200)
    assert request.forwarded == (headers if headers.startswith(b"tracing") else b"")
    child, top = collector.exported(tracing)
    assert top.parent_span_id == b""
    assert top.trace_id.hex() != TRACE
    sent = leg.headers.decode()
    assert re.fullmatch(rf"traceparent: 00-{top.trace_id.hex()}-{child.span_id.hex()}-0[13]\r\n", sent), "sampled"


def test_what_the_client_does_not_sample_is_passed_on_and_not_exported(collector: Collector):
    tracing = tracer(collector.url)
    request = tracing.begin(CHAT, f"traceparent: 00-{TRACE}-{PARENT}-00\r\n".encode(), "r", "m")
    leg = request.leg("decode", "127.0.0.1:1")
    assert re.fullmatch(rf"traceparent: 00-{TRACE}-[0-9a-f]{{16}}-00\r\n", leg.headers.decode())
    leg.end(200)
    request.end(200)
    assert collector.exported(tracing) == []


def test_a_model_name_of_any_kind_is_exported(collector: Collector):
    tracing = tracer(collector.url)
    tracing.begin(CHAT, b"", "r", "\ud800" + "x" * 10_000).end(404)
    [span] = collector.exported(tracing)
    assert attributes(span)["gen_ai.request.model"] == "?" + "x" * 511


def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pdctl.router.figures.tracing._CLOSING", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = tracer(f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracing.begin(CHAT, b"", "r", "m").end(200)
        before = time.monotonic()
        tracing.close()
        assert time.monotonic() - before < 5, "the exporter itself would wait for 10 s"
        assert select.select([silent], [], [], 10)[0], "it has tried"


def test_an_endpoint_with_a_path_is_taken_as_it_is(collector: Collector):
    tracing = tracer(f"{collector.url}/otlp/traces")
    tracing.begin(CHAT, b"", "r", "m").end(200)
    tracing.close()
    assert collector.requests.get(timeout=10)[0] == "/otlp/traces"


def test_without_an_endpoint_nothing_is_traced():
    assert make_tracer(None) is None


@pytest.mark.parametrize("endpoint", ["", "collector:4318", "ftp://collector", "http://"])
def test_an_endpoint_that_is_none_is_said(endpoint: str):
    with pytest.raises(
        PdctlError, match=r"^--otlp-endpoint: '.*' is no http or https URL, such as http://127.0.0.1:4318$"
    ):
        make_tracer(endpoint)


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(PdctlError, match=r"^--otlp-endpoint needs OpenTelemetry: pip install 'pdctl\[otel\]'"):
        make_tracer("http://127.0.0.1:4318")
