"""SGLang: both legs meet in a room of the prefill's bootstrap server; neither is left alone in it."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from router_mocks import ANSWER, LIMIT, PROMPT, Split, Turn, answer_at_once, drop, engine, hold, message, quick
from router_protocol_mocks import DONE, STREAM, OnRequest, ask, protocol_pair, send_events

PORT = 8998


def sglang(
    on_prefill: OnRequest = answer_at_once, on_decode: OnRequest = answer_at_once, **settings: Any
) -> AbstractAsyncContextManager[Split]:
    return protocol_pair("sglang", on_prefill, on_decode, {"bootstrap_port": PORT}, **settings)


async def refuse(turn: Turn) -> None:
    await turn.answer({"error": {"message": "too long"}}, 400)


def room(turn: Turn) -> Any:
    sent = turn.json
    assert {sent["bootstrap_host"]} == {"127.0.0.1"}
    assert sent["bootstrap_port"] == PORT
    return sent["bootstrap_room"]


async def test_both_legs_get_the_same_body():
    async with sglang(on_prefill=hold, on_decode=hold) as pair:
        request = asyncio.create_task(pair.at.post(PROMPT | {"max_tokens": 9, "bootstrap_room": 1}))
        prefill, decode = await pair.prefill.turn(), await pair.decode.turn()
        assert prefill.body == decode.body
        assert room(prefill) == room(decode) != 1
        assert prefill.json["max_tokens"] == 9, "SGLang's prefill makes one token anyway"
        await decode.answer(ANSWER)
        await prefill.answer({"choices": []})
        assert (await request).json() == ANSWER
        await pair.at.idle()


@pytest.mark.parametrize(
    ("fields", "path", "count"),
    [
        ({"n": 3}, "/v1/chat/completions", 3),
        ({"prompt": ["a", "b"], "n": 2}, "/v1/completions", 4),
        ({"prompt": [[1, 2], [3]]}, "/v1/completions", 2),
    ],
)
async def test_several_sequences_have_a_room_each(fields: dict[str, Any], path: str, count: int):
    body = PROMPT | fields if "n" in fields and "prompt" not in fields else {"model": "m"} | fields
    async with sglang() as pair:
        assert (await pair.at.post(body, path=path)).status_code == 200
        prefill, decode = await pair.prefill.turn(), await pair.decode.turn()
        assert prefill.body == decode.body
        sent = decode.json
        assert (sent["bootstrap_host"], sent["bootstrap_port"]) == (["127.0.0.1"] * count, [PORT] * count)
        assert len(set(sent["bootstrap_room"])) == count


async def test_another_attempt_has_another_room():
    async with sglang(on_decode=drop) as pair, engine() as other:
        await pair.at.admit("decode", other, protocol="sglang")
        response = await pair.at.post()
        assert (response.status_code, response.headers["x-router-decode-url"]) == (200, other.url)
        failed, served = await pair.decode.turn(), await other.turn()
        assert room(failed) != room(served)
        rooms = [room(pair.prefill.turns.get_nowait()) for _ in range(pair.prefill.turns.qsize())]
        assert room(served) == rooms[-1]
        await pair.at.idle()


async def test_the_host_is_the_prefills_of_each_attempt():
    async with sglang(on_prefill=drop, on_decode=hold, limits=quick(stale=0.0)) as pair, engine() as other:
        await pair.at.admit("prefill", other, protocol="sglang", bootstrap_port=PORT + 1)
        request = asyncio.create_task(pair.at.post())
        assert room(await pair.decode.turn()) == room(await pair.prefill.turn())
        again = await pair.decode.turn()
        assert again.json["bootstrap_port"] == (await other.turn()).json["bootstrap_port"] == PORT + 1
        await again.answer(ANSWER)
        assert (await request).headers["x-router-prefill-url"] == other.url


# The peer of a leg that fails would wait in the room for 300 s.


@pytest.mark.parametrize(("bad", "status"), [(refuse, 400), (drop, 502)])
async def test_a_prefill_that_fails_takes_its_decode_with_it(bad: OnRequest, status: int):
    async with sglang(on_prefill=bad, on_decode=hold) as pair:
        request = asyncio.create_task(pair.at.post())
        await (await pair.decode.turn()).peer_left()
        assert (await request).status_code == status
        await pair.at.idle()


@pytest.mark.parametrize(("bad", "status"), [(refuse, 400), (drop, 502)])
async def test_a_prefill_that_fails_takes_a_decode_with_it_that_has_begun_a_stream(bad: OnRequest, status: int):
    """FastDeploy sends a stream's head at once; without its prefill no body would follow."""
    begun = asyncio.Event()

    async def begin(turn: Turn) -> None:
        await turn.start_stream()
        begun.set()
        await hold(turn)

    async def fail(turn: Turn) -> None:
        await begun.wait()
        await bad(turn)

    async with sglang(on_prefill=fail, on_decode=begin) as pair:
        response = await pair.at.post(STREAM)
        assert response.status_code == status
        await (await pair.decode.turn()).peer_left()
        await pair.at.idle()


@pytest.mark.parametrize(("bad", "status"), [(refuse, 400), (drop, 502)])
async def test_a_decode_that_fails_takes_its_prefill_with_it(bad: OnRequest, status: int):
    async with sglang(on_prefill=hold, on_decode=bad) as pair:
        request = asyncio.create_task(pair.at.post())
        await (await pair.prefill.turn()).peer_left()
        assert (await request).status_code == status
        await pair.at.idle()


async def test_the_peer_is_left_at_once():
    """The decode's connection is closed by the time that the client has its answer: nothing has to be waited for."""
    async with sglang(on_prefill=hold, on_decode=hold) as pair:
        request = asyncio.create_task(pair.at.post())
        prefill, decode = await pair.prefill.turn(), await pair.decode.turn()
        await prefill.answer({}, 400)
        left = asyncio.create_task(decode.peer_left())
        assert (await request).status_code == 400
        async with asyncio.timeout(LIMIT / 10):
            await left


async def test_a_client_that_leaves_ends_both_legs():
    async with sglang(on_prefill=hold, on_decode=hold) as pair:
        client = await ask(pair.at)
        turns = [await pair.prefill.turn(), await pair.decode.turn()]
        client.leave()
        async with asyncio.timeout(LIMIT / 10):
            for turn in turns:
                await turn.peer_left()
        await pair.at.idle()


async def test_a_client_that_leaves_in_the_middle_of_a_stream_ends_both_legs():
    async with sglang(on_prefill=hold, on_decode=hold) as pair:
        client = await ask(pair.at, STREAM)
        prefill, decode = await pair.prefill.turn(), await pair.decode.turn()
        await decode.start_stream()
        await decode.event(b"{}")
        await client.head()
        client.leave()
        async with asyncio.timeout(LIMIT / 10):
            await prefill.peer_left()
            await decode.peer_left()
        await pair.at.idle()


async def test_prefill_and_decode_of_different_protocols_do_not_fit():
    async with sglang() as pair, engine() as other:
        await pair.at.admit("decode", other, protocol="vllm-nixl")
        for _ in range(4):
            response = await pair.at.post()
            assert response.headers["x-router-decode-url"] == pair.decode.url
        await pair.decode.stop()
        instance = pair.at.router.registry.instances[pair.decode.key]
        pair.at.router.registry.take_out(instance, "gone")
        response = await pair.at.post()
        assert response.status_code == 400
        assert "speaks sglang" in message(response)
        assert "speaks vllm-nixl" in message(response)


async def test_without_a_prefill_there_is_no_service():
    """A decode of SGLang cannot prefill, however short the prompt is."""
    async with sglang(pd_min_tokens=1000) as pair:
        response = await pair.at.post()
        assert (response.status_code, response.headers["x-router-prefill-url"]) == (200, pair.prefill.url)
        pair.prefill.health_status = 503
        pair.at.router.registry.take_out(pair.at.router.registry.instances[pair.prefill.key], "gone")
        assert (await pair.at.post()).status_code == 503


# Streams that fail after their status has been sent: SGLang writes one chunk of Python's quoting.

ERROR = b"data: {'error': {'message': 'KVTransferError(bootstrap_room=1)', 'code': 500}}\n\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"P"}}]}\n\n'


async def fail_at_once(turn: Turn) -> None:
    await send_events(turn, ERROR)


async def fail_later(turn: Turn) -> None:
    await send_events(turn, TOKEN, ERROR)


async def well(turn: Turn) -> None:
    await send_events(turn, TOKEN, DONE)


async def test_a_stream_that_is_an_error_is_another_attempt():
    async with sglang(hold, fail_at_once) as pair, engine(well) as other:
        await pair.at.admit("decode", other, protocol="sglang")
        response = await pair.at.post(STREAM)
        assert (response.status_code, response.content) == (200, TOKEN + DONE)
        assert response.headers["x-router-decode-url"] == other.url
        await (await pair.prefill.turn()).peer_left()
        assert pair.at.metrics.retries.value == 1


async def test_a_stream_that_is_an_error_may_be_its_prefills_fault():
    served = asyncio.Event()

    async def fail_first(turn: Turn) -> None:
        await (well if served.is_set() else fail_at_once)(turn)
        served.set()

    async with sglang(on_decode=fail_first) as pair, engine() as other:
        await pair.at.admit("prefill", other, protocol="sglang", bootstrap_port=PORT + 1)
        response = await pair.at.post(STREAM)
        assert (response.status_code, response.content) == (200, TOKEN + DONE)
        assert (pair.prefill.turns.qsize(), other.turns.qsize()) == (1, 1)
        await pair.at.idle()


async def test_without_another_engine_it_is_an_error_with_a_status():
    async with sglang(hold, fail_at_once) as pair:
        response = await pair.at.post(STREAM)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "decode_failed")
        assert f"decode instance {pair.decode.url} answered with an error event" in message(response)
        assert "KVTransferError(bootstrap_room=1)" in message(response)
        await pair.at.idle()


async def test_an_error_after_a_token_is_passed_on_as_it_is():
    """It is no JSON and nothing follows it, not even [DONE]: clients see that it is not whole."""
    async with sglang(on_decode=fail_later) as pair:
        response = await pair.at.post(STREAM)
        assert (response.status_code, response.content) == (200, TOKEN + ERROR)
        await pair.at.idle()
