"""Requests that do not end as they should: errors, aborts, clients that leave, an engine that cannot serve."""

import asyncio

import pytest
from server_client import CHAT, HI, ask, parse_events, until

from engine.errors import RequestError
from engine.server.state import STEP_LIMIT_S, Phase


async def test_the_cores_refusal_reaches_the_client(client, core):
    core.refusal = RequestError("too big for this engine", status=400, code="context_length_exceeded")
    status, body = await ask(client, CHAT, messages=HI)
    assert status == 400
    assert body["error"]["message"] == "too big for this engine"


async def test_an_unforeseen_error_is_a_500_that_says_nothing_of_the_inside(client, core, caplog):
    core.refusal = KeyError("inside")
    status, body = await ask(client, CHAT, messages=HI)
    assert status == 500
    assert body["error"]["type"] == "server_error"
    assert "inside" not in body["error"]["message"]
    assert "KeyError" in caplog.text


async def test_a_client_that_leaves_a_stream_aborts_its_request(client, core, state):
    core.pause_after = 3
    response = await client.post(CHAT, json={"messages": HI, "stream": True, "request_id": "gone"})
    await response.content.readany()
    response.close()
    await until(core.abort_seen)
    assert core.aborted_requests == ["gone"]
    async with asyncio.timeout(10):
        await state.idle.wait()


async def test_a_client_that_leaves_while_it_waits_aborts_its_request(client, core):
    core.pause_after = 3
    waiting = asyncio.create_task(client.post(CHAT, json={"messages": HI, "request_id": "gone"}))
    await until(core.submitted)
    waiting.cancel()
    await until(core.abort_seen)
    assert core.aborted_requests == ["gone"]


async def test_an_error_after_the_first_token_comes_as_an_event(client, core, state):
    core.pause_after = 3
    response = await client.post(CHAT, json={"messages": HI, "stream": True, "request_id": "r"})
    head = await response.content.readany()
    state.streams.fail(["r"], RequestError("the engine failed", status=500))
    stream = parse_events((head + await response.content.read()).decode())
    name, data = stream[-1]
    assert name == "error"
    assert data["error"]["message"] == "the engine failed"
    await until(core.abort_seen)


async def test_an_error_before_the_first_token_has_its_true_status(client, core, state):
    core.pause_after = 0
    asking = asyncio.create_task(ask(client, CHAT, messages=HI, stream=True, request_id="r"))
    await until(core.submitted)
    state.streams.fail(None, RequestError("the engine failed", status=500))
    status, body = await asking
    assert (status, body["error"]["type"]) == (500, "server_error")


async def test_one_id_cannot_be_served_twice_at_once(client, core):
    core.pause_after = 1
    first = await client.post(CHAT, json={"messages": HI, "stream": True, "request_id": "same"})
    status, body = await ask(client, CHAT, messages=HI, request_id="same")
    assert (status, body["error"]["code"]) == (409, "duplicate_request")
    core.resume()
    assert (await first.text()).endswith("data: [DONE]\n\n")
    assert core.aborted == []


async def test_abort_requests_needs_the_token_and_ends_what_it_names(client, core):
    core.pause_after = 1
    streams = [
        await client.post(CHAT, json={"messages": HI, "stream": True, "request_id": name}) for name in ("a", "b", "c")
    ]
    async with client.post("/v1/abort_requests", json={"abort_all": True}) as response:
        assert response.status == 401
    assert core.aborted == []
    headers = {"Authorization": "Bearer s3cret"}
    async with client.post("/v1/abort_requests", json={"req_ids": ["a", "zz"]}, headers=headers) as response:
        assert await response.json() == {"aborted": ["a"]}
    assert parse_events(await streams[0].text())[-1][1]["error"]["code"] == "request_aborted"
    async with client.post("/v1/abort_requests", json={"abort_all": True}, headers=headers) as response:
        assert sorted((await response.json())["aborted"]) == ["b", "c"]
    for stream in streams[1:]:
        assert parse_events(await stream.text())[-1][0] == "error"
    assert sorted(core.aborted_requests) == ["a", "b", "c"]


async def test_models_version_health_ping(client):
    async with client.get("/v1/models") as response:
        [card] = (await response.json())["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("chat", "model", 128)
    async with client.get("/v1/models/chat") as response:
        assert (await response.json())["id"] == "chat"
    async with client.get("/v1/models/other") as response:
        assert response.status == 404
    for path in ("/health", "/ping", "/version"):
        async with client.get(path) as response:
            assert response.status == 200


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.DRAINING, Phase.FAILED])
async def test_while_it_cannot_serve_it_says_so(client, state, phase):
    state.phase = phase
    for path in ("/health", "/ping"):
        async with client.get(path) as response:
            assert response.status == 503
            assert phase in (await response.json())["error"]["message"]
    async with client.post(CHAT, json={"messages": HI}) as response:
        assert response.status == 503
        assert "Retry-After" in response.headers
    async with client.get("/metrics") as response:
        assert response.status == 200


async def test_a_step_that_does_not_end_is_no_health(client, core):
    core.busy_s = STEP_LIMIT_S + 1
    async with client.get("/health") as response:
        assert response.status == 503
        assert "hangs" in (await response.json())["error"]["message"]


async def test_requests_over_the_limit_are_refused(client, core, monkeypatch):
    monkeypatch.setattr("engine.server.state.MAX_REQUESTS", 1)
    core.pause_after = 1
    first = await client.post(CHAT, json={"messages": HI, "stream": True})
    status, body = await ask(client, CHAT, messages=HI)
    assert (status, body["error"]["code"]) == (503, "overloaded")
    core.resume()
    await first.read()
    assert (await ask(client, CHAT, messages=HI))[0] == 200


async def test_a_token_that_does_not_come_ends_the_wait(client, core, monkeypatch):
    monkeypatch.setattr("engine.server.streams.TOKEN_TIMEOUT_S", 0.05)
    core.pause_after = 0
    status, body = await ask(client, CHAT, messages=HI, request_id="slow")
    assert (status, body["error"]["code"]) == (504, "timeout")
    assert core.aborted_requests == ["slow"]
