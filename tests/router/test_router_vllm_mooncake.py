"""vLLM with Mooncake: the prefill's engine id comes from its bootstrap server, and is another one after a restart."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from router_mocks import (
    ANSWER,
    PROMPT,
    MockEngine,
    Running,
    Turn,
    answer_at_once,
    drop,
    engine,
    hold,
    message,
    quick,
    running,
    until,
)
from router_protocol_mocks import OnRequest, ask

PROTOCOL = "vllm-mooncake"


@dataclass
class Mooncake:
    at: Running
    prefill: MockEngine
    decode: MockEngine
    bootstrap: MockEngine
    engine_id: list[str] = field(default_factory=lambda: ["one"])  # what the bootstrap server says

    async def asked(self) -> tuple[str, str]:
        """The engine id and the transfer's id that the next decode leg names."""
        params = (await self.decode.turn()).json["kv_transfer_params"]
        assert params["remote_bootstrap_addr"] == self.bootstrap.url
        return params["remote_engine_id"], params["transfer_id"]


@asynccontextmanager
async def mooncake(
    on_prefill: OnRequest = answer_at_once, on_decode: OnRequest = answer_at_once, **limits: Any
) -> AsyncIterator[Mooncake]:
    engine_id = ["one"]

    async def query(turn: Turn) -> None:
        assert (turn.method, turn.target) == ("GET", "/query")
        await turn.answer({"0": {"engine_id": engine_id[0], "worker_addr": {"0": "tcp://x"}}})

    async with (
        engine(on_prefill) as prefill,
        engine(on_decode) as decode,
        engine(query) as bootstrap,
        running(splitwise=True, limits=quick(**limits)) as at,
    ):
        await at.admit("prefill", prefill, protocol=PROTOCOL, bootstrap_port=bootstrap.port)
        await at.admit("decode", decode, protocol=PROTOCOL)
        yield Mooncake(at, prefill, decode, bootstrap, engine_id)


async def test_both_legs_begin_at_once_and_name_the_same_transfer():
    async with mooncake(on_prefill=hold, on_decode=hold) as m:
        request = asyncio.create_task(m.at.post(PROMPT | {"n": 1}, headers={"X-Request-Id": "mine"}))
        prefill, decode = await m.prefill.turn(), await m.decode.turn()
        assert prefill.json["kv_transfer_params"]["transfer_id"] == "xfer-mine"
        assert (prefill.json["n"], prefill.json["max_tokens"], decode.json["n"]) == (1, 1, 1)
        params = decode.json["kv_transfer_params"]
        assert (params["remote_engine_id"], params["transfer_id"]) == ("one", "xfer-mine")
        await prefill.answer({"choices": []})
        await decode.answer(ANSWER)
        response = await request
        assert (response.status_code, response.json()) == (200, ANSWER)
        await m.at.idle()


async def test_each_attempt_is_a_transfer_of_its_own():
    async with mooncake(on_decode=drop) as m, engine() as other:
        await m.at.admit("decode", other, protocol=PROTOCOL)
        response = await m.at.post(headers={"X-Request-Id": "mine"})
        assert response.status_code == 200
        params = (await other.turn()).json["kv_transfer_params"]
        assert params["transfer_id"] == "xfer-mine-retry1"


async def test_the_engine_id_is_learnt_again_after_a_restart():
    async with mooncake() as m:
        assert (await m.at.post()).status_code == 200
        assert (await m.asked())[0] == "one"
        await m.prefill.stop()
        await until(lambda: not m.at.router.registry.instances[m.prefill.key].pool.open, "the end to be noticed")
        assert (await m.at.post()).status_code in (502, 503)
        m.engine_id[0] = "two"
        await m.prefill.start()
        await until(lambda: m.at.router.registry.live("prefill"), "the prefill to be found healthy")
        while not m.decode.turns.empty():
            m.decode.turns.get_nowait()
        assert (await m.at.post()).status_code == 200
        assert (await m.asked())[0] == "two"


async def test_a_restart_that_no_request_notices_is_noticed_by_a_probe():
    async with mooncake(probe_interval=0.02) as m:
        m.engine_id[0] = "two"
        instance = m.at.router.registry.instances[m.prefill.key]
        await until(lambda: instance.engine_id == "two", "the new engine id")
        assert (await m.at.post()).status_code == 200
        assert (await m.asked())[0] == "two"


@pytest.mark.parametrize("answer", [{}, {"1": {"engine_id": "x"}}, {"0": {}}, b"no JSON", {"0": {"engine_id": None}}])
async def test_a_bootstrap_server_that_names_no_engine_is_a_reason_to_refuse(answer: object):
    async def query(turn: Turn) -> None:
        await turn.answer(answer)

    async with engine() as prefill, engine(query) as bootstrap, running(splitwise=True) as at:
        response = await at.register("prefill", prefill, protocol=PROTOCOL, bootstrap_port=bootstrap.port)
        assert response.status_code == 400
        assert f"its bootstrap server at {bootstrap.url} names no engine id" in response.json()["detail"]


async def test_a_bootstrap_server_that_fails_is_a_reason_to_refuse():
    async with engine() as prefill, engine() as bootstrap, running(splitwise=True) as at:
        await bootstrap.stop()
        response = await at.register("prefill", prefill, protocol=PROTOCOL, bootstrap_port=bootstrap.port)
        assert response.status_code == 400
        assert bootstrap.url in response.json()["detail"]


async def test_a_prefill_without_a_bootstrap_port_fits_no_decode():
    async with engine() as prefill, engine() as decode, running(splitwise=True) as at:
        await at.admit("prefill", prefill, protocol=PROTOCOL)
        await at.admit("decode", decode, protocol=PROTOCOL)
        response = await at.post()
        assert response.status_code == 400
        assert f"prefill instance {prefill.url} has registered no bootstrap_port" in message(response)


async def test_a_prefill_that_fails_ends_the_decode_which_nobody_else_would_tell():
    async def refuse(turn: Turn) -> None:
        await turn.answer({"error": {"message": "too long"}}, 400)

    async with mooncake(on_prefill=refuse, on_decode=hold) as m:
        response = await m.at.post()
        assert response.status_code == 400
        await (await m.decode.turn()).peer_left()
        await m.at.idle()


async def test_a_client_that_leaves_ends_both_legs():
    async with mooncake(on_prefill=hold, on_decode=hold) as m:
        client = await ask(m.at)
        turns = [await m.prefill.turn(), await m.decode.turn()]
        client.leave()
        for turn in turns:
            await turn.peer_left()
        await m.at.idle()
