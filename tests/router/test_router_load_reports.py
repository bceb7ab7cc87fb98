"""Load reports: read from each engine's metrics, dropped when old."""

import logging
from collections.abc import AsyncIterator

import pytest
from router_mocks import MockEngine, Turn, engine, hold, until

from pdctl.router.engines.instance import Instance, Registration, Reported
from pdctl.router.engines.load import Load
from pdctl.router.engines.load_reports import LoadReports, parse_load
from pdctl.router.settings import Limits

BUILTIN = b"""\
# HELP pdctl:num_requests_running Sequences being computed.
# TYPE pdctl:num_requests_running gauge
pdctl:num_requests_running 3.0
pdctl:num_requests_waiting 2.0
pdctl:num_requests_held 7.0
pdctl:kv_cache_usage_perc 0.25
"""
VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="a {strange} name, \\"quoted\\""} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1e1 1395066363000
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.4
vllm:prompt_tokens_total{engine="0",model_name="m"} NaN
"""
SGLANG_DECODE = b"""\
sglang:num_running_reqs{model_name="m",tp_rank="0"} 5.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 0.0
sglang:num_decode_prealloc_queue_reqs{model_name="m",tp_rank="0"} 2.0
sglang:num_decode_transfer_queue_reqs{model_name="m",tp_rank="0"} 1.0
sglang:num_running_reqs_offline_batch{model_name="m",tp_rank="0"} 50.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.5
"""
FASTDEPLOY = b"""\
fastdeploy:num_requests_running 6.0
fastdeploy:num_requests_waiting 0.0
fastdeploy:gpu_cache_usage_perc 0.125
"""


def instance_of(mock: MockEngine, metrics: MockEngine | None = None) -> Instance:
    port = metrics.port if metrics is not None else 0
    registration = Registration(role="decode", host_ip="127.0.0.1", port=mock.port, metrics_port=port)
    instance = Instance(registration, Limits(), Load())
    instance.live = True
    return instance


async def pass_on(turn: Turn) -> None:
    """Leave the answer to the test, and take the connection's next request."""


@pytest.fixture
async def mock() -> AsyncIterator[MockEngine]:
    async with engine(pass_on) as mock:
        yield mock


@pytest.fixture
async def reports() -> AsyncIterator[LoadReports]:
    reports = LoadReports()
    yield reports
    reports.close()


@pytest.mark.parametrize(
    ("text", "load"),
    [
        (BUILTIN, (3, 2)),
        (VLLM, (7, 11)),
        (SGLANG_DECODE, (5, 3)),
        (FASTDEPLOY, (6, 0)),
        (b"pdctl:num_requests_waiting 1\r\npdctl:num_requests_running 2\r\n", (2, 1)),
    ],
)
def test_every_engine_is_understood(text: bytes, load: tuple[float, float]):
    assert tuple(parse_load(text)) == load


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "no running requests by a known name"),
        (b"vllm:num_requests_running 1\n", "no waiting requests by a known name"),
        (b"vllm:num_requests_running\nvllm:num_requests_waiting 1\n", "no number in b'vllm:num_requests_running'"),
        (b"vllm:num_requests_running{} NaN\nvllm:num_requests_waiting 1\n", "no number in"),
        (b"vllm:num_requests_running x\nvllm:num_requests_waiting 1\n", "could not convert"),
    ],
)
def test_what_tells_no_load_is_refused(text: bytes, reason: str):
    with pytest.raises(ValueError, match=reason):
        parse_load(text)


async def test_a_report_counts_what_was_in_flight_when_it_was_asked_for(mock: MockEngine, reports: LoadReports):
    instance = instance_of(mock)
    instance.load.add(10)
    reports.check(50.0, [instance])
    turn = await mock.turn()
    assert (turn.method, turn.target) == ("GET", "/metrics")
    instance.load.add(10)  # may not be in the engine's numbers yet
    await turn.answer(BUILTIN)
    await until(lambda: instance.reported, "a report")
    assert instance.reported == Reported(3, 2, 1, 50.0)


async def test_an_engine_is_asked_once_at_a_time(mock: MockEngine, reports: LoadReports):
    instance = instance_of(mock)
    for now in range(3):
        reports.check(float(now), [instance])
    turn = await mock.turn()
    await turn.answer(BUILTIN)
    await until(lambda: not reports._tasks, "the end of the question")
    assert mock.turns.empty()
    reports.check(3.0, [instance])
    assert (await mock.turn()).target == "/metrics"


async def test_a_metrics_port_of_its_own_is_asked(mock: MockEngine, reports: LoadReports):
    async with engine(pass_on) as metrics:
        instance = instance_of(mock, metrics)
        for now in (0.0, 1.0):
            reports.check(now, [instance])
            await (await metrics.turn()).answer(FASTDEPLOY)
            await until(lambda now=now: instance.reported and instance.reported.at == now, "a report")
        assert (mock.connections, metrics.connections) == (0, 1)
        reports.check(2.0, [])
        await until(lambda: not metrics.open, "the connection's end")


async def test_old_reports_are_dropped(mock: MockEngine, reports: LoadReports):
    instance = instance_of(mock)
    instance.reported = Reported(1, 2, 3, 100.0)
    reports.check(110.0, [instance])
    assert instance.reported is not None
    reports.check(110.1, [instance])
    assert instance.reported is None


async def test_engines_that_are_not_live_are_not_asked(mock: MockEngine, reports: LoadReports):
    instance = instance_of(mock)
    instance.live = False
    reports.check(0.0, [instance])
    assert not reports._tasks


async def test_trouble_is_logged_once_until_it_is_over(
    mock: MockEngine, reports: LoadReports, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    instance = instance_of(mock)
    for status, body in ((404, b"{}"), (200, b""), (200, BUILTIN), (500, b"")):
        reports.check(0.0, [instance])
        await (await mock.turn()).answer(body, status)
        await until(lambda: not reports._tasks, "the end of the question")
    first, second = caplog.records
    assert "no load report of decode instance" in first.message
    assert "/metrics answers 404" in first.message
    assert "/metrics answers 500" in second.message


async def test_an_engine_that_leaves_or_the_end_leaves_nothing_behind(mock: MockEngine, reports: LoadReports):
    mock.on_request = hold
    instance = instance_of(mock)
    reports.check(0.0, [instance])
    turn = await mock.turn()
    task = reports._tasks[instance.key]
    reports.check(1.0, [])
    await turn.peer_left()
    await until(lambda: not reports._tasks, "the end of the question")
    assert task.cancelled()  # and not waited for
    reports.check(2.0, [instance])
    turn = await mock.turn()
    reports.close()
    await turn.peer_left()
