"""vLLM with NIXL, end to end: first the prefill, then the decode with what the prefill's answer says of its KV."""

import asyncio

import pytest
from router_mocks import (
    ANSWER,
    LIMIT,
    PROMPT,
    Running,
    Split,
    Turn,
    engine,
    hold,
    message,
    quick,
    until,
)
from router_nixl import PARAMS, nixl, params_of, prefilled
from router_protocol_mocks import DONE, STREAM, OnRequest, ask, send_events, token_event

from pdctl.router.upstream.pool import Call


async def test_the_decode_follows_the_prefill_with_its_parameters_byte_for_byte():
    async with nixl(on_prefill=hold) as pair:
        request = asyncio.create_task(pair.at.post(PROMPT | {"n": 1, "max_tokens": 9}))
        first = await pair.prefill.turn()
        sent = first.json
        assert (sent["n"], sent["max_tokens"], sent["stream"]) == (1, 1, False)
        assert pair.decode.turns.empty()
        assert pair.at.load(pair.decode)[0] == 1, "it will get the request"
        await prefilled(first)
        response = await request
        assert (response.status_code, response.json()) == (200, ANSWER)
        second = await pair.decode.turn()
        assert params_of(second) == PARAMS
        assert {name: value for name, value in second.json.items() if name != "kv_transfer_params"} == PROMPT | {
            "n": 1,
            "max_tokens": 9,
        }
        assert first.headers["x-request-id"] == second.headers["x-request-id"] == response.headers["x-request-id"]
        assert response.headers["x-router-prefill-url"] == pair.prefill.url
        assert "x-router-fallback" not in response.headers
        await pair.at.idle()


SEVERAL = [
    {"prompt": "a", "n": 2},
    {"prompt": ["a", "b"]},
    {"prompt": [[1, 2], [3]]},
    {"prompt": ["a", "b"], "messages": []},
    {"prompt": "a", "best_of": 2},
]


@pytest.mark.parametrize("asked", SEVERAL, ids=str)
async def test_what_would_fetch_the_kv_more_than_once_is_computed_by_the_decode(asked: dict[str, object]):
    """The prefill frees its blocks after the first fetch: the second could be of another request's KV."""
    async with nixl() as pair:
        response = await pair.at.post({"model": "m"} | asked, path="/v1/completions")
        assert (response.status_code, response.headers["x-router-fallback"]) == (200, "several_choices")
        assert pair.prefill.turns.empty()
        assert "kv_transfer_params" not in (await pair.decode.turn()).json
        assert pair.at.metrics.fallbacks["several_choices"] == 1


@pytest.mark.parametrize("asked", SEVERAL, ids=str)
async def test_that_holds_also_where_the_request_names_the_pair(asked: dict[str, object]):
    async with nixl() as pair:
        pins = {"X-Router-Prefill-URL": pair.prefill.url, "X-Router-Decode-URL": pair.decode.url, "X-Pdctl-Token": "t"}
        response = await pair.at.post({"model": "m"} | asked, pins, "/v1/completions")
        assert (response.status_code, response.headers["x-router-fallback"]) == (200, "several_choices")
        assert pair.prefill.turns.empty()
        assert "kv_transfer_params" not in (await pair.decode.turn()).json


@pytest.mark.parametrize("asked", [{"n": 2}, {"prompt_logprobs": 1}], ids=str)
async def test_what_needs_no_prefill_is_served_without_one(asked: dict[str, object]):
    async with nixl() as pair:
        pair.prefill.health_status = 503
        pair.at.router.registry.take_out(pair.at.router.registry.instances[pair.prefill.key], "it is gone")
        assert (await pair.at.post(PROMPT | asked)).status_code == 200
        assert "x-router-fallback" not in (response := await pair.at.post()).headers
        assert response.status_code == 503


async def test_what_needs_no_prefill_waits_for_no_full_one():
    async with nixl(on_prefill=hold, engine_requests=1) as pair, engine() as free:
        waiting = asyncio.create_task(pair.at.post())
        held = await pair.prefill.turn()
        await pair.at.admit("decode", free, protocol="vllm-nixl")
        assert (await pair.at.post(PROMPT | {"n": 2})).headers["x-router-decode-url"] == free.url
        await prefilled(held)
        assert (await waiting).status_code == 200


async def test_a_stream_is_the_decodes_and_its_options_do_not_reach_the_prefill():
    async def stream(turn: Turn) -> None:
        await send_events(turn, token_event("Paris"), DONE)

    async with nixl(on_decode=stream) as pair:
        response = await pair.at.post(STREAM | {"stream_options": {"include_usage": True}, "min_tokens": 3})
        assert response.content == token_event("Paris") + DONE
        first, second = (await pair.prefill.turn()).json, (await pair.decode.turn()).json
        assert first["stream"] is False
        assert not {"stream_options", "min_tokens"} & set(first)
        assert (second["stream"], second["stream_options"], second["min_tokens"]) == (
            True,
            {"include_usage": True},
            3,
        )
        await pair.at.idle()


async def test_a_prefills_answer_may_come_in_chunks_and_pieces():
    async def in_chunks(turn: Turn) -> None:
        answer = b'{"id": "cmpl-1", "kv_transfer_params": %b }' % PARAMS
        await turn.start_stream()
        for start in range(0, len(answer), 7):
            await turn.chunk(answer[start : start + 7])
        await turn.end_stream()

    async with nixl(on_prefill=in_chunks) as pair:
        assert (await pair.at.post()).status_code == 200
        assert params_of(await pair.decode.turn()) == PARAMS


@pytest.mark.parametrize("answer", [b'{"kv_transfer_params": null}', b'{"id": "cmpl-1"}'])
async def test_a_prefill_without_parameters_is_a_fallback_that_is_seen(answer: bytes):
    async def forget(turn: Turn) -> None:
        await turn.answer(answer)

    async with nixl(on_prefill=forget) as pair:
        response = await pair.at.post()
        assert (response.status_code, response.headers["x-router-fallback"]) == (200, "no_kv_transfer_params")
        assert (await pair.decode.turn()).json == PROMPT
        figures = (await pair.at.http.get("/metrics")).text
        assert 'pdctl_router_fallbacks_total{reason="no_kv_transfer_params"} 1' in figures


async def test_logprobs_of_the_prompt_are_the_decodes_own_work_and_counted():
    async with nixl() as pair:
        response = await pair.at.post(PROMPT | {"prompt_logprobs": 1})
        assert (response.status_code, response.headers["x-router-fallback"]) == (200, "prompt_logprobs")
        assert "x-router-prefill-url" not in response.headers
        assert (await pair.decode.turn()).json == PROMPT | {"prompt_logprobs": 1}
        assert pair.prefill.turns.empty()
        assert pair.at.metrics.fallbacks["prompt_logprobs"] == 1


async def break_body(turn: Turn) -> None:
    await turn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
    turn.drop()


async def babble(turn: Turn) -> None:
    await turn.answer(b"no JSON")


async def fail(turn: Turn) -> None:
    await turn.answer({"error": {"message": "no blocks"}}, 503)


@pytest.mark.parametrize("bad", [break_body, babble, fail])
async def test_a_prefill_that_fails_is_followed_by_another(bad: OnRequest):
    async with nixl(on_prefill=bad) as pair, engine(prefilled) as other:
        await pair.at.admit("prefill", other, protocol="vllm-nixl")
        response = await pair.at.post()
        assert response.status_code == 200
        assert response.headers["x-router-prefill-url"] == other.url
        assert pair.at.metrics.retries.value == pair.prefill.turns.qsize() == 1
        assert pair.decode.turns.qsize() == 1, "none after a failed prefill"
        await pair.at.idle()


async def test_a_prefill_that_refuses_for_good_is_the_answer():
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "too long"}}, 400)

    async with nixl(on_prefill=refuse) as pair, engine(prefilled) as other:
        await pair.at.admit("prefill", other, protocol="vllm-nixl")
        statuses = [(await pair.at.post()).status_code for _ in range(2)]
        assert sorted(statuses) == [200, 400]
        await pair.at.idle()


async def test_without_another_prefill_the_reason_is_told():
    async with nixl(on_prefill=babble) as pair:
        response = await pair.at.post()
        assert response.status_code == 502
        assert f"prefill instance {pair.prefill.url}: its answer is not a prefill's" in message(response)
        await pair.at.idle()


async def test_nonsense_for_an_answer_opens_the_breaker():
    async with nixl(on_prefill=babble, limits=quick(breaker_failures=3)) as pair:
        for _ in range(3):
            await pair.at.post()
        [state] = [one["breaker"] for one in (await pair.at.http.get("/instances")).json() if one["role"] == "prefill"]
        assert state == "open"


async def test_a_prefills_answer_is_not_collected_for_ever():
    async def flood(turn: Turn) -> None:
        await turn.answer({"kv_transfer_params": "x" * 100_000})

    async with nixl(on_prefill=flood, limits=quick(prefill_answer_bytes=50_000)) as pair:
        response = await pair.at.post()
        assert (response.status_code, "larger than 50000 bytes" in message(response)) == (502, True)
        await pair.at.idle()


async def test_a_fallback_of_a_failed_attempt_is_not_the_answers():
    answers = iter([b"{}", b'{"kv_transfer_params":{}}'])

    async def forget_once(turn: Turn) -> None:
        await turn.answer(next(answers))

    async with nixl(on_prefill=forget_once, on_decode=fail) as pair, engine() as other:
        await pair.at.admit("decode", other, protocol="vllm-nixl")
        response = await pair.at.post()
        assert pair.at.metrics.retries.value == 1
        assert (response.status_code, response.headers["x-router-decode-url"]) == (200, other.url)
        assert "x-router-fallback" not in response.headers
        assert pair.at.metrics.fallbacks["no_kv_transfer_params"] == 1


# The client leaves.


def gone(at: Running) -> bool:
    """Whether the router knows that the client has left."""
    return at.metrics.requests[b"/v1/chat/completions", "m", 499] == 1


async def released(pair: Split) -> None:
    """The decode takes the blocks, with one token and no stream; then nothing is left."""
    turn = await pair.decode.turn()
    assert params_of(turn) == PARAMS
    sent = turn.json
    assert (sent["max_tokens"], sent["n"], sent["stream"]) == (1, 1, False)
    await pair.at.idle()
    assert pair.decode.turns.empty()


async def test_a_client_that_leaves_during_prefill_ends_it():
    async with nixl(on_prefill=hold) as pair:
        client = await ask(pair.at)
        turn = await pair.prefill.turn()
        client.leave()
        await turn.peer_left()
        await pair.at.idle()
        assert pair.decode.turns.empty()
        assert gone(pair.at)


async def test_a_client_that_leaves_in_the_middle_of_the_prefills_answer_leaves_no_blocks():
    """The prefill has computed: its blocks wait for a decode, though nobody waits for the answer."""
    async with nixl(on_prefill=hold) as pair:
        client = await ask(pair.at, STREAM | {"n": 1})
        turn = await pair.prefill.turn()
        body = b'{"kv_transfer_params": %b}' % PARAMS
        await turn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        [exchange] = pair.at.router.in_flight.values()
        attempt = exchange.attempt
        assert attempt is not None
        await until(lambda: any(leg.head for leg in attempt.waits_for()), "the head of the prefill's answer")
        client.leave()
        await until(lambda: gone(pair.at), "the client's end to be noticed")
        await turn.send(body)
        await released(pair)


async def test_a_client_that_leaves_between_the_legs_leaves_no_blocks(monkeypatch: pytest.MonkeyPatch):
    """The decode is being connected: it gets a request of one token instead of the client's."""
    async with nixl(on_prefill=hold) as pair:
        await pair.decode.stop()  # no kept-alive connection is left
        await pair.decode.start()
        pool = pair.at.router.registry.instances[pair.decode.key].pool
        await until(lambda: not pool.open, "the end of the decode's connections")
        client = await ask(pair.at, STREAM | {"n": 1})
        turn = await pair.prefill.turn()
        connecting, go_on = asyncio.Event(), asyncio.Event()
        connect = Call._connect

        async def slowly(call: Call) -> None:
            connecting.set()
            await go_on.wait()
            await connect(call)

        monkeypatch.setattr(Call, "_connect", slowly)
        await prefilled(turn)
        async with asyncio.timeout(LIMIT):
            await connecting.wait()
        client.leave()
        await until(lambda: gone(pair.at), "the client's end to be noticed")
        go_on.set()
        await released(pair)


async def test_a_client_that_leaves_during_decode_ends_it():
    async with nixl(on_decode=hold) as pair:
        client = await ask(pair.at)
        turn = await pair.decode.turn()
        client.leave()
        await turn.peer_left()
        await pair.at.idle()
        assert pair.decode.turns.empty(), "the decode itself has the prefill's blocks released"


async def test_blocks_of_nobody_are_given_up_after_a_while():
    """A decode that does not answer the request of one token does not stay in flight for ever."""
    async with nixl(on_prefill=hold, on_decode=hold, limits=quick(prefill_linger=0.1)) as pair:
        client = await ask(pair.at)
        turn = await pair.prefill.turn()
        await turn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        [exchange] = pair.at.router.in_flight.values()
        attempt = exchange.attempt
        assert attempt is not None
        await until(lambda: any(leg.head for leg in attempt.waits_for()), "the head of the prefill's answer")
        client.leave()
        await turn.peer_left()
        await pair.at.idle()
