"""Requests that name their engines."""

import asyncio

import httpx
from router_mocks import (
    LIMIT,
    MockEngine,
    Split,
    engine,
    message,
    running,
    split,
    until,
)


async def pinned(pair: Split, prefill: MockEngine, decode: MockEngine, token: str | None = "t") -> httpx.Response:
    headers = {"X-Router-Prefill-URL": prefill.url, "X-Router-Decode-URL": decode.url}
    return await pair.at.post(headers=headers | ({"X-Pdctl-Token": token} if token else {}))


async def test_a_pinned_request_goes_where_it_says():
    async with split() as pair, engine() as second:
        await pair.at.admit("decode", second)
        for decode in (second, pair.decode, second, second):
            response = await pinned(pair, pair.prefill, decode)
            assert response.headers["x-router-decode-url"] == decode.url
        assert second.turns.qsize() == 3


async def test_a_pinned_request_to_an_unknown_engine():
    async with split() as pair, engine() as unknown:
        for prefill, decode in ((pair.prefill, unknown), (unknown, pair.decode), (pair.decode, pair.prefill)):
            response = await pinned(pair, prefill, decode)
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "unknown_instance"


async def test_a_pinned_request_must_name_each_engine():
    async with split() as pair:
        for name in ("X-Router-Prefill-URL", "X-Router-Decode-URL"):
            assert (await pair.at.post(headers={name: pair.decode.url})).status_code == 400


async def test_a_pinned_request_needs_the_token():
    async with split(token="secret") as pair:
        assert (await pinned(pair, pair.prefill, pair.decode, None)).status_code == 401
        assert (await pinned(pair, pair.prefill, pair.decode, "wrong")).status_code == 401
        assert (await pinned(pair, pair.prefill, pair.decode, "secret")).status_code == 200


async def test_a_pinned_request_reaches_a_paused_engine_and_is_not_sent_elsewhere():
    async with split() as pair, engine() as second:
        await pair.at.admit("decode", second, is_paused=True)
        assert (await pinned(pair, pair.prefill, second)).status_code == 200
        await second.stop()
        await until(lambda: not pair.at.router.registry.instances[second.key].pool.idle, "the end to be noticed")
        response = await pinned(pair, pair.prefill, second)
        assert response.status_code == 502
        assert second.url in message(response)


async def test_a_pinned_mixed_request():
    async with engine() as first, engine() as second, running() as at:
        await at.admit("mixed", first)
        await at.admit("mixed", second)
        async with asyncio.timeout(LIMIT):
            for _ in range(3):
                response = await at.post(headers={"X-Router-Decode-URL": second.url})
                assert response.headers["x-router-decode-url"] == second.url
