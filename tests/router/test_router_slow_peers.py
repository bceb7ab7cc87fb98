"""Peers that are slow, or stop: what the router holds for them is bounded, nothing is lost, nobody else notices."""

import asyncio
import hashlib
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from router_mocks import ANSWER, LIMIT, Running, Turn, engine, hold, quick, running, until
from router_raw import chunked, converse, head, let_read, post, prompt, replies

BUFFER = 64 * 1024  # the router's, for a slow client
READ = 256 * 1024  # the most that one read of the event loop brings
LIVE = head(method="GET", path="/health/live")
LAST = head("Connection: close", method="GET", path="/health/live")
STREAM = json.dumps({"prompt": "x", "stream": True}).encode()
SIZE = 16_000_000  # of an answer: more than all buffers between an engine and a client that does not read
BLOCK = random.Random(1).randbytes(40_000).replace(b"\n", b" ")


@asynccontextmanager
async def stalled(at: Running, request: bytes = post(STREAM)) -> AsyncIterator[socket.socket]:
    """A client that sends a request and does not read."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", at.port))
        await loop.sock_sendall(sock, request)
        yield sock


def held(at: Running) -> list[int]:
    """Bytes that the router holds for each client that waits for an answer."""
    return [c._transport.get_write_buffer_size() for c in at.router.server.clients if not c.waiting]


async def read_on(sock: socket.socket) -> bytes:
    """Everything until the router closes the connection."""
    loop, received = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(LIMIT):
        while data := await loop.sock_recv(sock, 1 << 18):
            received += data
    return bytes(received)


def blocks() -> list[bytes]:
    """A large answer's body, as events."""
    return [b'data: {"token_ids":[%d],"x":"%b"}\n\n' % (n, BLOCK) for n in range(SIZE // len(BLOCK))]


async def send_length(turn: Turn) -> None:
    body = b"".join(blocks())
    await turn.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def send_stream(turn: Turn) -> None:
    await turn.start_stream()
    for block in blocks():
        await turn.chunk(block)
    await turn.chunk(b"data: [DONE]\n\n")
    await turn.end_stream()


async def send_until_closed(turn: Turn) -> None:
    await turn.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"".join(blocks()))
    turn.writer.close()


WAYS = {"length": send_length, "stream": send_stream, "close": send_until_closed}


# Clients that read slowly.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("protocol", ["fastdeploy", "builtin"])
async def test_a_client_that_stops_reading_holds_its_engine_back_and_gets_everything_later(way: str, protocol: str):
    sent = 0

    async def answer(turn: Turn) -> None:
        turn.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        await WAYS[way](turn)
        nonlocal sent
        sent += 1

    async with engine(answer) as mixed, running(limits=quick(write_buffer=BUFFER)) as at:
        await at.admit("mixed", mixed, protocol=protocol)
        async with stalled(at, post(STREAM, "Connection: close")) as sock:
            await until(lambda: held(at) and held(at)[0] > BUFFER, "the router's buffer to be full")
            most = await most_held(at, 0.2)
            assert most <= BUFFER + READ + len(BLOCK)
            assert sent == 0, "the router has taken the whole answer"
            [answered] = replies(await read_on(sock), "POST")
        body = b"".join(blocks()) + (b"data: [DONE]\n\n" if way == "stream" else b"")
        assert hashlib.sha256(answered.body).digest() == hashlib.sha256(body).digest()
        await at.idle()


async def most_held(at: Running, seconds: float) -> int:
    """The most that the router holds for a client, in the next moments."""
    loop = asyncio.get_running_loop()
    end, most = loop.time() + seconds, 0
    while loop.time() < end:
        await asyncio.sleep(0.005)
        most = max([most, *held(at)])
    return most


async def test_a_client_that_sips_gets_everything():
    async with engine(send_stream) as mixed, running(limits=quick(write_buffer=BUFFER)) as at:
        await at.admit("mixed", mixed, protocol="builtin")
        async with stalled(at, post(STREAM, "Connection: close")) as sock:
            loop, received = asyncio.get_running_loop(), bytearray()
            async with asyncio.timeout(LIMIT):
                while data := await loop.sock_recv(sock, 20_000):
                    received += data
                    assert max(held(at), default=0) <= BUFFER + READ + len(BLOCK)
                    await let_read()
        [answer] = replies(bytes(received), "POST")
        assert answer.body == b"".join(blocks()) + b"data: [DONE]\n\n"
        await at.idle()


async def test_a_stream_that_goes_on_elsewhere_is_held_back_there_too():
    """Its client has stopped reading when the first engine is given up: the second must not fill the memory."""
    limits = quick(write_buffer=BUFFER, probe_interval=0.05)
    async with engine(send_stream) as a, engine(send_stream) as b, running(limits=limits) as at:
        for mock in (a, b):
            await at.admit("mixed", mock, protocol="builtin")
        async with stalled(at, post(STREAM, "Connection: close")) as sock:
            await until(lambda: held(at) and held(at)[0] > BUFFER, "the router's buffer to be full")
            first = a if a.turns.qsize() else b
            first.health_status = 500
            await until(lambda: at.metrics.resumes.value, "the stream to go on elsewhere")
            most = await most_held(at, 0.3)
            received = await read_on(sock)
        assert most <= BUFFER + 2 * READ + 2 * len(BLOCK), f"the router holds {most} bytes"  # a read of each engine
        [answer] = replies(received, "POST")
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert answer.body.count(b"data: {") > len(blocks()), "the second engine sent all of its stream"
        await at.idle()


async def test_a_client_that_never_reads_is_left_when_its_time_is_over():
    limits = quick(write_buffer=BUFFER, idle_timeout=0.2, linger=0.1)
    async with engine(send_stream) as mixed, running(limits=limits, request_timeout=0.3) as at:
        await at.admit("mixed", mixed)
        async with stalled(at):
            turn = await mixed.turn()
            await until(lambda: held(at) and held(at)[0] > BUFFER, "the router's buffer to be full")
            [client] = [c for c in at.router.server.clients if not c.waiting]
            await at.idle()
            await until(lambda: turn.writer.transport.is_closing() or turn.reader.at_eof(), "the engine to be left")
            await until(lambda: client not in at.router.server.clients, "the client to be cut")


async def test_clients_that_stop_reading_delay_nobody_and_cost_a_bounded_memory():
    async with engine(send_stream) as mixed, running(limits=quick(write_buffer=BUFFER)) as at:
        await at.admit("mixed", mixed)
        clients = [stalled(at) for _ in range(20)]
        for client in clients:
            await client.__aenter__()
        await until(lambda: len([size for size in held(at) if size > BUFFER]) == 20, "all buffers to be full")
        mixed.on_request = quickly
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for _ in range(50):
            assert (await at.post()).json() == ANSWER
        assert loop.time() - begin < 2.0
        assert sum(held(at)) <= 20 * (BUFFER + READ + len(BLOCK))
        for client in clients:
            await client.__aexit__(None, None, None)
        await at.idle()


async def quickly(turn: Turn) -> None:
    await turn.answer(ANSWER)


# Clients that send slowly.


@pytest.mark.parametrize(
    ("sent", "trickle", "phase"),
    [
        (b"POST /", b"x", "head"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n", "head"),
        (head("Content-Length: 1000"), b" ", "body"),
        (head("Transfer-Encoding: chunked"), b"1\r\nx\r\n", "body"),
        (head("Transfer-Encoding: chunked") + b"1;", b"x", "body"),
        (head("Transfer-Encoding: chunked") + b"0\r\n", b"X: y\r\n", "body"),
        (head("Content-Length: 5", "Expect: 100-continue"), b"", "body"),
    ],
)
@pytest.mark.parametrize("before", [b"", LIVE])
async def test_a_request_that_takes_too_long_to_arrive_is_given_up(
    sent: bytes, trickle: bytes, phase: str, before: bytes
):
    """However often a byte of it comes, and whatever came before it on its connection."""
    async with engine() as mixed, running(limits=quick(head_timeout=0.1, body_timeout=0.1, linger=0.05)) as at:
        await at.admit("mixed", mixed)
        reader, writer = await at.connect()
        received = asyncio.ensure_future(reader.read())
        writer.write(before + sent)
        async with asyncio.timeout(LIMIT):
            while not received.done():
                writer.write(trickle)
                await asyncio.wait((received,), timeout=0.01)
        *_, last = replies(received.result(), *(["GET", "POST"] if before else ["POST"]))
        assert (last.status, last.headers["connection"]) == (408, "close")
        assert f"{phase} did not arrive in time" in last.error
        assert mixed.turns.empty()
        writer.transport.abort()
        await until(lambda: len(at.router.server.clients) == 1, "only the connection of the registration to be left")


async def test_a_client_that_sends_byte_by_byte_in_time_is_served():
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        data = post(prompt("slow")) + head("Transfer-Encoding: chunked") + chunked(prompt("slow"), (1, 2)) + LAST
        answers = replies(await converse(at, [bytes([byte]) for byte in data]), "POST", "POST", "GET")
        assert [answer.status for answer in answers] == [200, 200, 200]
        assert (await mixed.turn()).body.replace(b" ", b"").startswith(b'{"prompt":"slow"')


async def test_the_time_for_a_body_does_not_run_while_an_earlier_request_is_answered():
    async with engine(hold) as mixed, running(limits=quick(body_timeout=0.1, head_timeout=0.1)) as at:
        await at.admit("mixed", mixed)
        reader, writer = await at.connect()
        second = post(prompt("second"), "Connection: close")
        writer.write(post(prompt("first")) + second[:-5])
        turn = await mixed.turn()
        received = asyncio.ensure_future(reader.read())
        done, _ = await asyncio.wait((received,), timeout=0.3)
        assert not done, "the router gave up a request whose turn had not come"
        mixed.on_request = quickly
        await quickly(turn)
        turn.drop()
        await let_read()
        writer.write(second[-5:])
        async with asyncio.timeout(LIMIT):
            answers = replies(await received, "POST", "POST")
        assert [answer.status for answer in answers] == [200, 200]
        writer.close()


async def test_many_clients_that_send_slowly_delay_nobody():
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        begun = [await at.connect() for _ in range(200)]
        for _, writer in begun:
            writer.write(post(prompt("half"))[:-1])
        for _ in range(50):
            assert (await at.post()).status_code == 200
        for _, writer in begun:
            writer.write(b"}")
        for reader, writer in begun:
            async with asyncio.timeout(LIMIT):
                assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
            writer.transport.abort()
        await at.idle()


# Engines that are slow.


@pytest.mark.parametrize("protocol", ["fastdeploy", "builtin"])
async def test_an_engine_that_sends_byte_by_byte(protocol: str):
    body = b"".join(b'data: {"token_ids":[%d]}\n\n' % n for n in range(5)) + b"data: [DONE]\n\n"
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked(body, (5, 1)),
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
    ]

    async def trickle(turn: Turn) -> None:
        for byte in answers[turn.json["n"]]:
            turn.writer.write(bytes([byte]))
            await let_read()

    async with engine(trickle) as mixed, running() as at:
        await at.admit("mixed", mixed, protocol=protocol)
        for number in (0, 1):
            request = post(json.dumps({"prompt": "x", "stream": True, "n": number}).encode(), "Connection: close")
            [answer] = replies(await converse(at, [request]), "POST")
            assert answer.body == body
        await at.idle()


async def test_an_engine_that_does_not_read_its_request_delays_nobody():
    async with engine() as mixed, running() as at, deaf() as port:
        await at.admit("mixed", mixed)
        instance = at.router.registry.instances[mixed.key]
        instance.pool.close()
        await until(lambda: not instance.pool.open, "the connections to be closed")
        instance.pool.retired, instance.pool.port = False, port
        large = asyncio.create_task(at.post({"prompt": "x" * 8_000_000}))
        await until(lambda: at.router.in_flight, "the large request")
        instance.pool.port = mixed.port
        for _ in range(20):
            assert (await at.post()).status_code == 200
        large.cancel()
        await at.idle()
        await until(lambda: len(instance.pool.open) == instance.pool.idle, "the deaf connection to be closed")


@asynccontextmanager
async def deaf() -> AsyncIterator[int]:
    """A port that takes connections, on which nobody reads."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]
