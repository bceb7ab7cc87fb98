"""Requests that fail before anything has reached their client: tried elsewhere, but not for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from router_mocks import ANSWER, MockEngine, Running, Turn, answer_at_once, drop, engine, hold, message, quick, running
from router_protocol_mocks import STREAM, OnRequest, ask


async def fail(turn: Turn) -> None:
    await turn.answer({"error": {"message": "broken"}}, 503, "X-From: engine\r\n")


async def babble(turn: Turn) -> None:
    await turn.send(b"no HTTP\r\n\r\n")


async def half_a_head(turn: Turn) -> None:
    await turn.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    turn.drop()


@dataclass
class Some:
    at: Running
    engines: list[MockEngine]

    @property
    def asked(self) -> list[int]:
        """How many requests each engine got."""
        return [mock.turns.qsize() for mock in self.engines]

    @property
    def retries(self) -> float:
        return self.at.metrics.retries.value


@asynccontextmanager
async def some(*handlers: OnRequest, **limits: Any) -> AsyncIterator[Some]:
    """A router with mixed engines. The first gets the first request, the second the next, and so on."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(engine(handler)) for handler in handlers]
        limits = {"stale": 0.0, "probe_interval": 1000.0} | limits
        at = await stack.enter_async_context(running(limits=quick(**limits)))
        for mock in engines:
            await at.admit("mixed", mock)
        yield Some(at, engines)


@pytest.mark.parametrize("bad", [drop, fail, babble, half_a_head])
async def test_a_failure_is_tried_elsewhere_and_hidden(bad: OnRequest):
    async with some(bad, bad, answer_at_once) as s:
        response = await s.at.post(headers={"X-Request-Id": "mine"})
        assert (response.status_code, response.json()) == (200, ANSWER)
        assert response.headers["x-router-decode-url"] == s.engines[2].url
        assert (response.headers["x-request-id"], s.asked, s.retries) == ("mine", [1, 1, 1], 2)
        ids = [mock.turns.get_nowait().headers["x-request-id"] for mock in s.engines]
        assert ids == ["mine", "mine-retry1", "mine-retry2"]
        await s.at.idle()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_another_engine_may_better_is_tried_there(status: int):
    async def refuse(turn: Turn) -> None:
        await turn.answer({}, status)

    async with some(refuse, answer_at_once) as s:
        assert (await s.at.post()).status_code == 200
        assert s.asked == [1, 1]


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 501])
async def test_what_no_engine_betters_is_the_answer(status: int):
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "no"}}, status)

    async with some(refuse, answer_at_once) as s:
        response = await s.at.post()
        assert (response.status_code, response.json(), s.asked) == (status, {"error": {"message": "no"}}, [1, 0])
        await s.at.idle()


async def test_attempts_are_bounded_and_the_last_answer_is_the_clients():
    async with some(*[fail] * 6) as s:
        response = await s.at.post()
        assert (response.status_code, response.json()["error"]["message"]) == (503, "broken")
        assert response.headers["x-from"] == "engine"
        assert sum(s.asked) == s.at.router.settings.limits.attempts == 4
        assert s.retries == 3
        await s.at.idle()


async def test_a_failed_engine_is_not_asked_again_while_there_are_others():
    async with some(fail, drop, answer_at_once) as s:
        for _ in range(2):
            assert (await s.at.post()).status_code == 200
        assert max(s.asked[:2]) <= 2, "once by each request"


async def test_when_all_have_failed_any_but_the_last_may_have_come_back():
    answers = iter([503, 503, 200])

    async def come_back(turn: Turn) -> None:
        await turn.answer(ANSWER, next(answers))

    async with some(come_back, come_back) as s:
        assert (await s.at.post()).status_code == 200
        assert s.asked == [2, 1]


async def test_the_only_engine_is_not_asked_twice():
    async with some(drop) as s:
        response = await s.at.post()
        assert response.status_code == 502
        assert message(response).startswith(f"mixed instance {s.engines[0].url}: the connection was ")
        assert (s.asked, s.retries) == ([1], 0)


async def test_after_a_while_nothing_is_tried_any_more():
    async with some(fail, answer_at_once, retry_deadline=-1.0) as s:
        assert (await s.at.post()).status_code == 503
        assert s.asked == [1, 0]


async def test_time_is_over_for_all_attempts_together():
    async with some(hold, hold) as s:
        request = asyncio.create_task(s.at.post(headers={"X-Request-Id": "mine"}))
        (await s.engines[0].turn()).drop()
        second = await s.engines[1].turn()
        exchange = s.at.router.in_flight["mine"]
        exchange.check(exchange.started + s.at.router.settings.request_timeout + 0.001)
        response = await request
        assert response.status_code == 504
        assert message(response).startswith(f"mixed instance {s.engines[1].url}: waited ")
        await second.peer_left()
        await s.at.idle()


async def test_an_answer_that_has_begun_is_not_tried_again():
    async def begin(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{")
        turn.drop()

    async with some(begin, answer_at_once) as s:
        assert b"HTTP/1.1 200" in await s.at.say(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
        )
        assert (s.asked, s.retries) == ([1, 0], 0)
        assert s.at.metrics.broken_streams.value == 1
        await s.at.idle()


async def test_an_error_is_told_whole_or_not_at_all():
    """An engine that dies in the middle of its error has not said what is wrong: that is a failure, too."""

    async def half(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 400 X\r\nContent-Length: 10\r\n\r\n{")
        turn.drop()

    async with some(half, answer_at_once) as s:
        assert (await s.at.post()).status_code == 200
        assert s.asked == [1, 1]


async def test_an_endless_error_is_a_failure():
    async def endless(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 400 X\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 1_200_000)
        await hold(turn)

    async with some(endless, answer_at_once) as s:
        assert (await s.at.post()).status_code == 200


async def test_streams_are_tried_again_before_their_first_byte():
    async with some(fail, hold) as s:
        client = await ask(s.at, STREAM)
        turn = await s.engines[1].turn()
        await turn.start_stream()
        await turn.event(b"[DONE]")
        await turn.end_stream()
        await client.head()
        assert (client.status, await client.rest(), client.whole) == (200, b"data: [DONE]\n\n", True)


async def test_a_client_that_leaves_is_not_tried_for():
    async with some(hold, answer_at_once) as s:
        client = await ask(s.at)
        turn = await s.engines[0].turn()
        client.leave()
        await turn.peer_left()
        await s.at.idle()
        assert s.asked == [0, 0]
        assert s.retries == 0


async def test_an_aborted_request_is_not_tried_again():
    async with some(hold, answer_at_once) as s:
        request = asyncio.create_task(s.at.post(headers={"X-Request-Id": "mine"}))
        turn = await s.engines[0].turn()
        s.at.router.abort(["mine"])
        await turn.answer({"error": {"message": "aborted"}}, 503)
        assert (await request).status_code == 503
        assert s.engines[1].turns.empty()


async def test_the_other_engine_of_the_pair_stays_a_candidate():
    """Only the engine that failed is avoided."""
    async with engine() as prefill, engine(fail) as bad, engine() as good, running(splitwise=True) as at:
        await at.admit("prefill", prefill)
        await at.admit("decode", bad)
        await at.admit("decode", good)
        response = await at.post()
        assert (response.status_code, response.headers["x-router-prefill-url"]) == (200, prefill.url)
        assert prefill.turns.qsize() == 2
        await at.idle()
