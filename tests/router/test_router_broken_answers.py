"""What breaks after the answer has begun, and clients that leave."""

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
    PROMPT,
    MockEngine,
    Running,
    Split,
    Turn,
    engine,
    hold,
    message,
    quick,
    running,
    split,
    until,
)

# Failures after the decode's body has begun.


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
        assert pair.at.metrics.broken_streams.value == 1
        await pair.at.idle()


async def test_a_broken_answer_is_counted_once():
    async with split(on_decode=hold) as pair:
        turn, response = await begin(pair)
        await turn.chunk(b"data: half an event")
        turn.drop()
        await read_cut(response)
        await until(lambda: not pair.at.router.server.clients, "the cut connection to be closed")
        assert pair.at.metrics.requests == {(CHAT.encode(), "m", 200): 1}


async def test_a_stream_that_dies_before_its_first_event_has_not_begun():
    async def dies(turn: Turn) -> None:
        await turn.start_stream()
        turn.writer.close()

    async with split(on_decode=dies) as pair, engine() as other:
        response = await pair.at.post()
        assert (response.status_code, response.json()["error"]["code"]) == (502, "decode_failed")
        await pair.at.admit("decode", other)
        assert (await pair.at.post()).headers["x-router-decode-url"] == other.url
        await pair.at.idle()


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
        assert pair.at.metrics.requests[CHAT.encode(), "m", 499] == 1


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
