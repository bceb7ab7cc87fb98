"""A decode of vLLM's fails before it has taken the KV: the prefill does not keep it until its lease ends."""

import pytest
from router_mocks import PROMPT, Running, Turn, drop, engine, hold, quick, until
from router_nixl import PARAMS, nixl, params_of, prefilled
from router_protocol_mocks import STREAM, OnRequest, ask


async def fail(turn: Turn) -> None:
    await turn.answer({"error": {"message": "no blocks"}}, 503)


async def refuse(turn: Turn) -> None:
    await turn.answer({"error": {"message": "no"}}, 400)


async def released(at: Running, outcome: str = "done", count: int = 1) -> None:
    await until(lambda: at.metrics.kv_releases[outcome] == count, f"{count} releases that are {outcome}")
    await at.idle()


@pytest.mark.parametrize("bad", [fail, drop])
async def test_the_decode_of_the_next_attempt_takes_the_blocks_of_the_last(bad: OnRequest):
    async with nixl(on_decode=bad, limits=quick(stale=0.0)) as pair, engine() as other:
        await pair.at.admit("decode", other, protocol="vllm-nixl")
        response = await pair.at.post(PROMPT | {"max_tokens": 9})
        assert (response.status_code, response.headers["x-router-decode-url"]) == (200, other.url)
        ids = [(await pair.prefill.turn()).headers["x-request-id"] for _ in range(2)]
        turns = {turn.headers["x-request-id"]: turn for turn in (await other.turn(), await other.turn())}
        release, request = (turns[one] for one in ids)
        assert params_of(release) == params_of(request) == PARAMS
        assert (release.json["max_tokens"], release.json["stream"]) == (1, False)
        assert (request.json["max_tokens"], "stream" in request.json) == (9, False)
        await released(pair.at)


async def test_a_decode_that_is_not_there_and_no_other_one():
    async with nixl() as pair, engine() as other:
        await pair.at.admit("decode", other, protocol="vllm-nixl", is_paused=True)
        await pair.decode.stop()
        assert (await pair.at.post()).status_code == 502
        assert not pair.at.metrics.kv_releases, "no other decode gets requests"


async def test_a_decode_that_refuses_for_good():
    async with nixl(on_decode=refuse) as pair, engine() as other:
        await pair.at.admit("decode", other, protocol="vllm-nixl")
        assert (await pair.at.post()).status_code == 400
        assert (await other.turn()).json["max_tokens"] == 1
        await released(pair.at)


async def test_what_the_other_decode_does_not_take_either_is_counted():
    async with nixl(on_decode=refuse) as pair, engine(refuse) as other:
        await pair.at.admit("decode", other, protocol="vllm-nixl")
        assert (await pair.at.post()).status_code == 400
        await released(pair.at, "failed")


async def test_an_answer_that_has_begun_has_taken_its_blocks():
    async def break_off(turn: Turn) -> None:
        await turn.start_stream()
        await turn.event({"choices": []})
        turn.drop()

    async with nixl(on_decode=break_off) as pair, engine(break_off) as other:
        await pair.at.admit("decode", other, protocol="vllm-nixl")
        client = await ask(pair.at)
        await client.head()
        await client.rest()
        await pair.at.idle()
        assert not pair.at.metrics.kv_releases


async def test_a_prefill_that_holds_nothing():
    async def forget(turn: Turn) -> None:
        await prefilled(turn, b"null")

    async with nixl(forget, refuse) as pair, engine(refuse) as other:
        await pair.at.admit("decode", other, protocol="vllm-nixl")
        assert (await pair.at.post()).status_code == 400
        await pair.at.idle()
        assert not pair.at.metrics.kv_releases


async def test_a_release_has_an_end():
    async with nixl(on_decode=refuse, limits=quick(prefill_linger=0.1)) as pair, engine(hold) as other:
        await pair.at.admit("decode", other, protocol="vllm-nixl")
        assert (await pair.at.post()).status_code == 400
        await released(pair.at, "failed")


async def test_the_decode_that_was_to_take_them_for_a_client_who_left():
    async with nixl(on_prefill=hold) as pair, engine() as other:
        await pair.at.admit("decode", other, protocol="vllm-nixl", is_paused=True)
        client = await ask(pair.at, STREAM)
        turn = await pair.prefill.turn()
        body = b'{"kv_transfer_params": %b}' % PARAMS
        await turn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        [exchange] = pair.at.router.in_flight.values()
        attempt = exchange.attempt
        assert attempt is not None
        await until(lambda: any(leg.head for leg in attempt.waits_for()), "the head of the prefill's answer")
        client.leave()
        await until(lambda: exchange.error, "the client's end to be noticed")
        await pair.decode.stop()
        await pair.at.admit("decode", other, protocol="vllm-nixl")
        await turn.send(body)
        assert params_of(await other.turn()) == PARAMS
        await released(pair.at)
