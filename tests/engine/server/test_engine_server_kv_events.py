"""GET /kv_events with a fake core: who may listen, what comes when, and how it ends."""

import asyncio
import json
import socket
from contextlib import contextmanager, suppress

import pytest

from engine.scheduler.held_text import HeldText
from engine.server import kv_events
from engine.server.app import make_app
from engine.server.process import _instance
from engine.server.sockets import bind, port_of, serving
from engine.server.state import Backend, Phase

HEADERS = {"Authorization": "Bearer s3cret"}
KEYS = [bytes([i]) * 8 for i in range(4)]
NAMES = [key.hex() for key in KEYS]


@pytest.fixture
def held(core):
    core.held_text = HeldText()
    return core.held_text


@pytest.fixture
async def subscribe(client, held):
    def subscribe(**options):
        return client.get("/kv_events", headers=HEADERS, **options)

    return subscribe


async def line(response):
    async with asyncio.timeout(10):
        data = await response.content.readline()
    assert data.endswith(b"\n")
    return json.loads(data)


async def change(response):
    """Return the next line that is more than a sign of life."""
    while True:
        got = await line(response)
        assert got["reset"] is False
        if got["stored"] or got["removed"]:
            return sorted(got["stored"]), sorted(got["removed"])


async def rest(response):
    async with asyncio.timeout(10):
        return await response.content.read()


async def test_first_all_that_is_held_then_what_changes(subscribe, held):
    for key in KEYS[:3]:
        held.add(b"one", key)
    async with subscribe() as response:
        assert response.status == 200
        assert response.content_type == "application/x-ndjson"
        assert await line(response) == {"reset": True, "stored": NAMES[:3], "removed": [], "chunk_bytes": 256}
        await asyncio.to_thread(held.add, b"two", KEYS[3])  # from another thread, as the core does
        assert await change(response) == ([NAMES[3]], [])
        await asyncio.to_thread(held.drop, b"one")
        assert await change(response) == ([], NAMES[:3])


async def test_nothing_is_held_at_first(subscribe):
    async with subscribe() as response:
        assert await line(response) == {"reset": True, "stored": [], "removed": [], "chunk_bytes": 256}


async def test_a_line_comes_even_when_nothing_changes(subscribe, monkeypatch):
    assert kv_events.LIFE_SIGN_S + kv_events.PAUSE_S < 5
    monkeypatch.setattr(kv_events, "LIFE_SIGN_S", 0.01)
    async with subscribe() as response:
        assert (await line(response))["reset"]
        for _ in range(2):
            assert await line(response) == {"reset": False, "stored": [], "removed": []}


async def test_after_a_change_it_waits_for_the_next(subscribe, held, state):
    async with subscribe() as response:
        assert (await line(response))["reset"]
        held.add(b"one", KEYS[0])
        assert await change(response) == ([NAMES[0]], [])
        [wake] = state.kv_events._wakes
        assert not wake.is_set()


async def test_all_listeners_are_told(subscribe, held):
    async with subscribe() as one, subscribe() as other:
        assert (await line(one))["reset"]
        assert (await line(other))["reset"]
        held.add(b"one", KEYS[0])
        assert await change(one) == await change(other) == ([NAMES[0]], [])


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_the_token_is_needed(client, held, headers):
    async with client.get("/kv_events", headers=headers) as response:
        assert response.status == 401
        assert (await response.json())["error"]["code"] == "invalid_token"


async def test_an_engine_that_is_not_ready_has_nothing_to_tell(subscribe, state):
    state.phase = Phase.DRAINING
    async with subscribe() as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "not_ready"


async def test_only_so_many_may_listen(subscribe, monkeypatch):
    monkeypatch.setattr(kv_events, "MAX_STREAMS", 1)
    async with subscribe() as response:
        assert (await line(response))["reset"]
        async with subscribe() as other:
            assert other.status == 503
            assert (await other.json())["error"]["code"] == "overloaded"


async def test_the_stream_ends_with_the_engine(subscribe, state):
    async with subscribe() as response:
        assert (await line(response))["reset"]
        state.kv_events.end()
        lines = (await rest(response)).splitlines()
        assert [json.loads(data)["stored"] for data in lines] == [[]]


async def test_head_is_not_an_endless_stream(client):
    async with client.head("/kv_events", headers=HEADERS) as response:
        assert response.status == 405


class Watched(HeldText):
    """Knows when a watcher has left."""

    def __init__(self):
        super().__init__()
        self.left = asyncio.Event()

    @contextmanager
    def watch(self, notify):
        try:
            with super().watch(notify) as watch:
                yield watch
        finally:
            self.left.set()


@pytest.fixture
async def connection(client, core, state):
    """A held text, and a raw connection to the server that has just asked for the events."""
    core.held_text = Watched()
    listener = bind("127.0.0.1", 0, "--port")
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        async with serving(make_app(state), listener):
            await loop.sock_connect(sock, ("127.0.0.1", port_of(listener)))
            yield core.held_text, sock


ASK = b"GET /kv_events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\n\r\n"


async def test_a_reader_that_leaves_is_forgotten(connection, state):
    held, sock = connection
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, ASK)
    await loop.sock_recv(sock, 1)
    assert not held.left.is_set()
    sock.close()
    await asyncio.wait_for(held.left.wait(), 10)


async def test_a_reader_that_does_not_read_is_dropped(connection, monkeypatch):
    monkeypatch.setattr(kv_events, "WRITE_TIMEOUT_S", 0.1)
    held, sock = connection
    for number in range(300_000):  # more than the sockets take
        held.add(number.to_bytes(8), number.to_bytes(8))
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, ASK)
    await asyncio.wait_for(held.left.wait(), 10)
    received = b""
    with suppress(ConnectionResetError):
        while data := await asyncio.wait_for(loop.sock_recv(sock, 1 << 20), 10):
            received += data
    assert b'"reset":true' in received
    assert not received.endswith(b"\r\n0\r\n\r\n")  # cut off, and not ended


async def test_the_router_is_told_that_there_are_events(client, core, state, tokenizer):
    backend = Backend(core, tokenizer, 128, tokenizer.vocab_size)
    assert _instance(state, backend, {"api": 1, "metrics": 2})["kv_events"] is True
