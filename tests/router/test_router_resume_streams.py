"""Streams of builtin engines that break and go on at other engines, without a seam that the client could see."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from router_mocks import MockEngine, Running, Turn, drop, engine, hold, quick, running, until
from router_protocol_mocks import DONE, STREAM, ask, failed_event, send_events, token_event

ONE, TWO, THREE = token_event("One", 11, 12), token_event(" two", 13), token_event(" three", 14, finish="stop")
WHOLE = ONE + TWO + THREE + DONE


@dataclass
class Deployment:
    at: Running
    prefill: MockEngine
    first: MockEngine  # the decode that gets the first request
    second: MockEngine

    async def begun(self) -> Turn:
        """The first decode has the request, and answers."""
        turn = await self.first.turn()
        await turn.start_stream()
        return turn


@asynccontextmanager
async def deployment(**limits: object) -> AsyncIterator[Deployment]:
    """One prefill that is always done at once, and two decodes whose answers the test gives."""
    bounds = quick(**({"resume_wait": 0.2} | limits))
    async with (
        engine() as prefill,
        engine(hold) as first,
        engine(hold) as second,
        running(splitwise=True, limits=bounds) as at,
    ):
        await at.admit("prefill", prefill, protocol="builtin")
        await at.admit("decode", first, protocol="builtin")
        await at.admit("decode", second, protocol="builtin")
        yield Deployment(at, prefill, first, second)


async def finish(turn: Turn, *events: bytes) -> None:
    await send_events(turn, *events, DONE)


async def test_a_stream_that_breaks_within_an_event_goes_on_after_the_last_whole_one():
    async with deployment() as d:
        client = await ask(d.at, headers="X-Request-Id: mine\r\n")
        turn = await d.begun()
        await turn.chunk(ONE + TWO[:30])
        await client.head()
        await client.until(ONE)
        turn.drop()
        again = await d.second.turn()
        assert again.json["resume"] == {"id": "mine", "created": 1760000000, "token_ids": [11, 12]}
        assert (again.json["request_id"], again.headers["x-request-id"]) == ("mine-retry1", "mine-retry1")
        prefills = [(await d.prefill.turn()).json for _ in range(2)]
        assert prefills[1] == again.json, "both legs start from the same tokens"
        assert "resume" not in prefills[0]
        await finish(again, TWO, THREE)
        assert (await client.rest(), client.whole) == (WHOLE, True)
        assert client.status == 200
        assert (d.at.metrics.resumes.value, d.at.metrics.broken_streams.value) == (1, 0)
        await d.at.idle()


async def test_the_connection_serves_on_after_a_resumed_stream():
    async with deployment() as d:
        client = await ask(d.at)
        (await d.begun()).drop()
        await finish(await d.second.turn(), ONE, TWO, THREE)
        await client.head()
        assert await client.rest() == WHOLE
        client.writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.head()
        assert client.status == 200


async def test_an_engines_own_failure_is_hidden_from_the_client():
    async with deployment() as d:
        client = await ask(d.at)
        turn = await d.begun()
        await turn.chunk(ONE + failed_event("server_error"))
        again = await d.second.turn()
        await turn.peer_left()
        assert again.json["resume"]["token_ids"] == [11, 12]
        await finish(again, TWO, THREE)
        await client.head()
        assert (await client.rest(), client.whole) == (WHOLE, True)
        await d.at.idle()


async def test_the_clients_own_fault_is_passed_on_and_ends_the_stream():
    async with deployment() as d:
        client = await ask(d.at)
        turn = await d.begun()
        error = failed_event("invalid_request_error")
        await turn.chunk(ONE + error)
        await turn.end_stream()
        await client.head()
        assert (await client.rest(), client.whole) == (ONE + error, True)
        await d.at.idle()
        assert d.second.turns.empty()
        assert d.at.metrics.resumes.value == 0


async def test_a_clean_end_without_done_is_a_break():
    async with deployment() as d:
        client = await ask(d.at)
        turn = await d.begun()
        await turn.chunk(ONE)
        await turn.end_stream()
        await finish(await d.second.turn(), TWO, THREE)
        await client.head()
        assert (await client.rest(), client.whole) == (WHOLE, True)


async def test_an_engine_that_dies_after_its_last_event_has_answered():
    async with deployment() as d:
        client = await ask(d.at)
        turn = await d.begun()
        await turn.chunk(WHOLE)
        await client.head()
        await client.until(DONE)
        turn.drop()
        assert (await client.rest(), client.whole) == (WHOLE, True)
        await d.at.idle()
        assert d.second.turns.empty()


async def test_a_resumed_stream_that_breaks_goes_on_once_more():
    async with deployment() as d, engine(hold) as third:
        await d.at.admit("decode", third, protocol="builtin")
        client = await ask(d.at, headers="X-Request-Id: mine\r\n")
        await (turn := await d.begun()).chunk(ONE)
        turn.drop()
        again = await d.second.turn()
        await again.start_stream()
        await again.chunk(TWO)
        again.drop()
        last = await third.turn()
        assert last.json["resume"] == {"id": "mine", "created": 1760000000, "token_ids": [11, 12, 13]}
        assert last.json["request_id"] == "mine-retry2"
        await finish(last, THREE)
        await client.head()
        assert (await client.rest(), client.whole) == (WHOLE, True)
        assert d.at.metrics.resumes.value == 2


async def test_a_break_before_any_event_starts_anew_and_later_breaks_name_what_was_started():
    """Tokens without a seed depend on the id of the attempt that made them."""
    async with deployment() as d, engine(hold) as third:
        await d.at.admit("decode", third, protocol="builtin")
        client = await ask(d.at, headers="X-Request-Id: mine\r\n")
        await (turn := await d.begun()).chunk(ONE[:20])
        await client.head()
        turn.drop()
        again = await d.second.turn()
        assert "resume" not in again.json
        await again.start_stream()
        await again.chunk(ONE)
        again.drop()
        last = await third.turn()
        assert last.json["resume"] == {"id": "mine-retry1", "created": 1760000000, "token_ids": [11, 12]}
        await finish(last, TWO, THREE)
        assert (await client.rest(), client.whole) == (WHOLE, True)


async def test_a_retried_request_is_resumed_under_the_id_that_began_it():
    async with deployment() as d, engine(hold) as third:
        await d.at.admit("decode", third, protocol="builtin")
        client = await ask(d.at, headers="X-Request-Id: mine\r\n")
        await (await d.first.turn()).answer({}, 503)
        again = await d.second.turn()
        await again.start_stream()
        await again.chunk(ONE)
        again.drop()
        last = await third.turn()
        assert last.json["resume"]["id"] == "mine-retry1"
        await finish(last, TWO, THREE)
        await client.head()
        assert await client.rest() == WHOLE


async def test_several_choices_are_not_resumed():
    async with deployment() as d:
        client = await ask(d.at, STREAM | {"n": 2})
        await (turn := await d.begun()).chunk(ONE)
        await client.head()
        await client.until(ONE)
        turn.drop()
        body = await client.rest()
        assert body.startswith(ONE + b"event: error\n")
        assert not client.whole
        assert d.first.url.encode() in body
        assert d.second.turns.empty()
        await d.at.idle()


async def test_another_protocols_stream_is_not_resumed():
    async with engine() as prefill, engine(hold) as one, engine(hold) as two, running(splitwise=True) as at:
        await at.admit("prefill", prefill, protocol="fastdeploy")
        await at.admit("decode", one, protocol="fastdeploy")
        await at.admit("decode", two, protocol="fastdeploy")
        client = await ask(at)
        turn = await one.turn()
        await turn.start_stream()
        await turn.chunk(ONE)
        await client.head()
        await client.until(ONE)
        turn.drop()
        assert (await client.rest()).startswith(ONE + b"event: error\n")
        assert (client.whole, two.turns.qsize()) == (False, 0)


async def test_an_answer_that_is_no_stream_is_not_resumed():
    async with deployment() as d:
        client = await ask(d.at, STREAM | {"stream": False})
        turn = await d.first.turn()
        await turn.send(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n')
        await client.head()
        await client.until(b'{"a":')
        turn.drop()
        assert (await client.rest(), client.whole) == (b'{"a":', False)
        assert d.second.turns.empty()


async def test_without_an_engine_that_can_go_on_the_client_is_told():
    async with deployment() as d:
        client = await ask(d.at)
        await (await d.begun()).chunk(ONE)
        await client.head()
        await client.until(ONE)
        await d.second.stop()
        await d.first.stop()
        body = await client.rest()
        assert body.startswith(ONE + b"event: error\n")
        assert b"no engine could go on with it in time" in body
        assert not client.whole
        await d.at.idle()
        assert d.at.metrics.broken_streams.value == 1


async def test_a_stream_waits_for_an_engine_that_comes_back():
    """Even if it is the only one, and the one that broke the stream."""
    async with deployment(resume_wait=10.0) as d:
        await d.second.stop()
        client = await ask(d.at)
        await (await d.begun()).chunk(ONE)
        await client.head()
        await client.until(ONE)
        await d.first.stop()
        await until(lambda: not d.at.router.registry.live("decode"), "both decodes to be taken out")
        await d.first.start()
        again = await d.first.turn()
        assert again.json["resume"]["token_ids"] == [11, 12]
        await finish(again, TWO, THREE)
        assert (await client.rest(), client.whole) == (WHOLE, True)
        await d.at.idle()


async def test_a_stream_that_waits_keeps_no_other_request_waiting():
    async with deployment(resume_wait=10.0) as d:
        client = await ask(d.at)
        await (await d.begun()).chunk(ONE)
        await client.head()
        await client.until(ONE)
        await d.second.stop()
        await d.first.stop()
        await until(lambda: not d.at.router.registry.live("decode"), "both decodes to be taken out")
        await until(lambda: d.at.router.admission.depths == {"m": 1}, "the stream to wait")
        assert (await d.at.post()).status_code == 503
        client.leave()
        await d.at.idle()
        assert d.at.router.admission.depths == {}


async def test_resumes_are_bounded():
    async with deployment(resumes=1) as d, engine(hold) as third:
        await d.at.admit("decode", third, protocol="builtin")
        client = await ask(d.at)
        await (turn := await d.begun()).chunk(ONE)
        turn.drop()
        again = await d.second.turn()
        await send_events(again, TWO, end=False)
        await client.head()
        await client.until(TWO)
        again.drop()
        body = await client.rest()
        assert body.startswith(ONE + TWO + b"event: error\n")
        assert (client.whole, third.turns.qsize()) == (False, 0)


async def test_an_aborted_stream_is_not_resumed():
    async with deployment(resume_wait=10.0) as d:
        client = await ask(d.at, headers="X-Request-Id: mine\r\n")
        await (turn := await d.begun()).chunk(ONE)
        await client.head()
        await client.until(ONE)
        abort = asyncio.create_task(d.at.http.post("/v1/abort_requests", json={"req_ids": ["mine"]}))
        for mock in (d.first, d.second):
            await (await mock.turn()).answer({})
        turn.drop()
        body = await client.rest()
        assert body.startswith(ONE + b"event: error\n")
        assert not client.whole
        abort.cancel()
        await d.at.idle()


async def test_a_stream_that_waits_for_an_engine_can_be_aborted():
    async with deployment(resume_wait=10.0) as d:
        client = await ask(d.at, headers="X-Request-Id: mine\r\n")
        await (await d.begun()).chunk(ONE)
        await client.head()
        await client.until(ONE)
        await d.second.stop()
        await d.first.stop()
        await until(lambda: d.at.router.admission.depths == {"m": 1}, "the stream to wait")
        assert (await d.at.http.post("/v1/abort_requests", json={"req_ids": ["mine"]})).status_code == 200
        assert b"the request was aborted" in await client.rest()
        await d.at.idle()


async def test_mixed_engines_streams_are_resumed_too():
    async with engine(hold) as one, engine(hold) as two, running() as at:
        await at.admit("mixed", one, protocol="builtin")
        await at.admit("mixed", two, protocol="builtin")
        client = await ask(at)
        await send_events(turn := await one.turn(), ONE, end=False)
        turn.drop()
        again = await two.turn()
        assert again.json["resume"]["token_ids"] == [11, 12]
        await finish(again, TWO, THREE)
        await client.head()
        assert (await client.rest(), client.whole) == (WHOLE, True)
        await at.idle()


async def test_a_prefill_that_drops_in_a_resumed_attempt_costs_another_one():
    async with deployment() as d, engine(hold) as third, engine(drop) as dropping:
        await d.at.admit("decode", third, protocol="builtin")
        client = await ask(d.at)
        await (turn := await d.begun()).chunk(ONE)
        await d.at.admit("prefill", dropping, protocol="builtin")
        turn.drop()
        await (await d.second.turn()).peer_left()
        await finish(await third.turn(), TWO, THREE)
        await client.head()
        assert (await client.rest(), client.whole) == (WHOLE, True)
        await d.at.idle()
