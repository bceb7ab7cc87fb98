"""What is left behind where several things happen at once: load, requests in flight, trials, figures."""

import asyncio

import pytest
from router_mocks import (
    CHAT,
    PROMPT,
    Running,
    Turn,
    answer_at_once,
    drop,
    engine,
    hold,
    quick,
    running,
    split,
    until,
)
from router_protocol_mocks import STREAM, ask, failed_event, protocol_pair, token_event

from pdctl.router.engines.breaker import State
from pdctl.router.engines.instance import Instance
from pdctl.router.messages import Failure, Head
from pdctl.router.settings import Limits
from pdctl.router.upstream.pool import Call, Pool

PARAMS = {"kv_transfer_params": {"remote_block_ids": [1]}}


def half_open(at: Running, key: str) -> Instance:
    instance = at.router.registry.instances[key]
    instance.breaker.state, instance.breaker.opened = State.OPEN, float("-inf")
    at.router.registry.check(at.router.now())
    assert instance.breaker.state is State.HALF_OPEN
    return instance


@pytest.mark.parametrize("protocol", ["builtin", "vllm-nixl", "sglang"])
@pytest.mark.parametrize("body", [b'{"model":"m","\xff":1,"prompt":"a"}', b'{"prompt":"\xed\xa0\x80"}'])
async def test_a_body_that_is_not_utf8_is_refused_and_forgotten(protocol: str, body: bytes):
    async with engine() as prefill, engine() as decode, running(splitwise=True) as at:
        await at.admit("prefill", prefill, protocol=protocol)
        await at.admit("decode", decode, protocol=protocol)
        response = await at.http.post(CHAT, content=body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_body")
        assert not at.router.in_flight


async def test_an_internal_error_leaves_no_request_in_flight(monkeypatch: pytest.MonkeyPatch):
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        monkeypatch.setattr(at.router.selector, "assigned", lambda *_: 1 // 0)
        assert (await at.post()).status_code == 500
        assert not at.router.in_flight


async def test_a_request_leaves_its_queue_though_its_model_has_been_registered_meanwhile():
    async with engine(hold) as busy, running(engine_requests=1) as at:
        await at.admit("mixed", busy)
        first = asyncio.create_task(at.post())
        turn = await busy.turn()
        waiting = asyncio.create_task(at.post({**PROMPT, "model": "new"}))
        await until(lambda: at.router.admission.depths == {"other": 1}, "the second request to wait")
        at.router.models.add("new")
        waiting.cancel()
        await until(lambda: len(at.router.in_flight) == 1, "it to be forgotten")
        assert at.router.admission.depths == {}
        await turn.answer({})
        await first
        await at.idle()


async def test_a_half_open_decode_gets_one_request_while_prefills_compute():
    async with (
        engine(hold) as prefill,
        engine() as tried,
        engine() as other,
        running(splitwise=True, limits=quick(probe_interval=1000.0)) as at,
    ):
        for role, mock in (("prefill", prefill), ("decode", tried), ("decode", other)):
            await at.admit(role, mock, protocol="vllm-nixl")
        instance = half_open(at, tried.key)
        requests = [asyncio.create_task(at.post()) for _ in range(6)]
        turns = [await prefill.turn() for _ in requests]
        assert at.load(tried)[0] == 1
        for turn in turns:
            await turn.answer(PARAMS)
        await asyncio.gather(*requests)
        assert (instance.breaker.state, instance.breaker.on_trial) == (State.CLOSED, False)
        assert instance in at.router.registry.groups["m"].decode


@pytest.mark.parametrize("outcome", ["succeeds", "fails"])
async def test_a_trial_that_begins_late_keeps_no_engine_out(outcome: str):
    """The breaker has been decided by another request when the second one reports."""
    async with engine() as mixed, engine() as other, running() as at:
        await at.admit("mixed", mixed)
        await at.admit("mixed", other)
        registry, instance = at.router.registry, half_open(at, mixed.key)
        if outcome == "succeeds":
            registry.request_succeeded(instance)
        else:
            registry.request_failed(instance, "status", "it answered 500")
        registry.try_out(instance, begins=True)
        assert not instance.breaker.on_trial
        assert (instance in registry.groups["m"].mixed) == (outcome == "succeeds")


async def test_streams_that_end_with_an_engines_error_open_its_breaker():
    async def begin_and_fail(turn: Turn) -> None:
        end = token_event("a", 1) + failed_event("server_error")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await turn.send(b"%b%x\r\n%b\r\n0\r\n\r\n" % (head, len(end), end))  # in one piece

    limits = quick(breaker_failures=3, breaker_open=1000.0, resumes=0)
    async with protocol_pair("builtin", on_decode=begin_and_fail, limits=limits) as pair:
        for _ in range(3):
            client = await ask(pair.at, STREAM)
            await client.head()
            await client.rest()
        assert pair.at.router.registry.instances[pair.decode.key].breaker.state is State.OPEN


async def test_a_retry_finds_another_prefill_where_the_first_has_no_other_decode():
    async with (
        engine() as prefill,
        engine(drop) as decode,
        engine(hold) as other_prefill,
        engine() as other_decode,
        running(splitwise=True) as at,
    ):
        for tp_size, p, d in ((2, prefill, decode), (4, other_prefill, other_decode)):
            await at.admit("prefill", p, tp_size=tp_size)
            await at.admit("decode", d, tp_size=tp_size)
        at.router.registry.instances[other_prefill.key].load.add(1000)  # a policy prefers the first
        other_prefill.on_request = answer_at_once
        assert (await at.post()).status_code == 200


async def test_a_registration_whose_client_leaves_keeps_no_connection():
    """A prefill of Mooncake's is asked for its engine id after its health."""
    async with engine(hold) as bootstrap, engine() as prefill, running(splitwise=True) as at:
        asking = asyncio.create_task(
            at.register("prefill", prefill, protocol="vllm-mooncake", bootstrap_port=bootstrap.port)
        )
        turn = await bootstrap.turn()
        assert prefill.open == 1
        asking.cancel()
        await turn.peer_left()
        await until(lambda: not prefill.open, "the connection of its health check to be closed")


async def test_what_ends_after_an_engine_was_removed_leaves_no_figures():
    async with split(on_decode=hold) as pair:
        request = asyncio.create_task(pair.at.post())
        turn = await pair.decode.turn()
        assert (await pair.at.http.delete(f"/instances/{pair.decode.key}")).status_code == 200
        await turn.answer({})
        assert (await request).status_code == 200
        metrics = pair.at.metrics
        for family in (metrics.pairs, metrics.prefill_seconds, metrics.decode_seconds):
            assert not [labels for labels in family if pair.decode.key in labels]


async def test_figures_tell_waiting_from_the_routers_own_time():
    async with engine(hold) as mixed, running(engine_requests=1, queue_timeout=0.2) as at:
        await at.admit("mixed", mixed)
        first = asyncio.create_task(at.post())
        turn = await mixed.turn()
        assert (await at.post()).status_code == 429
        metrics = at.metrics
        assert metrics.queue.total >= 0.2
        assert sum(metrics.added_latency.counts) == 0, "no leg was sent for it"
        await turn.answer({})
        await first
        assert sum(at.metrics.added_latency.counts) == 1
        assert 0 < metrics.added_latency.total < 0.2


async def test_a_long_answer_that_is_no_stream_has_no_time_between_tokens():
    async with engine(hold) as mixed, running() as at:
        await at.admit("mixed", mixed)
        request = asyncio.create_task(at.post())
        turn = await mixed.turn()
        await turn.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n{ ")
        await until(lambda: at.metrics.ttft or any(x.answer.first for x in at.router.in_flight.values()), "it")
        await turn.send(b" }")
        assert (await request).json() == {}
        assert sum(at.metrics.itl.counts) == 0


class Unwanted(Call):
    def received(self, head: Head | None, body: bytes, end: bool) -> None:
        raise AssertionError("it was cancelled")

    def failed(self, failure: Failure) -> None:
        raise AssertionError(f"it was cancelled: {failure}")


@pytest.mark.parametrize("turns", range(8))
async def test_a_call_that_is_cancelled_while_it_connects_leaves_no_connection(turns: int):
    """Of the event loop: the connection comes up in one of them, and its task goes on in a later one."""
    async with engine(hold) as mock:
        pool = Pool("127.0.0.1", mock.port, Limits())
        for _ in range(20):
            call = Unwanted(pool, pool.request(b"GET", b"/", b"", b""))
            pool.send(call)
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
        await until(lambda: not pool.open, "no connection")
