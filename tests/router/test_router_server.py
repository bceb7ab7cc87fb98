"""The client's side over real sockets: keep-alive, pipelining, limits, and clients that misbehave."""

import asyncio
import json
import socket

import pytest
from router_mocks import ANSWER, CHAT, LIMIT, PROMPT, Running, engine, hold, quick, running, split, until

GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post(body: bytes, *headers: str, version: str = "1.1") -> bytes:
    lines = "".join(f"{line}\r\n" for line in (f"Content-Length: {len(body)}", *headers))
    return f"POST {CHAT} HTTP/{version}\r\nHost: x\r\n{lines}\r\n".encode() + body


def statuses(stream: bytes) -> list[int]:
    return [int(part[:3]) for part in stream.split(b"HTTP/1.1 ")[1:]]


async def read_answer(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    async with asyncio.timeout(LIMIT):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length"))
        return head, await reader.readexactly(int(length.split(":")[1]))


async def test_a_connection_serves_many_requests():
    async with running() as at:
        reader, writer = await at.connect()
        for _ in range(3):
            writer.write(GET)
            head, body = await read_answer(reader)
            assert head.startswith("HTTP/1.1 200 OK\r\n")
            assert json.loads(body) == {"status": "alive"}
        assert len(at.router.server.clients) == 1
        writer.close()
        await until(lambda: not at.router.server.clients, "the connection to be forgotten")


async def test_a_thousand_requests_at_once_are_answered_in_order():
    async with running() as at:
        paths = [b"/health/live" if n % 3 else b"/nothing" for n in range(1000)]
        stream = b"".join(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths)
        answers = statuses(await at.say(stream + LAST))
        assert answers == [200 if path == b"/health/live" else 404 for path in paths] + [200]


async def test_pipelined_requests_are_answered_in_order_even_if_the_first_takes_longest():
    async with engine(hold) as slow, running() as at:
        await at.admit("mixed", slow)
        reader, writer = await at.connect()
        writer.write(post(json.dumps(PROMPT).encode()) + GET)
        turn = await slow.turn()
        await turn.answer(ANSWER)
        _, first = await read_answer(reader)
        assert json.loads(first) == ANSWER
        _, second = await read_answer(reader)
        assert json.loads(second) == {"status": "alive"}
        writer.close()


async def test_a_client_that_pipelines_without_end_is_read_no_further():
    async with engine(hold) as slow, running() as at:
        await at.admit("mixed", slow)
        _, writer = await at.connect()
        writer.write(post(json.dumps(PROMPT).encode()))
        turn = await slow.turn()
        sending = asyncio.create_task(send_for_ever(writer))
        done, _ = await asyncio.wait((sending,), timeout=0.3)
        assert not done
        client = next(client for client in at.router.server.clients if not client.waiting)
        assert len(client._reader.ready) < 20_000, "more than one read was taken"
        sending.cancel()
        writer.transport.abort()
        await turn.answer(ANSWER)
        await until(lambda: client not in at.router.server.clients, "the connection to be closed")
        await at.idle()


async def test_answers_are_not_piled_up_for_a_client_that_does_not_read_them():
    async with running() as at:
        reader, writer = await at.connect()
        reader._transport.pause_reading()
        sending = asyncio.create_task(send_for_ever(writer))
        await until(
            lambda: any(client._paused for client in at.router.server.clients), "the client's buffer to be full"
        )
        await asyncio.wait((sending,), timeout=0.3)
        [client] = at.router.server.clients
        assert client._reading_paused
        assert client._transport.get_write_buffer_size() < 2 * at.router.settings.limits.write_buffer
        sending.cancel()
        writer.transport.abort()


async def test_large_bodies_are_not_read_ahead():
    async with engine(hold) as slow, running() as at:
        await at.admit("mixed", slow)
        _, writer = await at.connect()
        writer.write(post(json.dumps(PROMPT).encode()))
        await slow.turn()
        sending = asyncio.create_task(send_for_ever(writer, post(b"x" * 1_000_000)))
        done, _ = await asyncio.wait((sending,), timeout=0.3)
        assert not done
        client = next(client for client in at.router.server.clients if not client.waiting)
        assert len(client._reader.ready) <= 2
        sending.cancel()
        writer.transport.abort()


async def send_for_ever(writer: asyncio.StreamWriter, data: bytes = GET * 1000) -> None:
    while True:
        writer.write(data)
        await writer.drain()


async def test_a_refusal_waits_for_the_answers_before_it():
    async with running() as at:
        assert statuses(await at.say(GET + GET + b"nonsense\r\n\r\n")) == [200, 200, 400]


async def test_malformed_requests_are_answered_as_openai_does():
    async with running() as at:
        answer = await at.say(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"connection: close" in head
        error = json.loads(body)["error"]
        assert error["type"] == "invalid_request_error"
        assert "malformed" in error["message"]


async def test_continue_is_sent_to_a_client_that_waits_for_it():
    async with engine() as mixed, running() as at:
        await at.admit("mixed", mixed)
        reader, writer = await at.connect()
        request = post(json.dumps(PROMPT).encode(), "Expect: 100-continue")
        head, _, body = request.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        async with asyncio.timeout(LIMIT):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await read_answer(reader))[0].startswith("HTTP/1.1 200")
        writer.close()


async def test_continue_comes_after_the_answer_before_it():
    async with engine(hold) as slow, running() as at:
        await at.admit("mixed", slow)
        reader, writer = await at.connect()
        request = post(json.dumps(PROMPT).encode())
        writer.write(request + post(b"{}", "Expect: 100-continue")[:-2])
        turn = await slow.turn()
        await turn.answer(ANSWER)
        assert (await read_answer(reader))[0].startswith("HTTP/1.1 200")
        async with asyncio.timeout(LIMIT):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.close()


async def test_a_client_that_is_refused_in_the_middle_of_its_body_can_read_why():
    async with running(limits=quick(body_bytes=1024 * 1024)) as at:
        body = b"x" * (8 * 1024 * 1024)
        answer = await asyncio.to_thread(send_all_then_read, at.port, post(body))
        assert statuses(answer) == [413]


def send_all_then_read(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as sock:
        sock.sendall(data)
        return b"".join(iter(lambda: sock.recv(65536), b""))


async def test_too_large_headers():
    async with running() as at:
        assert statuses(await at.say(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000 + b"\r\n\r\n")) == [431]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HT", [408]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", [408]),
        (b"", []),
        (GET, [200]),
    ],
)
async def test_clients_that_stop_sending_are_closed(sent: bytes, status: list[int]):
    async with running(limits=quick(head_timeout=0.05, body_timeout=0.05, idle_timeout=0.05, linger=0.05)) as at:
        assert statuses(await at.say(sent)) == status


async def test_bytes_that_trickle_do_not_extend_the_time():
    async with running(limits=quick(head_timeout=0.15)) as at:
        reader, writer = await at.connect()
        answer = asyncio.ensure_future(reader.read())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        async with asyncio.timeout(LIMIT):
            while not answer.done():
                writer.write(b"x")
                await asyncio.wait((answer,), timeout=0.02)
        assert statuses(answer.result()) == [408]
        writer.close()


async def test_a_client_that_holds_a_refused_connection_open_is_cut():
    async with running(limits=quick(linger=0.05)) as at:
        _, writer = await at.connect()
        writer.write(b"nonsense\r\n\r\n")
        await until(lambda: at.router.server.clients, "the connection")
        await until(lambda: not at.router.server.clients, "the connection to be closed")
        writer.close()


async def test_one_client_too_many():
    async with running(limits=quick(clients=1)) as at:
        _, writer = await at.connect()
        await until(lambda: at.router.server.clients, "the first connection")
        assert statuses(await at.say(b"")) == [503]
        writer.close()


async def test_http_1_0_is_closed_unless_it_asks_otherwise():
    async with running() as at:
        assert statuses(await at.say(b"GET /health/live HTTP/1.0\r\n\r\n")) == [200]
        reader, writer = await at.connect()
        writer.write(b"GET /health/live HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _ = await read_answer(reader)
        assert "connection: keep-alive" in head
        writer.write(GET)
        await read_answer(reader)
        writer.close()


async def test_an_upgrade_is_ignored():
    async with running() as at:
        answer = await at.say(
            b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI * HTTP/2.0\r\n\r\n"
        )
        assert statuses(answer) == [200]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("OPTIONS", "/nothing", 404, None),
        ("GET", CHAT, 405, "POST, OPTIONS"),
        ("HEAD", CHAT, 405, "POST, OPTIONS"),
        ("DELETE", "/register", 405, "POST, OPTIONS"),
        ("POST", "/health", 405, "GET, HEAD, OPTIONS"),
        ("OPTIONS", CHAT, 204, "POST, OPTIONS"),
        ("OPTIONS", "/metrics", 204, "GET, HEAD, OPTIONS"),
        ("HEAD", "/health/live", 200, None),
        ("GET", "/v1/models/none", 404, None),
        ("PUT", "/v1/models/none", 405, "GET, HEAD, OPTIONS"),
    ],
)
async def test_routes(method: str, path: str, status: int, allow: str | None):
    async with running() as at:
        response = await at.http.request(method, path)
        assert response.status_code == status
        assert response.headers.get("allow") == allow
        if method == "HEAD":
            assert response.content == b""
        elif status >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_options_of_everything():
    async with running() as at:
        answer = await at.say(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert statuses(answer) == [204]
        assert b"content-length" not in answer


async def test_a_head_answer_keeps_the_connection_in_step():
    async with running() as at:
        answer = await at.say(b"HEAD /health/live HTTP/1.1\r\nHost: x\r\n\r\n" + LAST)
        assert statuses(answer) == [200, 200]


async def slow_reader(at: Running) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", at.port))
    await asyncio.get_running_loop().sock_sendall(sock, post(json.dumps(PROMPT | {"stream": True}).encode()))
    return sock


async def test_a_slow_reader_holds_its_engine_back_and_loses_nothing():
    async with split(on_decode=hold) as pair:
        sock = await slow_reader(pair.at)
        turn = await pair.decode.turn()
        await turn.start_stream()
        event = b"data: " + b"x" * 65_000 + b"\n\n"
        written = await write_until_blocked(turn, event)
        assert written < 400, "the router took everything: 26 MB and no end"
        finished = asyncio.create_task(turn.end_stream())
        received = await receive_all(sock)
        await finished
        body = received.partition(b"\r\n\r\n")[2]
        assert body.count(b"data: ") == written
        assert body.count(b"x") == written * 65_000
        await pair.at.idle()


async def write_until_blocked(turn, event: bytes) -> int:
    """Send events until the router takes no more for a while; how many it will get."""
    for count in range(1, 400):
        writing = asyncio.create_task(turn.chunk(event))
        done, _ = await asyncio.wait((writing,), timeout=0.5)
        if not done:
            return count
    return 400


async def receive_all(sock: socket.socket) -> bytes:
    loop, received = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(LIMIT):
        while not received.endswith(b"0\r\n\r\n"):
            received += await loop.sock_recv(sock, 1 << 20)
    sock.close()
    return bytes(received)


async def test_a_slow_reader_that_leaves_frees_its_engines():
    async with split(on_decode=hold) as pair:
        sock = await slow_reader(pair.at)
        turn = await pair.decode.turn()
        await turn.start_stream()
        await write_until_blocked(turn, b"data: " + b"x" * 65_000 + b"\n\n")
        sock.close()
        await until(lambda: turn.writer.transport.is_closing() or turn.reader.at_eof(), "the decode to be left")
        await pair.at.idle()


async def test_a_slow_reader_that_half_closes_is_cut_in_the_end():
    async with split(on_decode=hold, limits=quick(idle_timeout=0.2)) as pair:
        sock = await slow_reader(pair.at)
        turn = await pair.decode.turn()
        await turn.start_stream()
        await write_until_blocked(turn, b"data: " + b"x" * 65_000 + b"\n\n")
        [client] = [client for client in pair.at.router.server.clients if client._work is not None]
        sock.shutdown(socket.SHUT_WR)
        await until(lambda: client not in pair.at.router.server.clients, "the connection to be closed")
        sock.close()
        await pair.at.idle()
