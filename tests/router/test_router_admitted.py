"""Engines that register, but cannot show the deployment's token."""

import httpx
import pytest
from router_mocks import MockEngine, Running, engine, running

from pdctl.router.arguments import parse


async def register(at: Running, mock: MockEngine, **fields: object) -> httpx.Response:
    payload = {"role": "mixed", "host_ip": "127.0.0.1", "port": mock.port, **fields}
    return await at.http.post("/register", json=payload)


async def test_an_admitted_engine_registers_and_serves():
    async with engine() as one, running(token="secret", admitted=frozenset([one.key])) as at:
        assert (await register(at, one)).status_code == 200
        assert (await at.post()).status_code == 200


async def test_others_still_need_the_token():
    async with engine() as one, engine() as two, running(token="secret", admitted=frozenset([one.key])) as at:
        response = await register(at, two)
        assert response.status_code == 401
        assert response.json() == {"detail": f"the registration of {two.key} needs the deployment's token"}
        assert (await at.register("mixed", two)).status_code == 200


async def test_being_admitted_is_no_token_for_anything_else():
    async with engine() as one, running(token="secret", admitted=frozenset([one.key])) as at:
        await register(at, one)
        assert (await at.http.delete(f"/instances/{one.key}")).status_code == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_who_is_admitted_is_named_by_url(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PDCTL_TOKEN_FILE", raising=False)
    assert parse(["--admit", f"http://{host}:31000"])[0].admitted in ({"127.0.0.1:31000"}, {"[::1]:31000"})
