import asyncio
import math
import socket
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest

from pdctl.bench import runner
from pdctl.bench.arrivals import arrival_times
from pdctl.bench.client import BenchError, open_session, served_model
from pdctl.bench.dataset import SyntheticDataset
from pdctl.bench.records import Tally, Workload
from pdctl.bench.runner import run_benchmark
from tests.bench.sse_server import SseServer, running


def workload(**settings):
    return Workload(**{"dataset": SyntheticDataset(12, 5, 1), "warmup": 0} | settings)


async def test_open_loop_sends_on_schedule_while_answers_are_outstanding():
    hold = asyncio.Event()
    async with running(SseServer(hold=hold)) as server:
        tally = Tally()
        run = asyncio.create_task(
            run_benchmark(workload(rate=100, requests=40, seed=5), server.url, "tiny", tally=tally)
        )
        await server.until(lambda: server.in_flight == 40)
        assert tally.sent == 40
        assert tally.done == 0
        hold.set()
        result = await run
    due = arrival_times(40, 100, seed=5)
    assert [record.intended for record in result.records] == due
    for record in result.records:
        assert record.sent >= record.intended
        assert record.lag == pytest.approx(record.sent - record.intended, abs=1e-3)
    assert len(result.completed) == 40
    assert result.duration >= due[-1]


@pytest.fixture
def clock(monkeypatch):
    """The benchmark's clock, which a test sets."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(runner, "perf_counter", lambda: clock.now)
    return clock


def answered(server, clock, now):
    """Let the requests that the server holds be answered at that time; it holds those that come then."""
    clock.now = now
    held, server.hold = server.hold, asyncio.Event()
    held.set()


async def test_open_loop_counts_the_wait_for_a_place_as_queueing_and_not_as_lag(clock):
    async with running(SseServer(hold=asyncio.Event())) as server:
        run = asyncio.create_task(run_benchmark(workload(rate=math.inf, requests=6, concurrency=2), server.url, "tiny"))
        for turn in (1, 2, 3):
            await server.until(lambda sent=2 * turn: len(server.bodies) == sent and server.in_flight == 2)
            answered(server, clock, float(turn))
        result = await run
    assert server.most_in_flight == 2
    assert sorted(record.queued for record in result.records) == [0, 0, 1, 1, 2, 2]
    assert [record.lag for record in result.records] == [0] * 6
    assert all(record.wait == record.queued for record in result.records)


async def test_closed_loop_keeps_its_users_busy_one_request_each():
    async with running(SseServer(token_interval_s=0.004)) as server:
        result = await run_benchmark(workload(concurrency=3, requests=12), server.url, "tiny")
    assert server.most_in_flight == 3
    assert len(result.completed) == 12
    assert len({body["messages"][0]["content"] for body in server.bodies}) == 12


async def test_closed_loop_starts_nothing_after_its_duration(clock):
    async with running(SseServer(hold=asyncio.Event())) as server:
        run = asyncio.create_task(run_benchmark(workload(concurrency=2, duration_s=0.3), server.url, "tiny"))
        for sent, now in ((2, 0.1), (4, 0.29), (6, 0.3)):
            await server.until(lambda sent=sent: len(server.bodies) == sent and server.in_flight == 2)
            answered(server, clock, now)
        result = await run
    assert [record.sent for record in result.records] == [0, 0, 0.1, 0.1, 0.29, 0.29]
    assert result.duration == 0.3


async def test_open_loop_duration_is_rate_times_duration_requests():
    async with running(SseServer()) as server:
        result = await run_benchmark(workload(rate=50, duration_s=0.5, burstiness=math.inf), server.url, "tiny")
    assert len(result.records) == 25
    gaps = [later.intended - earlier.intended for earlier, later in pairwise(result.records)]
    assert gaps == pytest.approx([0.02] * 24)


async def test_times_and_tokens_of_a_request():
    async with running(SseServer(token_interval_s=0.02)) as server:
        result = await run_benchmark(workload(concurrency=1, requests=1, keep_texts=True), server.url, "tiny")
    (record,) = result.records
    assert record.output_tokens == 5
    assert record.answer.input_tokens == 12 + 3  # the words, and those of the message around them
    assert len(record.answer.gaps) == 4
    assert 0.02 <= record.ttft < record.e2el <= record.done - record.sent
    assert record.tpot == pytest.approx((record.e2el - record.ttft) / 4)
    assert record.tpot > 0.0195
    assert "".join(record.answer.texts) == "tok " * 5


async def test_requests_ask_for_what_the_workload_says():
    async with running(SseServer()) as server:
        await run_benchmark(
            workload(concurrency=1, requests=1, endpoint="completions", ignore_eos=False, continuous_usage=True),
            server.url + "/v1/",
            "tiny",
        )
        await run_benchmark(workload(concurrency=1, requests=1), server.url, "tiny")
    completion, chat = server.bodies
    text = SyntheticDataset(12, 5, 1).prompt(0).text
    assert completion == {
        "model": "tiny",
        "prompt": text,
        "max_tokens": 5,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    assert chat["messages"] == [{"role": "user", "content": text}]
    assert chat["ignore_eos"] is True
    assert chat["stream_options"] == {"include_usage": True}


async def test_every_kind_of_failure_is_counted_and_the_others_complete():
    kinds = ["500", "truncated", "disconnect", "error event", "empty"]
    async with running(SseServer(misbehave=dict(enumerate(kinds)))) as server:
        result = await run_benchmark(workload(concurrency=1, requests=8), server.url, "tiny")
    assert Counter(record.answer.error_kind for record in result.failed) == {
        "http 500": 1,
        "truncated": 1,
        "disconnected": 1,
        "error event": 1,
        "empty": 1,
    }
    assert len(result.completed) == 3
    assert result.error_rate == pytest.approx(5 / 8)
    assert "no room" in result.records[0].answer.error


async def test_a_request_over_its_time_fails_and_a_dead_server_is_named():
    async with running(SseServer(hold=asyncio.Event())) as server:
        result = await run_benchmark(workload(concurrency=1, requests=1, timeout_s=0.2), server.url, "tiny")
    assert result.records[0].answer.error_kind == "timeout"
    assert "0.2 s" in result.records[0].answer.error
    result = await run_benchmark(workload(concurrency=1, requests=1), server.url, "tiny")
    assert result.records[0].answer.error_kind == "connect"
    assert result.error_rate == 1.0


async def test_stopping_keeps_what_was_answered_and_gives_up_the_rest():
    async with running(SseServer()) as server:
        stop = asyncio.Event()
        run = asyncio.create_task(run_benchmark(workload(rate=20, requests=1000), server.url, "tiny", stop=stop))
        await server.until(lambda: len(server.bodies) >= 5 and server.in_flight == 0)
        server.hold = asyncio.Event()
        await server.until(lambda: server.in_flight >= 2)
        stop.set()
        result = await run
    assert result.interrupted
    assert len(result.completed) >= 5
    assert result.cancelled >= 2
    assert not result.failed


async def test_cancelling_the_benchmark_ends_its_requests():
    async with running(SseServer(hold=asyncio.Event())) as server:
        run = asyncio.create_task(run_benchmark(workload(concurrency=2, requests=2), server.url, "tiny"))
        await server.until(lambda: server.in_flight >= 2)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await server.until(lambda: server.in_flight == 0)


async def test_warm_up_is_not_part_of_the_result_and_shares_no_prompt_with_it():
    async with running(SseServer()) as server:
        tally = Tally()
        result = await run_benchmark(workload(concurrency=1, requests=3, warmup=2), server.url, "tiny", tally=tally)
    assert len(server.bodies) == 5
    assert len({body["messages"][0]["content"] for body in server.bodies}) == 5
    assert len(result.records) == 3
    assert tally.output_tokens == 15


async def test_a_failing_warm_up_ends_the_benchmark():
    async with running(SseServer(misbehave={0: "500"})) as server:
        with pytest.raises(BenchError, match=r"warm-up.*http 500.*no room"):
            await run_benchmark(workload(concurrency=1, requests=3, warmup=1), server.url, "tiny")
    assert len(server.bodies) == 1


async def test_served_model_is_the_first_one_listed():
    async with running(SseServer()) as server, open_session(5) as session:
        assert await served_model(session, server.url) == "tiny"
        with pytest.raises(BenchError, match="answered 404"):
            await served_model(session, server.url + "/nothing")


async def test_no_server_is_said_with_the_url():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with open_session(5) as session:
            with pytest.raises(BenchError, match=url):
                await served_model(session, url)


@pytest.mark.parametrize(
    "settings",
    [
        {"requests": 1},
        {"rate": 1.0},
        {"rate": 1.0, "requests": 1, "duration_s": 1.0},
        {"rate": math.inf, "duration_s": 1.0},
        {"rate": 0.0, "requests": 1},
        {"rate": 1.0, "requests": 1, "burstiness": 0.0},
    ],
)
def test_impossible_workloads_are_refused(settings):
    with pytest.raises(ValueError, match=r"needs|must be"):
        workload(**settings)
