"""A client that does not read its stream is cut off, wherever that happens, and nothing of it stays."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager

import pytest
from server_client import TEXT

from engine.server import streaming
from engine.server.app import make_app
from engine.server.sockets import bind, port_of, serving

END = b"\r\n0\r\n\r\n"


@asynccontextmanager
async def asked(state):
    """A raw connection with small buffers that has asked for a stream, and its server."""
    data = json.dumps({"prompt": "hi", "stream": True}).encode()
    listener = bind("127.0.0.1", 0, "--port")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of the connections too
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        async with serving(make_app(state), listener):
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", port_of(listener)))
            await loop.sock_sendall(sock, b"POST %b HTTP/1.1\r\nHost: x\r\n" % TEXT.encode())
            await loop.sock_sendall(sock, b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
            yield sock


async def cut_off(sock):
    """Whether the connection ends without the end of the answer."""
    received = b""
    try:
        while data := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1 << 20), 10):
            received += data
            if received.endswith(END):
                return False
    except ConnectionResetError:
        pass
    return True


async def served(core, state):
    assert await asyncio.to_thread(core.submitted.wait, 10)
    await asyncio.wait_for(state.idle.wait(), 10)


@pytest.fixture
def sizes(monkeypatch):
    """How many bytes a stream opens and closes with; and the time that a client has for them is short."""

    def sizes(opening, closing):
        monkeypatch.setattr(streaming._Events, "opening", lambda events: b"x" * opening)
        monkeypatch.setattr(streaming._Events, "closing", lambda events: b"x" * closing)

    monkeypatch.setattr(streaming, "_WRITE_TIMEOUT_S", 0.1)
    return sizes


# Above 64 KiB in all, a write waits for the client; the connection itself waits once 64 KiB are left in memory.
# So in the second case what is written last does not wait, but the end of the response does.
@pytest.mark.parametrize(("opening", "closing"), [(200_000, 10), (66_000, 40_000)])
async def test_a_client_that_does_not_read_is_cut_off(client, core, state, sizes, opening, closing):
    sizes(opening, closing)
    async with asked(state) as sock:
        await served(core, state)
        assert await cut_off(sock)


async def test_a_client_that_reads_nothing_is_not_told_of_an_error_either(client, core, state, sizes, monkeypatch):
    def fail(events):
        raise ValueError("for a test")

    sizes(10, 10)
    monkeypatch.setattr(streaming, "error_body", lambda error: b"x" * 200_000)
    monkeypatch.setattr(streaming._Events, "closing", fail)
    async with asked(state) as sock:
        await served(core, state)
        assert await cut_off(sock)


async def test_a_client_that_reads_gets_all(client, core, state, sizes):
    sizes(200_000, 40_000)
    async with asked(state) as sock:
        assert not await cut_off(sock)
        await served(core, state)
