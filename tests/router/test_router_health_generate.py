"""GET /health_generate: the truth about health is a token that was generated."""

import asyncio

import pytest
from router_mocks import Turn, drop, engine, hold, message, quick, running, split, until

from pdctl.router.requests import self_test


async def test_it_goes_the_way_of_all_requests():
    async with split() as pair:
        response = await pair.at.http.get("/health_generate")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        for mock in (pair.prefill, pair.decode):
            turn = await mock.turn()
            assert (turn.method, turn.target) == ("POST", "/v1/completions")
            assert (turn.json["model"], turn.json["max_tokens"]) == ("m", 1)
            assert turn.headers["x-request-id"].startswith("health-")
        await pair.at.idle()


async def test_every_model_is_asked():
    async with engine() as a, engine() as b, running() as at:
        await at.admit("mixed", a, model="one")
        await at.admit("mixed", b, model="two")
        assert (await at.http.get("/health_generate")).status_code == 200
        assert ((await a.turn()).json["model"], (await b.turn()).json["model"]) == ("one", "two")


async def test_an_engine_that_answers_its_health_but_generates_nothing():
    async def broken(turn: Turn) -> None:
        await turn.answer({"error": {"message": "out of memory"}}, 500)

    async with engine(broken) as mixed, running() as at:
        await at.admit("mixed", mixed)
        assert (await at.http.get("/health")).status_code == 200
        response = await at.http.get("/health_generate")
        assert (response.status_code, message(response)) == (500, "out of memory")


async def test_without_engines():
    async with running(splitwise=True) as at:
        response = await at.http.get("/health_generate")
        assert response.status_code == 503
        assert message(response) == "no prefill instance is registered"


async def test_an_engine_that_drops():
    async with engine(drop) as mixed, running() as at:
        await at.admit("mixed", mixed)
        response = await at.http.get("/health_generate")
        assert response.status_code == 502
        assert mixed.url in message(response)


async def test_a_stream_that_breaks():
    async def half(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        turn.drop()

    async with engine(half) as mixed, running() as at:
        await at.admit("mixed", mixed)
        assert (await at.http.get("/health_generate")).status_code == 502
        await at.idle()


async def test_no_token_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(self_test, "_TIMEOUT", 0.05)
    async with engine(hold) as mixed, running() as at:
        await at.admit("mixed", mixed)
        response = await at.http.get("/health_generate")
        assert (response.status_code, message(response)) == (504, "no token was generated within 0.05 s")
        await (await mixed.turn()).peer_left()
        await at.idle()


async def test_who_asks_and_leaves_is_not_waited_for():
    async with engine(hold) as mixed, running() as at:
        await at.admit("mixed", mixed)
        asking = asyncio.create_task(at.http.get("/health_generate"))
        turn = await mixed.turn()
        asking.cancel()
        await turn.peer_left()
        await at.idle()


async def test_it_waits_in_the_queue_as_others_do():
    async with engine(hold) as mixed, running(engine_requests=1, queue_timeout=0.05) as at:
        await at.admit("mixed", mixed)
        first = asyncio.create_task(at.post())
        await mixed.turn()
        assert (await at.http.get("/health_generate")).status_code == 429
        first.cancel()
        await at.idle()


async def test_a_router_that_stops():
    async with engine(hold) as mixed, running(limits=quick(idle_timeout=5.0)) as at:
        await at.admit("mixed", mixed)
        reader, writer = await at.connect()
        writer.write(b"GET /health_generate HTTP/1.1\r\nHost: x\r\n")
        await until(lambda: len(at.router.server.clients) == 2, "the connection")
        request = asyncio.create_task(at.post())
        turn = await mixed.turn()
        draining = asyncio.create_task(at.router.drain())
        await until(lambda: at.router.stopping, "the end")
        writer.write(b"\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        await turn.answer({})
        await request
        writer.close()
        await draining
