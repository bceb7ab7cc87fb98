"""OpenTelemetry traces: a span for each request and one for each of its legs, sent to a collector by a thread."""

import os
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pdctl.errors import PdctlError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

_CLOSING = 5.0  # seconds for the last spans
_MAX_TEXT = 512
_TRACES = "/v1/traces"  # where OTLP collectors take them
_CONTEXT = ("traceparent", "tracestate")
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}


def make_tracer(endpoint: str | None) -> "Tracing | None":
    """What traces requests to an OTLP collector's URL, or None without one; PdctlError if that is not possible.

    The variables of OpenTelemetry's SDK hold too: OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS.
    """
    if endpoint is None:
        return None
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise PdctlError(f"--otlp-endpoint: {endpoint!r} is no http or https URL, such as http://127.0.0.1:4318")
    if url.path in ("", "/"):
        endpoint = url._replace(path=_TRACES).geturl()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise PdctlError(f"--otlp-endpoint needs OpenTelemetry: pip install 'pdctl[otel]' ({error})") from None
    service = os.environ.get("OTEL_SERVICE_NAME", "pdctl-router")
    resource = Resource.create({"service.name": service, "process.pid": os.getpid()})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return Tracing(provider)


class Tracing:
    """A process's tracer. Create it in the process that uses it: its thread does not survive a fork."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self.tracer = provider.get_tracer("pdctl.router")
        self.propagator = TraceContextTextMapPropagator()
        self.api = trace

    def begin(self, route: str, forwarded: bytes, request_id: str, model: str) -> "RequestTrace":
        """Start a request's span. `forwarded` are its header lines for engines, in which a client may name a parent."""
        return RequestTrace(self, route, forwarded, request_id, model)

    def close(self) -> None:
        """Send what is left. Blocks for 5 s at most."""
        sending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(_CLOSING)


class RequestTrace:
    """A request's span."""

    __slots__ = ("_context", "_span", "_tracing", "forwarded")

    def __init__(self, tracing: Tracing, route: str, forwarded: bytes, request_id: str, model: str) -> None:
        self.forwarded, carrier = _split(forwarded)  # without the client's trace context: each leg has its own
        self._tracing = tracing
        attributes: dict[str, AttributeValue] = {
            "http.request.method": "POST",
            "http.route": route,
            "gen_ai.operation.name": _OPERATIONS.get(route, route),
            "gen_ai.provider.name": "pdctl",
            "gen_ai.request.id": request_id,
        }
        if model:  # what a client wrote: half a surrogate pair would cost the whole batch of spans
            attributes["gen_ai.request.model"] = model[:_MAX_TEXT].encode(errors="replace").decode()
        self._span = tracing.tracer.start_span(
            f"POST {route}", tracing.propagator.extract(carrier), tracing.api.SpanKind.SERVER, attributes
        )
        self._context = tracing.api.set_span_in_context(self._span)

    def leg(self, role: str, instance: str, attempt: int = 0) -> "LegTrace":
        """Start the span of a call to an engine; `attempt` counts from 0."""
        return LegTrace(self._tracing, self._context, role, instance, attempt)

    def end(
        self,
        status: int,
        *,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        ttft: float | None = None,
        error: str = "",
    ) -> None:
        """The request is over. `ttft` in seconds; `error` says why it failed, whatever its status."""
        span = self._span
        span.set_attribute("http.response.status_code", status)
        for name, value in (
            ("gen_ai.usage.input_tokens", prompt_tokens),
            ("gen_ai.usage.output_tokens", completion_tokens),
            ("gen_ai.response.time_to_first_chunk", ttft),
        ):
            if value is not None:
                span.set_attribute(name, value)
        _end(self._tracing, span, error or (f"status {status}" if status >= 500 else ""))


class LegTrace:
    """The span of a call to one engine."""

    __slots__ = ("_span", "_tracing", "headers", "status")

    def __init__(self, tracing: Tracing, parent: "Context", role: str, instance: str, attempt: int) -> None:
        host, _, port = instance.rpartition(":")
        attributes: dict[str, AttributeValue] = {
            "server.address": host.strip("[]"),
            "server.port": int(port),
            "pdctl.role": role,
        }
        if attempt:
            attributes["http.request.resend_count"] = attempt
        self.status: int | None = None  # of the engine's answer
        self._tracing = tracing
        self._span = tracing.tracer.start_span(role, parent, tracing.api.SpanKind.CLIENT, attributes)
        carrier: dict[str, str] = {}
        tracing.propagator.inject(carrier, tracing.api.set_span_in_context(self._span, parent))
        self.headers = "".join(f"{name}: {value}\r\n" for name, value in carrier.items()).encode()  # for the engine

    def end(self, status: int | None = None, *, error: str = "") -> None:
        """The call is over: with an answer, or `error` says why not. `status` in place of the known one."""
        status = self.status if status is None else status
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        _end(self._tracing, self._span, error or (f"status {status}" if status is not None and status >= 400 else ""))


def _end(tracing: Tracing, span: "Span", error: str) -> None:
    if error:
        span.set_status(tracing.api.StatusCode.ERROR, error)
    span.end()


def _split(forwarded: bytes) -> tuple[bytes, dict[str, str]]:
    """Header lines without those of a trace's context, and these by name."""
    carrier: dict[str, str] = {}
    if b"\r\ntrace" not in forwarded and not forwarded.startswith(b"trace"):
        return forwarded, carrier
    others: list[bytes] = []
    for line in forwarded.split(b"\r\n")[:-1]:
        name, _, value = line.decode("latin-1").partition(":")
        if name not in _CONTEXT:
            others += line, b"\r\n"
            continue
        earlier = carrier.get(name)
        carrier[name] = value.strip() if earlier is None else f"{earlier},{value.strip()}"
    return b"".join(others), carrier
