"""Engines that keep failing requests get none for a while, then one to try; when all do, they are used all the same."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_mocks import (
    ANSWER,
    MockEngine,
    Running,
    Split,
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
from router_protocol_mocks import STREAM, OnRequest, ask

from pdctl.router.engines.breaker import Breaker, State

# The breaker alone.


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    assert [breaker.failed(at, 2) for _ in range(2)] == [False, True]
    return breaker


def test_it_opens_at_the_threshold_only():
    breaker = Breaker()
    assert [breaker.failed(0.0, 3) for _ in range(4)] == [False, False, True, False]
    assert (breaker.state, breaker.admits) == (State.OPEN, False)


def test_successes_between_failures_keep_it_closed():
    breaker = Breaker()
    for _ in range(5):
        assert not breaker.failed(0.0, 2)
        breaker.reset()
    assert breaker.admits


def test_it_cools_down_once():
    breaker = opened(at=10.0)
    assert not breaker.cooled_down(14.9, 5.0)
    assert breaker.cooled_down(15.0, 5.0)
    assert not breaker.cooled_down(20.0, 5.0)
    assert (breaker.state, breaker.admits) == (State.HALF_OPEN, True)


def test_a_trial_is_one_request():
    breaker = opened()
    breaker.cooled_down(5.0, 5.0)
    breaker.on_trial = True
    assert not breaker.admits
    assert breaker.failed(6.0, 2), "one failure is enough"
    assert (breaker.state, breaker.on_trial, breaker.opened) == (State.OPEN, False, 6.0)
    breaker.cooled_down(11.0, 5.0)
    breaker.reset()
    assert (breaker.state, breaker.failures, breaker.admits) == (State.CLOSED, 0, True)


@given(st.lists(st.sampled_from(["fail", "succeed", "wait"])), st.integers(1, 4))
def test_it_never_admits_while_open_nor_opens_too_soon(events: list[str], threshold: int):
    breaker, now, failures = Breaker(), 0.0, 0
    for event in events:
        if event == "wait":
            now += 5.0
            breaker.cooled_down(now, 5.0)
        elif event == "succeed":
            breaker.reset()
            failures = 0
        else:
            breaker.failed(now, threshold)
            failures += 1
        assert (breaker.state is State.CLOSED) == (failures < threshold)
        assert breaker.admits == (breaker.state is not State.OPEN)


# In a router.


async def fail(turn: Turn) -> None:
    await turn.answer({"error": {"message": "broken"}}, 500)


def state(at: Running, mock: MockEngine) -> State:
    return at.router.registry.instances[mock.key].breaker.state


async def open_breaker(at: Running, mock: MockEngine) -> None:
    """Have an engine fail requests until it gets none."""
    while state(at, mock) is not State.OPEN:
        await at.post()
    assert at.router.registry.instances[mock.key].live


def limits(**fields: Any) -> Any:
    return quick(**({"breaker_failures": 3, "breaker_open": 1000.0, "probe_interval": 1000.0} | fields))


@pytest.mark.parametrize("bad", [fail, drop])
async def test_an_engine_that_keeps_failing_gets_no_more_requests(bad: OnRequest):
    async with engine(bad) as failing, engine() as good, running(limits=limits()) as at:
        await at.admit("mixed", failing)
        await at.admit("mixed", good)
        for _ in range(20):
            assert (await at.post()).status_code == 200, "each was tried again"
        assert at.metrics.retries.value == 3
        assert state(at, failing) is State.OPEN
        figures = (await at.http.get("/metrics")).text
        assert f'instance_breaker_state{{role="mixed",instance="{failing.key}"}} 2' in figures
        [described] = [one for one in (await at.http.get("/instances")).json() if one["id"] == failing.key]
        assert (described["breaker"], described["state"]) == ("open", "ready")
        await at.idle()


@pytest.mark.parametrize("status", [400, 404, 408, 422, 429])
async def test_refusals_are_no_failures(status: int):
    async def refuse(turn: Turn) -> None:
        await turn.answer({}, status)

    async with engine(refuse) as mixed, running(limits=limits(breaker_failures=1)) as at:
        await at.admit("mixed", mixed)
        assert (await at.post()).status_code == status
        assert state(at, mixed) is State.CLOSED


async def test_a_trial_that_succeeds_closes_the_breaker():
    async with engine(fail) as mixed, engine() as other, running(limits=limits()) as at:
        await at.admit("mixed", mixed)
        await at.admit("mixed", other)
        await open_breaker(at, mixed)
        cool_down(at, mixed)
        mixed.on_request = answer_at_once
        urls = [(await at.post()).headers["x-router-decode-url"] for _ in range(2)]
        assert sorted(urls) == sorted([mixed.url, other.url])
        assert state(at, mixed) is State.CLOSED
        await at.idle()


async def test_a_trial_that_fails_opens_it_again():
    async with engine(fail) as mixed, engine() as other, running(limits=limits()) as at:
        await at.admit("mixed", mixed)
        await at.admit("mixed", other)
        await open_breaker(at, mixed)
        cool_down(at, mixed)
        before = mixed.turns.qsize()
        for _ in range(6):
            assert (await at.post()).headers["x-router-decode-url"] == other.url
        assert mixed.turns.qsize() == before + 1
        assert state(at, mixed) is State.OPEN


async def test_there_is_one_trial_at_a_time():
    async with engine(fail) as mixed, engine() as other, running(limits=limits()) as at:
        await at.admit("mixed", mixed)
        await at.admit("mixed", other)
        await open_breaker(at, mixed)
        mixed.turns = asyncio.Queue()
        mixed.on_request = hold
        cool_down(at, mixed)
        requests = [asyncio.create_task(at.post()) for _ in range(6)]
        turn = await mixed.turn()
        await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(3):
            assert (await at.post()).headers["x-router-decode-url"] == other.url
        assert mixed.turns.empty()
        await turn.answer(ANSWER)
        assert [(await request).status_code for request in requests] == [200] * 6
        assert state(at, mixed) is State.CLOSED


async def test_a_trial_that_its_client_leaves_is_followed_by_another():
    async with engine(fail) as mixed, engine() as other, running(limits=limits()) as at:
        await at.admit("mixed", mixed)
        await at.admit("mixed", other)
        await open_breaker(at, mixed)
        mixed.turns = asyncio.Queue()
        mixed.on_request = hold
        cool_down(at, mixed)
        clients = [await ask(at) for _ in range(2)]  # one of them is the trial
        turn = await mixed.turn()
        for client in clients:
            client.leave()
        await turn.peer_left()
        await at.idle()
        assert state(at, mixed) is State.HALF_OPEN
        mixed.on_request = answer_at_once
        urls = {(await at.post()).headers["x-router-decode-url"] for _ in range(2)}
        assert mixed.url in urls
        assert state(at, mixed) is State.CLOSED


async def test_when_every_engine_fails_they_are_used_all_the_same():
    async with engine(fail) as one, engine(fail) as two, running(limits=limits()) as at:
        await at.admit("mixed", one)
        await at.admit("mixed", two)
        for _ in range(6):
            await at.post()
        assert (state(at, one), state(at, two)) == (State.OPEN, State.OPEN)
        assert (await at.post()).status_code == 500, "an engine's own answer"
        one.on_request = answer_at_once
        assert (await at.post()).status_code == 200
        assert (state(at, one), state(at, two)) == (State.CLOSED, State.OPEN)
        assert (await at.http.get("/health")).status_code == 200


async def test_a_breaker_is_one_roles():
    """All prefills are open: they are used all the same, while decodes are told apart."""
    async with split(on_prefill=fail, limits=limits(breaker_failures=2)) as pair, engine(fail) as other:
        for _ in range(2):
            await pair.at.post()
        assert state(pair.at, pair.prefill) is State.OPEN
        assert state(pair.at, pair.decode) is State.CLOSED
        await pair.at.admit("decode", other)
        pair.prefill.on_request = hold
        request = asyncio.create_task(pair.at.post())
        await until(lambda: pair.prefill.turns.qsize() > 2, "the prefill to be used")
        request.cancel()


async def test_a_decode_is_not_blamed_while_its_prefill_is_at_work():
    """It may be the prefill's fault; and a trial that ends so is none."""
    async with split(on_prefill=hold, on_decode=fail, limits=limits(breaker_failures=1)) as pair:
        assert (await pair.at.post()).status_code == 500
        assert state(pair.at, pair.decode) is State.CLOSED


async def test_a_trial_whose_prefill_was_still_at_work_is_followed_by_another():
    async with split(on_decode=fail, limits=limits(breaker_failures=1)) as pair, engine() as other:
        breaker = pair.at.router.registry.instances[pair.decode.key].breaker
        await pair.at.admit("decode", other)
        pair.at.router.registry.request_failed(pair.at.router.registry.instances[pair.decode.key], "status", "x")
        cool_down(pair.at, pair.decode)
        pair.prefill.on_request = hold
        while not pair.decode.turns.qsize():
            assert (await pair.at.post()).status_code == 200
        assert (breaker.state, breaker.on_trial, breaker.admits) == (State.HALF_OPEN, False, True)


async def test_a_stream_that_breaks_counts():
    async def begin(turn: Turn) -> None:
        await turn.start_stream()
        await turn.event({"x": 1})
        turn.drop()

    async with split(on_decode=begin, limits=limits(breaker_failures=2)) as pair:
        for _ in range(2):
            client = await ask(pair.at, STREAM)
            await client.head()
            await client.rest()
        assert state(pair.at, pair.decode) is State.OPEN
        assert failures(pair, pair.decode) == {"dropped": 2}


async def test_coming_back_from_the_dead_is_trusted():
    async with engine(fail) as mixed, running(limits=limits()) as at:
        await at.admit("mixed", mixed)
        await open_breaker(at, mixed)
        instance = at.router.registry.instances[mixed.key]
        at.router.registry.take_out(instance, "gone")
        await until(lambda: instance.live, "it to be found healthy")
        assert state(at, mixed) is State.CLOSED


async def test_a_breaker_cools_down_with_time():
    async with engine(fail) as mixed, running(limits=limits(breaker_open=0.05)) as at:
        await at.admit("mixed", mixed)
        await open_breaker(at, mixed)
        await until(lambda: state(at, mixed) is State.HALF_OPEN, "it to cool down")


def cool_down(at: Running, mock: MockEngine) -> None:
    at.router.registry.instances[mock.key].breaker.opened = float("-inf")
    at.router.registry.check(at.router.now())
    assert state(at, mock) is State.HALF_OPEN


def failures(pair: Split, mock: MockEngine) -> dict[str, int]:
    return dict(pair.at.router.registry.instances[mock.key].failed)
