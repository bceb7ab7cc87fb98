"""Engines that register, but cannot show the deployment's token."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from router_mocks import LIMIT, PROMPT, MockEngine, Running, engine, running

from pdctl.errors import PdctlError
from pdctl.router.access import origin
from pdctl.router.arguments import parse

TOKEN = {"Authorization": "Bearer secret"}


async def register(at: Running, mock: MockEngine, **fields: object) -> httpx.Response:
    """As an engine that does not know the token does."""
    payload = {"role": "mixed", "host_ip": "127.0.0.1", "port": mock.port, **fields}
    return await at.http.post("/register", json=payload)


@asynccontextmanager
async def admitting(*mocks: MockEngine, role: str = "mixed") -> AsyncIterator[Running]:
    async with running(token="secret", splitwise=role != "mixed", admitted={mock.key: role for mock in mocks}) as at:
        yield at


@asynccontextmanager
async def from_elsewhere(at: Running, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """A client at another address, as if that were another machine's."""
    monkeypatch.setattr(origin, "is_own", lambda ip: False)
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2", verify=False)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{at.port}", timeout=LIMIT, transport=transport) as http:
        yield http


async def test_an_admitted_engine_registers_and_serves():
    async with engine() as one, admitting(one) as at:
        assert (await register(at, one)).status_code == 200
        assert (await at.post()).status_code == 200


async def test_others_still_need_the_token():
    async with engine() as one, engine() as two, admitting(one) as at:
        response = await register(at, two)
        assert response.status_code == 401
        assert response.json() == {"detail": f"the registration of {two.key} needs the deployment's token"}
        assert (await at.register("mixed", two)).status_code == 200


async def test_being_admitted_is_no_token_for_anything_else():
    async with engine() as one, admitting(one) as at:
        await register(at, one)
        assert (await at.http.delete(f"/instances/{one.key}")).status_code == 401


# What others could do with it.


@pytest.mark.parametrize("fields", [{"is_paused": True}, {"connector_port": 1}, {"rdma_ports": [1]}, {}], ids=str)
async def test_nobody_else_can_register_an_admitted_engine(fields: dict[str, object], monkeypatch: pytest.MonkeyPatch):
    async with engine() as one, admitting(one) as at, from_elsewhere(at, monkeypatch) as http:
        await register(at, one)
        before = at.router.registry.instances[one.key].registration
        payload = {"role": "mixed", "host_ip": "127.0.0.1", "port": one.port, **fields}
        response = await http.post("/register", json=payload)
        assert response.status_code == 401
        assert "comes from 127.0.0.2: without the deployment's token it has to come from 127.0.0.1" in response.text
        assert at.router.registry.instances[one.key].registration is before
        assert (await at.post()).status_code == 200
        assert (await http.post("/register", json=payload, headers=TOKEN)).status_code == 200


async def test_the_engine_itself_can_say_that_it_is_paused():
    async with engine() as one, admitting(one) as at:
        assert (await register(at, one, is_paused=True)).status_code == 200
        assert (await at.post()).status_code == 503


async def test_an_engine_of_the_routers_machine_may_use_any_address_of_it():
    """Which one is seen depends on where the router listens, and on routes."""
    async with engine() as one, admitting(one) as at:
        transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2", verify=False)
        async with httpx.AsyncClient(transport=transport, timeout=LIMIT) as http:
            payload = {"role": "mixed", "host_ip": "127.0.0.1", "port": one.port}
            response = await http.post(f"http://127.0.0.1:{at.port}/register", json=payload)
        assert response.status_code == 200


async def test_without_the_token_an_engine_has_the_planned_role_only():
    async with engine() as one, admitting(one, role="prefill") as at:
        response = await register(at, one, role="decode")
        assert (response.status_code, f"{one.key} is to be prefill" in response.text) == (401, True)
        assert (await register(at, one, role="Prefill")).status_code == 200


@pytest.mark.parametrize("protocol", ["vllm-mooncake", "vllm-nixl", "sglang", "builtin"])
async def test_without_the_token_an_engine_speaks_fastdeploys_protocol_only(protocol: str):
    async with engine() as one, engine() as other, admitting(one, role="prefill") as at:
        response = await register(at, one, role="prefill", protocol=protocol, bootstrap_port=other.port)
        assert response.status_code == 401
        assert other.turns.empty(), "nothing is asked at a port that anybody could name"


async def test_without_the_token_no_model_no_bootstrap_and_no_events_are_taken():
    async with engine() as one, admitting(one) as at:
        one.models = {"data": [{"id": "m"}]}
        claims = {"model": "another", "max_model_len": 1, "bootstrap_port": 9, "kv_events": True}
        assert (await register(at, one, **claims)).status_code == 200
        [known] = (await at.http.get("/registered")).json()["mixed"]
        assert {name: known[name] for name in claims} == {
            "model": "m",
            "max_model_len": None,
            "bootstrap_port": 0,
            "kv_events": False,
        }
        assert (await at.post(PROMPT)).status_code == 200


# Where it comes from.


@pytest.mark.parametrize(
    ("host", "peer", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("fe80::1", "fe80::1%eth0", True),
        ("2001:db8::1", "2001:0db8:0::1", True),
        ("127.0.0.1", "127.0.0.9", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("127.0.0.1", "10.255.255.254", False),
        ("10.255.255.254", "127.0.0.1", False),
    ],
)
def test_from_where_an_engine_registers(host: str, peer: str, same: bool):
    assert origin._is_from(host, peer) == same


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_who_is_admitted_is_named_by_role_and_url(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PDCTL_TOKEN_FILE", raising=False)
    admitted = parse(["--admit", "mixed", f"http://{host}:31000"])[0].admitted
    assert admitted in ({"127.0.0.1:31000": "mixed"}, {"[::1]:31000": "mixed"})


def test_a_role_that_there_is_not_is_refused():
    with pytest.raises(PdctlError, match=r"--admit worker http://10.0.0.1:1: before the URL comes the engine's role"):
        parse(["--admit", "worker", "http://10.0.0.1:1"])
