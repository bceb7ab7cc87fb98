"""Engines that take connections and never answer: their health gives them up, and requests move to others."""

import asyncio

from router_mocks import (
    ANSWER,
    MockEngine,
    Running,
    Turn,
    answer_at_once,
    engine,
    hold,
    message,
    quick,
    running,
    split,
    until,
)
from router_protocol_mocks import DONE, STREAM, ask, protocol_pair, send_events, token_event

ONE, TWO = token_event("One", 1, 2), token_event(" two", 3, finish="stop")
LIMITS = quick(probe_interval=0.02, probe_timeout=0.05)


async def stop(at: Running, mock: MockEngine) -> asyncio.Event:
    """Do to an engine what SIGSTOP does: its connections and bytes are taken, nobody answers. Once set, it goes on."""
    goes_on, converse = asyncio.Event(), mock._converse

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await goes_on.wait()
        await converse(reader, writer, number)

    mock._converse = wait  # type: ignore[method-assign]
    instance = at.router.registry.instances[mock.key]

    def probe_fails() -> bool:
        instance.pool.check(at.router.now() + 1000)  # kept-alive connections still have the old conversation
        return not instance.live or instance.failures > 0

    await until(probe_fails, "a probe to fail")
    return goes_on


def is_live(at: Running, mock: MockEngine) -> bool:
    return at.router.registry.instances[mock.key].live


async def test_requests_that_wait_for_a_hung_engine_move_to_another():
    async with engine(hold) as hung, engine() as other, running(limits=LIMITS) as at:
        await at.admit("mixed", hung)
        await at.admit("mixed", other)
        request = asyncio.create_task(at.post())
        turn = await hung.turn()
        await stop(at, hung)
        response = await request
        assert (response.status_code, response.headers["x-router-decode-url"]) == (200, other.url)
        await turn.peer_left()
        assert not is_live(at, hung)
        assert "no answer to /health within 0.05 s (2 times in a row)" in at.router.registry.instances[hung.key].reason
        assert at.metrics.leg_failures["mixed", "hung"] == 1
        await at.idle()


async def test_a_hung_engine_that_goes_on_is_brought_in_again():
    async with engine(hold) as hung, running(limits=LIMITS) as at:
        await at.admit("mixed", hung)
        goes_on = await stop(at, hung)
        await until(lambda: not is_live(at, hung), "it to be given up")
        assert "no answer to /health" in message(await at.post())
        goes_on.set()
        hung.on_request = answer_at_once
        await until(lambda: is_live(at, hung), "it to be brought in")
        assert (await at.post()).status_code == 200


async def test_without_another_engine_a_request_waits_on():
    """The hung one may go on: an answer that comes late is better than none."""
    async with engine(hold) as hung, running(limits=LIMITS) as at:
        await at.admit("mixed", hung)
        request = asyncio.create_task(at.post())
        turn = await hung.turn()
        await stop(at, hung)
        await until(lambda: not is_live(at, hung), "it to be given up")
        await turn.answer(ANSWER)
        assert (await request).json() == ANSWER
        await at.idle()


async def test_a_hung_prefill_takes_its_decode_leg_with_it():
    async with split(on_prefill=hold, on_decode=hold, limits=LIMITS) as pair, engine() as other:
        request = asyncio.create_task(pair.at.post())
        prefill, decode = await pair.prefill.turn(), await pair.decode.turn()
        await pair.at.admit("prefill", other)
        await stop(pair.at, pair.prefill)
        again = await pair.decode.turn()
        await prefill.peer_left()
        await decode.peer_left()
        await again.answer(ANSWER)
        response = await request
        assert (response.status_code, response.headers["x-router-prefill-url"]) == (200, other.url)
        await pair.at.idle()


async def test_a_hung_decode_is_left_by_streams_that_can_go_on():
    async with protocol_pair("builtin", on_decode=hold, limits=LIMITS) as pair, engine(hold) as other:
        client = await ask(pair.at, STREAM)
        turn = await pair.decode.turn()
        await turn.start_stream()
        await turn.chunk(ONE)
        await client.head()
        await client.until(ONE)
        await pair.at.admit("decode", other, protocol="builtin")
        await stop(pair.at, pair.decode)
        again = await other.turn()
        assert again.json["resume"]["token_ids"] == [1, 2]
        await send_events(again, TWO, DONE)
        assert (await client.rest(), client.whole) == (ONE + TWO + DONE, True)
        await turn.peer_left()
        await pair.at.idle()


async def test_a_prefill_that_hangs_after_its_decode_has_begun_matters_no_more():
    async with protocol_pair("builtin", hold, hold, limits=LIMITS) as pair, engine() as other:
        client = await ask(pair.at, STREAM)
        prefill, turn = await pair.prefill.turn(), await pair.decode.turn()
        await turn.start_stream()
        await turn.chunk(ONE)
        await client.head()
        await pair.at.admit("prefill", other, protocol="builtin")
        await stop(pair.at, pair.prefill)
        await prefill.peer_left()
        await turn.chunk(TWO + DONE)
        await turn.end_stream()
        assert (await client.rest(), client.whole) == (ONE + TWO + DONE, True)
        await pair.at.idle()
        assert pair.at.metrics.resumes.value == 0


async def test_a_request_without_an_answer_is_no_failure_while_health_answers():
    """Long prompts take long."""

    async def never(turn: Turn) -> None:
        await hold(turn)

    async with engine(never) as busy, engine() as other, running(limits=LIMITS) as at:
        await at.admit("mixed", busy)
        await at.admit("mixed", other)
        request = asyncio.create_task(at.post())
        turn = await busy.turn()
        checks = busy.health_checks
        await until(lambda: busy.health_checks > checks + 4, "some probes")
        assert is_live(at, busy)
        await turn.answer(ANSWER)
        assert (await request).headers["x-router-decode-url"] == busy.url


async def test_an_engine_whose_heartbeats_cease_is_left_too():
    limits = quick(probe_interval=1000.0)
    async with engine(hold) as silent, engine() as other, running(limits=limits) as at:
        await at.admit("mixed", silent)
        request = asyncio.create_task(at.post())
        turn = await silent.turn()
        await at.admit("mixed", other)
        at.router.registry.instances[silent.key].last_heartbeat = float("-inf")
        response = await request
        assert response.headers["x-router-decode-url"] == other.url
        await turn.peer_left()
        assert silent.key not in at.router.registry.instances
        await at.idle()


async def test_an_engine_that_takes_no_connections_in_time_is_left():
    """Its queue of connections is full: the request goes elsewhere after the connection's time limit."""
    limits = quick(probe_interval=1000.0, connect_timeout=0.0)
    async with engine() as mixed, running(limits=limits) as at:
        response = await at.register("mixed", mixed)
        assert response.status_code == 400
        assert "no connection within 0 s" in response.json()["detail"]
