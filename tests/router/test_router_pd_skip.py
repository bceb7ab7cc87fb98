"""A prompt of which little is left to compute goes to the decode alone, and what an engine publishes counts."""

import json
from typing import Any

from pdctl.router.engines.prefix_index import prefix_keys
from tests.router.router_mocks import ANSWER, CHAT, Running, Turn, engine, running, until

LONG = {"model": "m", "messages": [{"role": "user", "content": "count the stars " * 64}]}  # 256 tokens
SHORT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
BUILTIN = {"protocol": "builtin", "prefill_on_decode": True}


def raw_messages(body: dict[str, Any]) -> bytes:
    return json.dumps(body["messages"], separators=(",", ":")).encode()


async def post(at: Running, body: dict[str, Any]) -> Any:
    content = json.dumps(body, separators=(",", ":")).encode()
    response = await at.http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text
    return response


async def metric(at: Running, name: str) -> float:
    page = (await at.http.get("/metrics")).text
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"pdctl_router_{name}"))


async def test_a_short_prompt_is_prefilled_on_decode():
    async with engine() as prefill, engine() as decode, running(splitwise=True, pd_min_tokens=100) as at:
        await at.admit("prefill", prefill, protocol="builtin")
        await at.admit("decode", decode, **BUILTIN)
        response = await post(at, SHORT)
        turn = await decode.turn()
        assert turn.json["prefill_on_decode"] is True
        assert "disaggregate_info" not in turn.json
        assert "x-router-prefill-url" not in response.headers
        assert prefill.turns.empty()
        assert await metric(at, "pd_skipped_total") == 1
        assert await metric(at, "fallbacks_total") == 0


async def test_a_long_prompt_takes_a_pair():
    async with engine() as prefill, engine() as decode, running(splitwise=True, pd_min_tokens=100) as at:
        await at.admit("prefill", prefill, protocol="builtin")
        await at.admit("decode", decode, **BUILTIN)
        await post(at, LONG)
        assert "disaggregate_info" in (await prefill.turn()).json
        assert "prefill_on_decode" not in (await decode.turn()).json
        assert await metric(at, "pd_skipped_total") == 0


async def test_a_decode_that_cannot_prefill_is_never_asked_to():
    async with engine() as prefill, engine() as decode, running(splitwise=True, pd_min_tokens=100) as at:
        await at.admit("prefill", prefill, protocol="builtin")
        await at.admit("decode", decode, protocol="builtin")
        await post(at, SHORT)
        assert "disaggregate_info" in (await prefill.turn()).json


async def test_what_a_decode_publishes_makes_a_long_prompt_short():
    keys = [key.hex() for key in prefix_keys(raw_messages(LONG))]
    snapshot = {"reset": True, "stored": keys, "removed": [], "chunk_bytes": 256}

    async def publish(turn: Turn) -> None:
        if turn.target != "/kv_events":
            await turn.answer(ANSWER)
            return
        await turn.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
        await turn.chunk(json.dumps(snapshot).encode() + b"\n")

    async with engine() as prefill, engine(publish) as decode, running(splitwise=True, pd_min_tokens=100) as at:
        await at.admit("prefill", prefill, protocol="builtin")
        await at.admit("decode", decode, kv_events=True, **BUILTIN)
        index = at.router.index
        await until(
            lambda: index.matched(decode.key, prefix_keys(raw_messages(LONG))) == len(keys), "what is published"
        )
        await post(at, LONG)
        assert prefill.turns.empty()
        assert await metric(at, "pd_skipped_total") == 1
        assert await metric(at, 'cache_hit_tokens_total{role="decode"}') >= 200


async def test_cache_aware_sends_a_prompt_where_its_prefix_was():
    async with engine() as first, engine() as second, running(mixed_policy="cache_aware") as at:
        await at.admit("mixed", first)
        await at.admit("mixed", second)
        urls = [(await post(at, LONG)).headers["x-router-decode-url"] for _ in range(4)]
        assert len(set(urls)) == 1
        other = LONG | {"messages": [{"role": "user", "content": "something else " * 64}]}
        assert (await post(at, other)).headers["x-router-decode-url"] != urls[0]
