"""The prefill and the decode leg, in front of transfers that do what the test says."""

import asyncio
import json
from dataclasses import replace

import pytest
from aiohttp.test_utils import TestClient, TestServer
from server_client import parse_events

from engine.errors import RequestError, TransferError
from engine.scheduler.request import Token
from engine.server.app import make_app
from engine.server.state import Backend
from engine.transfer.base import Peer
from engine.transfer.sender import Delivered

TEXT = "/v1/completions"
INFO = {
    "prefill_ip": "10.0.0.1",
    "prefill_port": 8101,
    "decode_ip": "10.0.0.2",
    "decode_port": 8201,
    "decode_connector_port": 8202,
    "transfer_protocol": "ipc",
}
BODY = {"prompt": "abc", "request_id": "r", "disaggregate_info": INFO, "max_tokens": 5}


class FakeTransfer:
    """Both sides: it waits at the gate, then fails, or lets the core go on."""

    connected_decodes = ()

    def __init__(self, core):
        self._core = core
        self.gate = asyncio.Event()
        self.gate.set()
        self.error = None
        self.asked = asyncio.Queue()
        self.on_request = lambda request: None
        self.cancelled = asyncio.Event()

    async def deliver(self, request, peer):
        self.on_request(request)
        await self._pass(request, peer)
        return Delivered([7] * request.sampling.n, 0, 4096, 0.1)

    async def receive(self, request, prefill):
        self.on_request(request)
        await self._pass(request, prefill)
        self._core.submit(request)

    async def _pass(self, request, peer):
        self.asked.put_nowait((request.request_id, peer))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error:
            raise self.error


@pytest.fixture
async def transfer(core):
    return FakeTransfer(core)


@pytest.fixture
async def engine(state, core, tokenizer, transfer, request):
    """A client of an engine of the role that the test asks for."""
    role = request.param
    state.args = replace(state.args, role=role)
    sender, receiver = (transfer, None) if role == "prefill" else (None, transfer)
    state.ready(Backend(core, tokenizer, 128, tokenizer.vocab_size, sender, receiver))
    async with TestClient(TestServer(make_app(state))) as client:
        yield client


prefill = pytest.mark.parametrize("engine", ["prefill"], indirect=True)
decode = pytest.mark.parametrize("engine", ["decode"], indirect=True)
both = pytest.mark.parametrize("engine", ["prefill", "decode"], indirect=True)


async def ask(engine, **changes):
    async with engine.post(TEXT, json={**BODY, **changes}) as response:
        return response.status, await response.json()


async def soon(awaitable):
    async with asyncio.timeout(10):
        return await awaitable


@prefill
async def test_prefill_delivers_to_the_decode_engine_of_the_request(engine, transfer):
    status, body = await ask(engine, stream=True)
    assert status == 200
    assert (body["object"], body["id"]) == ("prefill", "r")
    assert body["usage"]["prompt_tokens"] == 3
    assert await transfer.asked.get() == ("r", Peer("10.0.0.2", 8202))


@decode
async def test_decode_waits_for_the_prefill_engine_of_the_request(engine, transfer):
    status, body = await ask(engine)
    assert status == 200
    assert body["choices"][0]["text"] == "Hello"
    assert await transfer.asked.get() == ("r", "10.0.0.1:8101")


@both
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_transfer_has_its_true_status(engine, transfer, core, stream):
    transfer.error = TransferError("10.0.0.9 is gone")
    status, body = await ask(engine, stream=stream)
    assert status == 502
    assert body["error"] == {
        "message": "10.0.0.9 is gone",
        "type": "server_error",
        "param": None,
        "code": "kv_transfer_failed",
    }
    assert core.aborted == []


@both
async def test_a_client_that_leaves_cancels_the_transfer(engine, transfer, state):
    transfer.gate.clear()
    asking = asyncio.create_task(ask(engine))
    await soon(transfer.asked.get())
    asking.cancel()
    await soon(transfer.cancelled.wait())
    await soon(state.idle.wait())


@prefill
async def test_an_abort_cancels_the_delivery(engine, transfer, state):
    transfer.gate.clear()
    asking = asyncio.create_task(ask(engine))
    await soon(transfer.asked.get())
    assert state.streams.fail(["r"], RequestError("the request was aborted", status=499)) == ["r"]
    status, body = await soon(asking)
    assert (status, body["error"]["message"]) == (499, "the request was aborted")
    assert transfer.cancelled.is_set()


@decode
async def test_an_abort_cancels_the_wait_for_kv(engine, transfer, state):
    transfer.gate.clear()
    asking = asyncio.create_task(ask(engine))
    await soon(transfer.asked.get())
    state.streams.fail(["r"], RequestError("the request was aborted", status=499))
    status, _ = await soon(asking)
    assert status == 499
    assert transfer.cancelled.is_set()


@both
async def test_without_the_router_nothing_is_computed(engine, transfer):
    status, body = await ask(engine, disaggregate_info=None)
    assert (status, body["error"]["code"]) == (400, "not_through_router")
    assert transfer.asked.empty()


@decode
async def test_a_client_that_leaves_as_decoding_starts_aborts_it(engine, transfer, core, state):
    core.pause_after = 0
    loop, receive = asyncio.get_running_loop(), transfer.receive

    async def receive_and_leave(request, prefill):
        await receive(request, prefill)
        loop.call_soon(asking.cancel)

    transfer.receive = receive_and_leave
    asking = asyncio.create_task(ask(engine))
    await soon(asyncio.to_thread(core.abort_seen.wait, 10))
    assert core.aborted == ["r"]
    await soon(state.idle.wait())


@decode
async def test_tokens_of_an_aborted_request_of_the_same_id_are_not_shown(engine, transfer, state):
    transfer.gate.clear()
    asking = asyncio.create_task(ask(engine))
    await soon(transfer.asked.get())
    state.streams.on_tokens([Token("r", 0, 65, None)])  # the core had not seen the abort yet
    await asyncio.sleep(0)
    transfer.gate.set()
    _, body = await soon(asking)
    assert body["choices"][0]["text"] == "Hello"


@decode
async def test_decode_computes_a_prompt_itself_where_told(engine, transfer, core):
    status, body = await ask(engine, disaggregate_info=None, prefill_on_decode=True)
    assert status == 200
    assert body["choices"][0]["text"] == "Hello"
    assert [request.request_id.partition("/")[0] for request in core.requests] == ["r"]
    assert transfer.asked.empty()


@both
async def test_prefill_on_decode_and_a_prefill_engine_exclude_each_other(engine, transfer, core):
    status, body = await ask(engine, prefill_on_decode=True)
    assert (status, body["error"]["param"]) == (400, "prefill_on_decode")
    assert transfer.asked.empty()
    assert core.requests == []


@prefill
async def test_prefill_computes_no_prompt_for_nobody(engine, transfer):
    status, body = await ask(engine, disaggregate_info=None, prefill_on_decode=True)
    assert (status, body["error"]["param"]) == (400, "prefill_on_decode")
    assert transfer.asked.empty()


@both
async def test_what_has_ended_and_is_resumed_needs_no_transfer(engine, transfer, core):
    fields = {"stream": True, "resume": {"id": "first", "created": 1, "token_ids": [1] * 5}}
    async with engine.post(TEXT, json={**BODY, **fields}) as response:
        assert response.status == 200
        text = await response.text()
    if response.content_type == "application/json":
        assert json.loads(text)["usage"]["completion_tokens"] == 5
    else:
        [(_, last), (_, done)] = parse_events(text)
        assert (last["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
    assert transfer.asked.empty()
    assert core.requests == []


@both
async def test_what_is_resumed_is_delivered_and_received_with_the_prompt(engine, transfer, core):
    prompts = []
    transfer.on_request = lambda request: prompts.append(request.prompt)
    fields = {"stream": True, "resume": {"id": "first", "created": 1, "token_ids": [1, 2]}}
    async with engine.post(TEXT, json={**BODY, **fields}) as response:
        assert response.status == 200
        await response.text()
    [prompt] = prompts
    assert prompt[3:] == [1, 2]
