"""Traces of real requests: the spans that reach a collector, and the trace context that reaches engines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from router_mocks import CHAT, LIMIT, PROMPT, MockEngine, Running, Turn, drop, engine, hold, running, split
from router_processes import process, ready, to_each_worker

from pdctl.errors import ExitCode
from pdctl.router.figures import tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FROM_CLIENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


async def take(turn: Turn) -> None:
    await turn.answer(b"")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch):
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def collector() -> AsyncIterator[MockEngine]:
    async with engine(take) as mock:
        yield mock


async def sent(mock: MockEngine) -> dict[str, list[Span]]:
    """The spans that the collector has got, by name."""
    spans: dict[str, list[Span]] = {}
    while not mock.turns.empty():
        turn = mock.turns.get_nowait()
        assert turn.target == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(turn.body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    spans.setdefault(span.name, []).append(span)
    return spans


async def closed(at: Running) -> None:
    """Send what is left, while the collector goes on."""
    await asyncio.wait_for(asyncio.to_thread(at.router.tracing.close), LIMIT)


def attributes(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


async def test_a_request_and_both_legs():
    async with collector() as to, split(otlp_endpoint=to.url) as pair:
        response = await pair.at.post(headers=FROM_CLIENT | {"X-Request-Id": "mine"})
        assert response.status_code == 200
        turns = [await pair.prefill.turn(), await pair.decode.turn()]
        await closed(pair.at)
        spans = await sent(to)
        [top], [prefill], [decode] = spans[f"POST {CHAT}"], spans["prefill"], spans["decode"]
        assert (top.trace_id.hex(), top.parent_span_id.hex()) == (TRACE, PARENT)
        known = attributes(top)
        assert (known["gen_ai.request.id"], known["gen_ai.request.model"]) == ("mine", "m")
        assert known["http.response.status_code"] == 200
        assert top.status.code == Status.STATUS_CODE_UNSET
        for leg, turn, mock in zip((prefill, decode), turns, (pair.prefill, pair.decode), strict=True):
            assert (leg.trace_id, leg.parent_span_id) == (top.trace_id, top.span_id)
            assert turn.headers["traceparent"] == f"00-{TRACE}-{leg.span_id.hex()}-01"
            assert attributes(leg)["server.port"] == mock.port
            assert top.start_time_unix_nano <= leg.start_time_unix_nano <= leg.end_time_unix_nano
            assert attributes(leg)["http.response.status_code"] == 200
            assert leg.status.code == Status.STATUS_CODE_UNSET


async def test_a_retry_has_a_span_for_each_try():
    async with collector() as to, engine(drop) as mixed, engine() as good, running(otlp_endpoint=to.url) as at:
        await at.admit("mixed", mixed)
        request = asyncio.create_task(at.post())
        await mixed.turn()
        await at.admit("mixed", good)
        status = (await request).status_code
        await closed(at)
        spans = await sent(to)
        first, *others = spans["mixed"]
        assert first.status.code == Status.STATUS_CODE_ERROR
        assert len(others) == (status == 200)
        [top] = spans[f"POST {CHAT}"]
        assert (top.status.code == Status.STATUS_CODE_ERROR) == (status != 200)


async def refused(turn: Turn) -> None:
    await turn.answer({"error": {"message": "no"}}, 400)


async def test_what_failed_is_an_error():
    async with collector() as to, engine(drop) as mixed, running(otlp_endpoint=to.url) as at:
        assert (await at.post()).status_code == 503, "there is no engine"
        await at.admit("mixed", mixed)
        assert (await at.post()).status_code == 502
        await closed(at)
        spans = await sent(to)
        without, failed = spans[f"POST {CHAT}"]
        for span, status in ((without, 503), (failed, 502)):
            assert attributes(span)["http.response.status_code"] == status
            assert span.status.code == Status.STATUS_CODE_ERROR
        assert without.status.message == "no mixed instance is registered"
        assert mixed.url in failed.status.message


async def test_a_clients_own_error_is_none_of_the_routers():
    async with collector() as to, engine(refused) as mixed, running(otlp_endpoint=to.url) as at:
        await at.admit("mixed", mixed)
        assert (await at.post()).status_code == 400
        await closed(at)
        [leg] = (await sent(to))["mixed"]
        assert attributes(leg)["http.response.status_code"] == 400


async def test_a_client_that_left_leaves_no_span_open():
    async with collector() as to, engine(hold) as mixed, running(otlp_endpoint=to.url) as at:
        await at.admit("mixed", mixed)
        request = asyncio.create_task(at.post())
        turn = await mixed.turn()
        request.cancel()
        await turn.peer_left()
        await at.idle()
        await closed(at)
        spans = await sent(to)
        [top], [leg] = spans[f"POST {CHAT}"], spans["mixed"]
        assert attributes(top)["http.response.status_code"] == 499
        assert leg.status.message == "dropped"


async def test_every_worker_sends_its_spans():
    async with collector() as to, engine() as mixed, ready("--workers", "2", "--otlp-endpoint", to.url) as router:
        await router.register("mixed", mixed)
        async with to_each_worker(router) as each:
            for http in each:
                assert (await http.post(CHAT, json=PROMPT)).status_code == 200
        router.kill()
        assert await router.exit() == 0
        assert len((await sent(to))["mixed"]) == 2


async def test_a_collector_that_is_gone_harms_no_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracing, "_CLOSING", 0.1)
    async with engine() as gone:
        url = gone.url
    async with engine() as mixed, running(otlp_endpoint=url) as at:
        await at.admit("mixed", mixed)
        assert (await at.post()).status_code == 200


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_wrong_endpoint_is_refused_by_one_line(workers: str):
    async with process("--otlp-endpoint", "collector:4318", "--workers", workers) as router:
        assert await router.exit() == ExitCode.FAILURE
        assert router.log.count("\n") == 1
        assert "--otlp-endpoint: 'collector:4318' is no http or https URL" in router.log
