"""Draining engines at the real router; the engines compute nothing."""

import asyncio
import sys
from collections.abc import AsyncIterator

import httpx
import psutil
import pytest

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.drain import drain, undrain
from pdctl.deployment.store import DeploymentFolder
from pdctl.errors import NotFoundError, RouterError, StepTimeoutError
from pdctl.planning.routers import OWN_METRICS
from tests.deployment.deployment_harness import make_plan, started

BODY = {"prompt": "a", "max_tokens": 2}
TIMEOUT_S = 20


@pytest.fixture
async def deployment(folder: DeploymentFolder) -> AsyncIterator[Deployment]:
    plan = make_plan(decode=2)
    argv = (sys.executable, "-P", "-m", "pdctl.router", "--splitwise", "--port", "0", "--drain-secs", "1")
    router = plan.router.model_copy(update={"argv": argv, "metrics": OWN_METRICS})
    async with started(folder, plan.model_copy(update={"router": router})) as deployment:
        yield deployment


async def draining(deployment: Deployment) -> list[str]:
    return [process.name for process in (await deployment.status()).processes if process.draining]


async def test_an_engine_is_drained_and_undrained_and_its_status_says_so(deployment: Deployment) -> None:
    await drain(deployment, "decode-0", timeout_s=TIMEOUT_S)
    assert await draining(deployment) == ["decode-0"]
    async with httpx.AsyncClient(base_url=str(deployment.state.endpoint)) as http:
        answers = [await http.post("/v1/completions", json=BODY) for _ in range(4)]
        used = {answer.headers["X-Router-Decode-URL"] for answer in answers}
    ports = {process.name: process.port for process in (await deployment.status()).processes}
    assert used == {f"http://127.0.0.1:{ports['decode-1']}"}
    await undrain(deployment, "decode-0")
    assert await draining(deployment) == []


async def test_requests_in_flight_are_waited_for(deployment: Deployment) -> None:
    await drain(deployment, "decode-1", timeout_s=TIMEOUT_S)
    pid = next(process.pid for process in (await deployment.status()).processes if process.name == "decode-0")
    engine = psutil.Process(pid)
    engine.suspend()
    async with httpx.AsyncClient(base_url=str(deployment.state.endpoint), timeout=TIMEOUT_S) as http:
        request = asyncio.create_task(http.post("/v1/completions", json=BODY))
        await in_flight(http)
        with pytest.raises(StepTimeoutError, match=r"decode-0 still serves 1 requests 0\.5 s after it was drained"):
            await drain(deployment, "decode-0", timeout_s=0.5)
        waiting = asyncio.create_task(drain(deployment, "decode-0", timeout_s=TIMEOUT_S))
        engine.resume()
        await waiting
        assert (await request).status_code == 200


async def in_flight(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not any(instance["requests_in_flight"] for instance in (await http.get("/instances")).json()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_only_engines_are_drained(deployment: Deployment) -> None:
    for name in ("router", "decode-7"):
        with pytest.raises(NotFoundError, match=f"has no engine '{name}', only prefill-0, decode-0, decode-1"):
            await drain(deployment, name, timeout_s=TIMEOUT_S)


async def test_what_the_router_does_not_know_is_no_success(deployment: Deployment) -> None:
    port = next(process.port for process in (await deployment.status()).processes if process.name == "decode-0")
    headers = {"Authorization": f"Bearer {deployment.folder.read_token()}"}
    async with httpx.AsyncClient(base_url=str(deployment.state.endpoint)) as http:
        await http.delete(f"/instances/127.0.0.1:{port}", headers=headers)
    with pytest.raises(NotFoundError, match=r"the router does not know decode-0 \(127\.0\.0\.1:\d+\)"):
        await drain(deployment, "decode-0", timeout_s=TIMEOUT_S)


async def test_a_router_that_is_not_ours_or_gone_is_said(deployment: Deployment) -> None:
    deployment.plan = deployment.plan.model_copy(update={"has_own_router": False})
    with pytest.raises(RouterError, match="d: only pdctl's own router can undrain an engine"):
        await undrain(deployment, "decode-0")
    deployment.plan = deployment.plan.model_copy(update={"has_own_router": True})
    pid = next(process.pid for process in (await deployment.status()).processes if process.name == "router")
    psutil.Process(pid).kill()
    with pytest.raises(RouterError, match=r"the router at http://127\.0\.0\.1:\d+ does not answer: \w+Error"):
        await undrain(deployment, "decode-0")
