"""Engines that fail in every way, clients that leave at any moment, operators at work: nothing is left behind."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from router_mocks import CHAT, PROMPT, MockEngine, Running, Turn, engine, quick, running, until
from router_protocol_mocks import DONE, STREAM, failed_event, send_events, token_event

from pdctl.router.engines.breaker import State
from pdctl.router.engines.instance import Instance
from pdctl.router.requests.legs import Leg

LIMITS = quick(
    breaker_failures=2,
    breaker_open=0.05,
    resume_wait=0.1,
    probe_interval=0.05,
    probe_timeout=0.5,
    prefill_linger=0.2,
)
CLIENTS, REQUESTS = 16, 15


async def misbehave(turn: Turn) -> None:
    match random.randrange(14):
        case 0:
            turn.drop()
        case 1:
            await turn.answer({"error": {"message": "x"}}, random.choice([400, 429, 500, 503]))
        case 2:
            await turn.send(b"garbage\r\n\r\n")
        case 3:
            await turn.start_stream()
            await turn.event({"x": 1})
            turn.drop()
        case 4:
            await send_events(turn, token_event("a", 1), failed_event("server_error"))
        case 5:
            await turn.send(b"HTTP/1.1 500 X\r\ncontent-length: 10\r\n\r\nabc")
            turn.drop()
        case 6:
            await send_events(turn)
        case _ if turn.json.get("stream"):
            await send_events(turn, token_event("a", 1), DONE)
        case _:
            await turn.answer({"kv_transfer_params": {"a": 1}})


@asynccontextmanager
async def engines(count: int) -> AsyncIterator[list[MockEngine]]:
    if count == 0:
        yield []
        return
    async with engine(misbehave) as one, engines(count - 1) as others:
        yield [one, *others]


async def be_a_client(at: Running) -> None:
    for _ in range(REQUESTS):
        reader, writer = await at.connect()
        body = json.dumps(random.choice([STREAM, STREAM, PROMPT])).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        try:
            async with asyncio.timeout(random.choice([0.002, 0.01, 0.03, 5.0])):
                await reader.read()
        except (TimeoutError, ConnectionError):
            pass  # it leaves
        writer.transport.abort()


async def operate(at: Running, roles: dict[str, MockEngine], protocol: str, seen: set[Instance]) -> None:
    registry = at.router.registry
    for _ in range(30):
        role = random.choice([*roles])
        mock = roles[role]
        instance = registry.instances.get(mock.key)
        seen |= {instance} if instance is not None else set()
        match random.randrange(5):
            case 0:
                await at.http.delete(f"/instances/{mock.key}")
                registry._removed.clear()  # it may come back at once
                await at.register(role.split()[0], mock, protocol=protocol)
            case 1:
                await at.http.post(f"/instances/{mock.key}/drain")
                await at.http.post(f"/instances/{mock.key}/undrain")
            case 2:
                at.router.abort([])
            case 3 if instance is not None and registry.instances.get(mock.key) is instance:
                registry.give_up(instance, "an operator says so")
            case _:
                await at.http.get("/instances")


@pytest.mark.parametrize("protocol", ["builtin", "fastdeploy", "sglang", "vllm-nixl"])
async def test_nothing_is_left_behind(protocol: str):
    random.seed(protocol)
    settings = {"splitwise": True, "engine_requests": 4, "queue_size": 10, "queue_timeout": 0.1, "limits": LIMITS}
    async with engines(4) as mocks, running(**settings) as at:
        roles = dict(zip(("prefill 1", "prefill 2", "decode 1", "decode 2"), mocks, strict=True))
        for role, mock in roles.items():
            await at.admit(role.split()[0], mock, protocol=protocol)
        seen = {*at.router.registry.instances.values()}
        await asyncio.gather(*(be_a_client(at) for _ in range(CLIENTS)), operate(at, roles, protocol, seen))
        await at.idle()
        assert sum(at.metrics.requests.values()) == CLIENTS * REQUESTS
        assert at.router.admission.depths == {}
        for instance in {*seen, *at.router.registry.instances.values()}:
            assert (instance.load.requests, instance.load.tokens) == (0, 0)
            assert not (instance.breaker.state is State.HALF_OPEN and instance.breaker.on_trial and instance.live)
            connections = instance.pool.open
            await until(lambda c=connections: not any(isinstance(x.call, Leg) for x in c), "no leg on a connection")
            await until(lambda c=connections: all(x.usable for x in c), "closed connections to be forgotten")
