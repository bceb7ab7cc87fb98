"""Every way in which a request can fail, and what its client and its engines see of it."""

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from router_mocks import (
    ANSWER,
    CHAT,
    LIMIT,
    PROMPT,
    MockEngine,
    Running,
    Split,
    Turn,
    engine,
    hold,
    quick,
    running,
    split,
    until,
)


async def drop(turn: Turn) -> None:
    turn.drop()


def message(response: httpx.Response) -> str:
    return response.json()["error"]["message"]


# No engine.


async def test_missing_roles_are_named():
    async with engine() as prefill, engine() as decode, running(splitwise=True) as at:
        response = await at.post(headers={"X-Request-Id": "mine"})
        assert (response.status_code, message(response)) == (503, "no prefill instance is registered")
        assert (response.headers["retry-after"], response.headers["x-request-id"]) == ("5", "mine")
        await at.admit("prefill", prefill)
        assert message(await at.post()) == "no decode instance is registered"
        await at.admit("decode", decode)
        assert (await at.post()).status_code == 200


async def test_a_missing_mixed_engine():
    async with running() as at:
        assert message(await at.post()) == "no mixed instance is registered"


async def test_paused_engines_get_nothing_new():
    async with split() as pair:
        await pair.at.admit("decode", pair.decode, is_paused=True)
        response = await pair.at.post()
        assert (response.status_code, message(response)) == (503, "every decode instance is paused")
        await pair.at.admit("decode", pair.decode, is_paused=False)
        assert (await pair.at.post()).status_code == 200


async def test_engines_that_do_not_fit():
    async with split() as pair:
        await pair.at.admit("decode", pair.decode, tp_size=4)
        response = await pair.at.post()
        assert response.status_code == 400
        assert "tp_size 4" in message(response)
        health = await pair.at.http.get("/health")
        assert (health.status_code, message(health)) == (503, message(response)), "no request can be served"


async def test_a_prefill_without_a_partner_is_passed_over():
    async with engine() as alone, split() as pair:
        await pair.at.admit("prefill", alone, transfer_protocol=["rdma"])
        for _ in range(4):
            response = await pair.at.post()
            assert response.headers["x-router-prefill-url"] == pair.prefill.url


# Failures before the decode's head.


async def test_a_prefill_that_refuses_ends_the_decode_at_once_and_its_reason_reaches_the_client():
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "too long"}}, 400)

    async with split(on_prefill=refuse, on_decode=hold) as pair:
        response = await pair.at.post()
        assert (response.status_code, response.json()) == (400, {"error": {"message": "too long"}})
        assert response.headers["x-router-prefill-url"] == pair.prefill.url
        await (await pair.decode.turn()).peer_left()
        await pair.at.idle()


async def test_the_decode_is_left_at_the_head_of_the_prefills_refusal():
    async def slow_refusal(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\n")
        await hold(turn)

    async with split(on_prefill=slow_refusal, on_decode=hold) as pair:
        request = asyncio.create_task(pair.at.post())
        await (await pair.decode.turn()).peer_left()
        await (await pair.prefill.turn()).send(b"oops")
        response = await request
        assert (response.status_code, response.content) == (500, b"oops")


async def test_a_refusal_without_a_body_is_explained():
    async def refuse(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")

    async with split(on_prefill=refuse, on_decode=hold) as pair:
        response = await pair.at.post()
        assert response.status_code == 503
        assert message(response) == f"prefill instance {pair.prefill.url} answered 503"


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", b"HTTP/1.1 500 X\r\nContent-Length: 10\r\n\r\n{}"],
)
async def test_a_prefill_that_drops_ends_the_decode(answer: bytes):
    async def half(turn: Turn) -> None:
        await turn.send(answer)
        turn.writer.close()

    async with split(on_prefill=half, on_decode=hold) as pair:
        response = await pair.at.post()
        assert response.status_code == 502
        assert message(response).startswith(f"prefill instance {pair.prefill.url}: the connection was ")
        await (await pair.decode.turn()).peer_left()
        await pair.at.idle()


async def test_a_connection_lost_late_was_not_stale_and_its_request_is_not_sent_twice():
    async with split(on_decode=drop, limits=quick(stale=0.0)) as pair:
        assert (await pair.at.post()).status_code == 502
        assert pair.decode.turns.qsize() == 1


async def test_a_decode_that_drops_ends_the_prefill():
    async with split(on_prefill=hold, on_decode=drop) as pair:
        response = await pair.at.post()
        assert response.status_code == 502
        assert message(response).startswith(f"decode instance {pair.decode.url}: the connection was ")
        await (await pair.prefill.turn()).peer_left()
        await pair.at.idle()


async def test_a_decode_that_refuses_ends_the_prefill():
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "no blocks"}}, 429, "Retry-After: 7\r\n")

    async with split(on_prefill=hold, on_decode=refuse) as pair:
        response = await pair.at.post()
        assert (response.status_code, response.headers["retry-after"]) == (429, "7")
        await (await pair.prefill.turn()).peer_left()
        await pair.at.idle()


@pytest.mark.parametrize(
    "nonsense", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\x00" * 99]
)
async def test_a_decode_that_does_not_speak_http(nonsense: bytes):
    async def babble(turn: Turn) -> None:
        await turn.send(nonsense)

    async with split(on_prefill=hold, on_decode=babble) as pair:
        response = await pair.at.post()
        assert response.status_code == 502
        assert message(response) == f"decode instance {pair.decode.url}: the answer is not valid HTTP"
        await (await pair.prefill.turn()).peer_left()
        await pair.at.idle()


async def test_headers_without_end_are_not_collected_for_ever():
    async def flood(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000)

    async with engine(flood) as mixed, running() as at:
        await at.admit("mixed", mixed)
        assert (await at.post()).status_code == 502


async def test_a_request_that_takes_too_long():
    async with split(on_prefill=hold, on_decode=hold, request_timeout=0.1) as pair:
        response = await pair.at.post()
        assert response.status_code == 504
        engines = f"prefill instance {pair.prefill.url} and decode instance {pair.decode.url}"
        assert message(response) == f"{engines}: waited 0.1 s for an answer"
        assert pair.at.router.metrics.leg_failures == {("prefill", "timeout"): 1, ("decode", "timeout"): 1}
        await (await pair.prefill.turn()).peer_left()
        await (await pair.decode.turn()).peer_left()
        await pair.at.idle()


# Engines that cannot be reached: another try, and no more requests for them.


@pytest.mark.parametrize("dead_role", ["prefill", "decode"])
async def test_a_dead_engine_costs_one_retry_and_then_nothing(dead_role: str):
    async with split() as pair, engine() as dead:
        await pair.at.admit(dead_role, dead)
        await dead.stop()
        await until(
            lambda: not pair.at.router.registry.instances[dead.key].pool.idle, "the dead connection to be noticed"
        )
        responses = [await pair.at.post() for _ in range(4)]
        assert [response.status_code for response in responses] == [200] * 4
        assert pair.at.router.metrics.retries == 1
        assert dead.key not in str((await pair.at.http.get("/registered")).json())
        other = pair.prefill if dead_role == "decode" else pair.decode
        ids = [(await other.turn()).json["request_id"] for _ in range(5)]
        retried = [request_id for request_id in ids if request_id.endswith("-retry1")]
        assert len(retried) == 1, "the second attempt has an id of its own at the engine"
        assert retried[0].removesuffix("-retry1") in [response.headers["x-request-id"] for response in responses]
        await pair.at.idle()


async def test_an_abort_names_the_second_attempt_as_its_engines_do():
    async with split(on_prefill=hold, on_decode=hold) as pair, engine() as dead:
        await pair.at.admit("decode", dead)
        await dead.stop()
        pool = pair.at.router.registry.instances[dead.key].pool
        await until(lambda: not pool.idle, "the dead connection to be noticed")
        requests = [asyncio.create_task(pair.at.post(headers={"X-Request-Id": name})) for name in "ab"]
        await until(lambda: pair.at.router.metrics.retries, "the second attempt")
        turns = {turn.json["request_id"]: turn for turn in [await pair.decode.turn() for _ in requests]}
        [retried] = [request_id for request_id in turns if request_id.endswith("-retry1")]
        abort = asyncio.create_task(
            pair.at.http.post("/v1/abort_requests", json={"req_ids": [retried.removesuffix("-retry1")]})
        )
        assert (await pair.decode.turn()).json["req_ids"] == [retried]
        for task in (*requests, abort):
            task.cancel()
        await asyncio.wait((*requests, abort))


async def test_without_another_engine_the_reason_is_given():
    async with split(on_prefill=hold) as pair:
        await pair.decode.stop()
        await until(lambda: not pair.at.router.registry.instances[pair.decode.key].pool.idle, "the end to be noticed")
        response = await pair.at.post()
        assert (response.status_code, message(response)) == (
            502,
            f"decode instance {pair.decode.url}: Connection refused",
        )
        await (await pair.prefill.turn()).peer_left()
        response = await pair.at.post()
        assert response.status_code == 503
        assert message(response) == f"no decode instance answers: {pair.decode.url}: Connection refused"
        await pair.at.idle()


async def test_an_engine_that_comes_back_gets_requests_again():
    async with split() as pair:
        await pair.decode.stop()
        await until(lambda: not pair.at.router.registry.instances[pair.decode.key].pool.idle, "the end to be noticed")
        assert (await pair.at.post()).status_code == 502
        await pair.decode.start()
        assert (await pair.at.post()).status_code == 503
        await pair.at.admit("decode", pair.decode)
        assert (await pair.at.post()).status_code == 200
        await pair.at.idle()


async def test_a_second_dead_engine_is_not_survived_but_explained():
    async with split() as pair, engine() as second, engine() as third:
        await pair.at.admit("decode", second)
        await pair.at.admit("decode", third)
        instances = pair.at.router.registry.instances
        for mock in (pair.decode, second):
            await mock.stop()
            await until(lambda key=mock.key: not instances[key].pool.idle, "the end to be noticed")
        assert (await pair.at.post()).status_code == 502
        assert (await pair.at.post()).status_code == 200


# Failures after the decode's head.


async def begin(pair: Split) -> tuple[Turn, httpx.Response]:
    request = pair.at.http.build_request("POST", CHAT, json=PROMPT)
    sending = asyncio.create_task(pair.at.http.send(request, stream=True))
    turn = await pair.decode.turn()
    await turn.start_stream()
    await turn.event({"n": 1})
    return turn, await sending


async def read_cut(response: httpx.Response) -> bytes:
    """What arrives of an answer that must not look complete."""
    received = b""
    try:
        async for piece in response.aiter_raw():
            received += piece
    except httpx.RemoteProtocolError:
        return received
    raise AssertionError(f"the answer looks complete: {received!r}")


async def test_a_stream_whose_decode_dies_ends_with_an_error_event():
    async with split(on_decode=hold) as pair:
        turn, response = await begin(pair)
        turn.drop()
        received = await read_cut(response)
        first, event, rest = received.decode().split("\n\n")
        assert (first, rest) == ('data: {"n": 1}', "")
        name, data = event.split("\n")
        assert name == "event: error"
        error = json.loads(data.removeprefix("data: "))["error"]
        assert error["code"] == "decode_failed"
        assert error["message"].startswith(f"decode instance {pair.decode.url}: the connection was ")
        assert pair.at.router.metrics.broken_streams == 1
        await pair.at.idle()


async def test_a_broken_answer_is_counted_once():
    async with split(on_decode=hold) as pair:
        turn, response = await begin(pair)
        await turn.chunk(b"data: half an event")
        turn.drop()
        await read_cut(response)
        await until(lambda: not pair.at.router.server.clients, "the cut connection to be closed")
        assert pair.at.router.metrics.requests == {(CHAT.encode(), 200): 1}


async def test_a_stream_that_dies_before_its_first_event():
    async def dies(turn: Turn) -> None:
        await turn.start_stream()
        turn.writer.close()

    async with split(on_decode=dies) as pair, pair.at.http.stream("POST", CHAT, json=PROMPT) as response:
        assert (await read_cut(response)).startswith(b"event: error\ndata: ")


async def test_a_stream_that_dies_within_an_event_is_just_cut():
    async with split(on_decode=hold) as pair:
        turn, response = await begin(pair)
        await turn.chunk(b'data: {"n": ')
        turn.drop()
        received = await read_cut(response)
        assert b"error" not in received
        await pair.at.idle()


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_half_an_answer_never_looks_whole(framing: str):
    async def half(turn: Turn) -> None:
        await turn.send(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{framing}\r\n\r\n".encode())
        await turn.send(b'2\r\n{"\r\n' if "chunked" in framing else b'{"id":')
        turn.writer.close()

    async with split(on_decode=half) as pair:
        with pytest.raises(httpx.RemoteProtocolError):
            await pair.at.post()
        await pair.at.idle()


async def test_an_answer_that_ends_with_its_connection_is_not_whole_if_that_is_reset():
    async def begin_without_length(turn: Turn) -> None:
        await turn.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
        await hold(turn)

    async with split(on_decode=begin_without_length) as pair:
        async with pair.at.http.stream("POST", CHAT, json=PROMPT) as response:
            turn = await pair.decode.turn()
            reset_on_close = struct.pack("ii", 1, 0)
            turn.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
            turn.drop()
            assert await read_cut(response) == b"{"
        await pair.at.idle()


async def test_a_stream_that_takes_too_long_ends_with_an_error_event():
    async with split(on_decode=hold, request_timeout=0.3) as pair:
        turn, response = await begin(pair)
        received = await read_cut(response)
        assert b"waited 0.3 s for the end of the answer" in received
        await turn.peer_left()
        await pair.at.idle()


async def test_a_prefill_that_fails_after_the_decodes_head_is_the_decodes_affair():
    async with split(on_prefill=hold, on_decode=hold, limits=quick(stale=0.0)) as pair:
        turn, response = await begin(pair)
        (await pair.prefill.turn()).drop()
        await until(lambda: pair.at.load(pair.prefill) == (0, 0), "the prefill's leg to end")
        await turn.event({"n": 2})
        await turn.end_stream()
        assert await response.aread() == b'data: {"n": 1}\n\ndata: {"n": 2}\n\n'
        await pair.at.idle()


async def test_a_prefill_that_refuses_after_the_decodes_head_is_the_decodes_affair():
    async with split(on_prefill=hold, on_decode=hold) as pair:
        turn, response = await begin(pair)
        await (await pair.prefill.turn()).answer({"error": {}}, 500)
        await until(lambda: pair.at.load(pair.prefill) == (0, 0), "the prefill's leg to end")
        await turn.end_stream()
        assert await response.aread() == b'data: {"n": 1}\n\n'
        await pair.at.idle()


# Clients that leave.


async def test_a_client_that_leaves_before_its_answer_frees_both_engines():
    async with split(on_prefill=hold, on_decode=hold) as pair:
        request = asyncio.create_task(pair.at.post())
        p, d = await pair.prefill.turn(), await pair.decode.turn()
        request.cancel()
        await asyncio.gather(p.peer_left(), d.peer_left())
        await pair.at.idle()
        assert pair.at.router.metrics.requests[CHAT.encode(), 499] == 1


async def test_a_client_that_leaves_its_stream_frees_both_engines():
    async with split(on_prefill=hold, on_decode=hold) as pair:
        turn, response = await begin(pair)
        await response.aclose()
        await asyncio.gather((await pair.prefill.turn()).peer_left(), turn.peer_left())
        await pair.at.idle()


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose queue of connections is full: connecting to it neither succeeds nor fails."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with ExitStack() as stack:
            for _ in range(2):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]


async def make_deaf(at: Running, mock: MockEngine, port: int) -> None:
    """Let the next connection to an engine go to this port."""
    pool = at.router.registry.instances[mock.key].pool
    pool.close()
    await until(lambda: not pool.open, "the connections to be closed")
    pool.retired, pool.port = False, port


async def test_a_client_that_leaves_while_its_engine_is_being_connected():
    with deaf_port() as port:
        async with engine() as mixed, running() as at:
            await at.admit("mixed", mixed)
            await make_deaf(at, mixed, port)
            request = asyncio.create_task(at.post())
            await until(lambda: at.router.in_flight, "the request")
            request.cancel()
            await at.idle()


async def test_an_engine_that_cannot_be_connected_in_time():
    with deaf_port() as port:
        async with engine() as mixed, running(limits=quick(connect_timeout=0.1)) as at:
            await at.admit("mixed", mixed)
            await make_deaf(at, mixed, port)
            response = await at.post()
            assert response.status_code == 502
            assert message(response) == f"mixed instance {mixed.url}: no connection within 0.1 s"
            assert (await at.post()).status_code == 503
            await at.idle()


async def test_a_half_closed_client_counts_as_gone():
    async with split(on_prefill=hold, on_decode=hold) as pair:
        _, writer = await pair.at.connect()
        body = json.dumps(PROMPT).encode()
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        d = await pair.decode.turn()
        writer.write_eof()
        await d.peer_left()
        await pair.at.idle()
        writer.close()


async def test_too_many_requests_in_flight():
    async with split(on_decode=hold, limits=quick(in_flight=1)) as pair:
        first = asyncio.create_task(pair.at.post())
        turn = await pair.decode.turn()
        response = await pair.at.post()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        await turn.answer(ANSWER)
        assert (await first).status_code == 200


# Requests that name their engines.


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
