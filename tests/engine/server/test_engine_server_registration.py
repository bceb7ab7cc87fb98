import asyncio
import logging
from dataclasses import replace

import pytest
from aiohttp import web

from engine.server import registration
from engine.server.process import _instance
from engine.server.registration import Registration
from engine.server.sockets import bind, port_of, serving
from engine.server.state import Backend
from engine.transfer.base import Peer


class FakeRouter:
    def __init__(self):
        self.received = asyncio.Queue()
        self.answer = (200, {"status": "success"})

    async def register(self, request):
        self.received.put_nowait((request.headers.get("Authorization"), await request.json()))
        status, body = self.answer
        return web.json_response(body, status=status)

    def app(self):
        app = web.Application()
        app.add_routes([web.post("/register", self.register)])
        return app

    async def next(self):
        async with asyncio.timeout(10):
            return await self.received.get()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(registration, "INTERVAL_S", 0.02)


@pytest.fixture
async def router():
    return FakeRouter()


async def test_registers_again_and_again_with_the_token(router, caplog):
    caplog.set_level(logging.INFO)
    sock = bind("127.0.0.1", 0, "--port")
    async with serving(router.app(), sock):
        beat = Registration(f"127.0.0.1:{port_of(sock)}", "s3cret", lambda: {"role": "mixed", "port": 7})
        beat.start()
        for _ in range(3):
            assert await router.next() == ("Bearer s3cret", {"role": "mixed", "port": 7})
        await beat.stop()
    assert [record.levelname for record in caplog.records if "router" in record.message] == ["INFO"]


async def test_prefill_is_told_of_the_decode_engines_at_each_beat(router, caplog):
    told = asyncio.Queue()
    sock = bind("127.0.0.1", 0, "--port")
    async with serving(router.app(), sock):
        beat = Registration(f"127.0.0.1:{port_of(sock)}", None, dict, told.put_nowait)
        router.answer = (200, {"status": "success", "decodes": [{"host_ip": "10.0.0.2", "connector_port": 9}]})
        beat.start()
        async with asyncio.timeout(10):
            assert await told.get() == await told.get() == [Peer("10.0.0.2", 9)]
            router.answer = (200, {"status": "success"})
            while await told.get():
                pass
        router.answer = (200, {"decodes": "many"})
        await seen(caplog, "its answer is not understood")
        await beat.stop()


async def test_a_router_that_comes_back_is_told_again(router, caplog):
    caplog.set_level(logging.INFO)
    sock = bind("127.0.0.1", 0, "--port")
    port = port_of(sock)
    beat = Registration(f"127.0.0.1:{port}", None, dict)
    async with serving(router.app(), sock):
        beat.start()
        assert await router.next() == (None, {})
    await seen(caplog, "not reached")
    while not router.received.empty():
        router.received.get_nowait()
    async with serving(router.app(), bind("127.0.0.1", port, "--port")):
        await router.next()
        await router.next()  # the first one's outcome has been noted
        await beat.stop()
    assert [record.levelname for record in caplog.records if "/register" in record.message] == [
        "INFO",
        "WARNING",
        "INFO",
    ]


async def test_a_refusal_is_logged_with_its_reason_and_tried_again(router, caplog):
    router.answer = (400, {"detail": "this router wants prefill and decode"})
    sock = bind("127.0.0.1", 0, "--port")
    async with serving(router.app(), sock):
        beat = Registration(f"127.0.0.1:{port_of(sock)}", None, dict)
        beat.start()
        for _ in range(3):
            await router.next()
        await beat.stop()
    refusals = [record.message for record in caplog.records if "refused" in record.message]
    assert len(refusals) == 1
    assert "this router wants prefill and decode" in refusals[0]


async def test_the_last_word_is_the_state_at_the_end(router):
    paused = False
    sock = bind("127.0.0.1", 0, "--port")
    async with serving(router.app(), sock):
        beat = Registration(f"127.0.0.1:{port_of(sock)}", None, lambda: {"is_paused": paused})
        beat.start()
        await router.next()
        paused = True
        await beat.stop()
        last = None
        while not router.received.empty():
            last = router.received.get_nowait()
    assert last == (None, {"is_paused": True})


async def seen(caplog, text):
    """Wait until a log line says so."""
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Watcher(logging.Handler):
        def emit(self, record):
            if text in record.getMessage():
                loop.call_soon(arrived.set)

    watcher = Watcher()
    logging.getLogger().addHandler(watcher)
    try:
        async with asyncio.timeout(10):
            if text not in caplog.text:
                await arrived.wait()
    finally:
        logging.getLogger().removeHandler(watcher)


@pytest.mark.parametrize(("role", "prefills"), [("prefill", False), ("decode", True), ("mixed", False)])
async def test_tells_which_protocol_it_speaks_and_whether_it_prefills_on_decode(state, role, prefills):
    state.args = replace(state.args, role=role)
    told = _instance(state, Backend(None, None, 128, 257), {"api": 1, "metrics": 2})
    assert (told["protocol"], told["prefill_on_decode"]) == ("builtin", prefills)
