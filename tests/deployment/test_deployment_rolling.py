"""Changes of a running deployment, with the real router and engines that compute nothing."""

import asyncio
import os
import sys
from collections.abc import Sequence

import httpx
import psutil
import pytest

from pdctl.deployment.changes import Limits, Proposal, make_change
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.drain import drain
from pdctl.deployment.launch import hold
from pdctl.deployment.restart import restart_rolling
from pdctl.deployment.store import DeploymentFolder, ProcessId
from pdctl.errors import ProcessDiedError
from pdctl.planning.changes import difference
from pdctl.planning.plan import HostPlan, Plan, ProcessPlan
from pdctl.planning.routers import OWN_METRICS
from tests.deployment.deployment_harness import NO_RESTART, is_alive, living, make_plan, started, state_of

LIMITS = Limits(drain_s=20)
BODY = {"prompt": "a", "max_tokens": 2}


def plan_of(prefill: int = 1, decode: int = 1, *, router: Sequence[str] = (), **options: Sequence[str]) -> Plan:
    """A plan with pdctl's own router; ``options``: of engines, with _ for -."""
    flags = {name.replace("_", "-"): flags for name, flags in options.items()}
    plan = make_plan(prefill, decode, options=flags)
    argv = (sys.executable, "-P", "-m", "pdctl.router", "--splitwise", "--port", "0", "--drain-secs", "1", *router)
    engines = tuple(engine.model_copy(update={"argv": (*engine.argv, "--beats")}) for engine in plan.engines)
    return plan.model_copy(
        update={"router": plan.router.model_copy(update={"argv": argv, "metrics": OWN_METRICS}), "engines": engines}
    )


async def pids(deployment: Deployment) -> dict[str, int | None]:
    status = await deployment.status()
    assert status.state == "ready", status.reason
    return {process.name: process.pid for process in status.processes}


async def change(deployment: Deployment, wanted: Plan) -> list[str]:
    """Make a change and return what is said of it, without what is said of starts."""
    said: list[str] = []
    await make_change(deployment, Proposal(difference(deployment.plan, wanted), None), LIMITS, said.append)
    return steps(said)


def steps(said: list[str]) -> list[str]:
    return [line for line in said if line.split()[0] in ("starting", "draining", "stopping", "no", "going")]


async def test_what_comes_serves_before_what_goes_ends(folder: DeploymentFolder) -> None:
    async with started(folder, plan_of(2)) as deployment:
        before = await pids(deployment)
        wanted = plan_of(3).model_copy(update={"engines": (*plan_of(3).engines[1:],)})
        assert await change(deployment, wanted) == [
            "starting prefill-2",
            "draining prefill-0",
            "stopping prefill-0",
        ]
        after = await pids(deployment)
        assert list(after) == ["router", "prefill-1", "prefill-2", "decode-0"]
        assert {name for name in after if after[name] == before.get(name)} == {"router", "prefill-1", "decode-0"}
        assert not is_alive(before["prefill-0"])
        assert folder.read_plan() == wanted
        assert deployment.state.phase == "verified"


async def test_an_engine_with_other_flags_is_replaced_while_another_serves(folder: DeploymentFolder) -> None:
    async with started(folder, plan_of(2)) as deployment:
        before = await pids(deployment)
        wanted = plan_of(2, prefill_1=["--registers-late", "0.1"])
        assert await change(deployment, wanted) == [*("draining prefill-1", "stopping prefill-1", "starting prefill-1")]
        after = await pids(deployment)
        assert {name for name in after if after[name] != before[name]} == {"prefill-1"}


async def test_without_room_for_a_spare_engine_that_is_said(folder: DeploymentFolder) -> None:
    async with started(folder, plan_of(2)) as deployment:
        said: list[str] = []
        await restart_rolling(deployment, ["decode-0"], LIMITS, said.append)
        assert steps(said) == [
            "no other engine can serve meanwhile: requests for decode-0 are refused while it restarts",
            *("draining decode-0", "stopping decode-0", "starting decode-0"),
        ]


async def test_who_needs_the_gpus_of_one_that_goes_waits_for_its_end(folder: DeploymentFolder) -> None:
    def on_gpu(engine: ProcessPlan, gpu: int) -> ProcessPlan:
        return engine.model_copy(update={"gpus": (gpu,)})

    prefill, second, decode = plan_of(2).engines
    before = plan_of(2).model_copy(update={"engines": (prefill, on_gpu(second, 0), decode)})
    turned = on_gpu(plan_of(2, 2).engines[3], 0)
    async with started(folder, before) as deployment:
        wanted = before.model_copy(update={"engines": (prefill, decode, turned)})
        assert await change(deployment, wanted) == [*("draining prefill-1", "stopping prefill-1", "starting decode-1")]
        assert list(await pids(deployment)) == ["router", "prefill-0", "decode-0", "decode-1"]


async def test_the_router_is_replaced_at_its_port_once_what_comes_is_ready(folder: DeploymentFolder) -> None:
    async with started(folder, plan_of()) as deployment:
        endpoint, before = deployment.state.endpoint, await pids(deployment)
        wanted = plan_of(2, router=["--queue-size", "7"])
        assert await change(deployment, wanted) == [
            *("starting prefill-1", "stopping the router: it ends what it has", "starting router")
        ]
        after = await pids(deployment)
        assert {name for name in before if before[name] != after[name]} == {"router"}
        assert deployment.state.endpoint == endpoint
        await check_restarts(deployment, "prefill-1", "router")


async def check_restarts(deployment: Deployment, *names: str) -> None:
    """What has been started in a change is looked after by its agent."""
    for name in names:
        before = (await pids(deployment))[name]
        psutil.Process(before).kill()
        async with asyncio.timeout(20):
            while await state_of(deployment, name, "ready") == before:  # noqa: ASYNC110 nobody tells
                await asyncio.sleep(0.02)
        assert (await deployment.status()).endpoint == deployment.state.endpoint


async def test_another_policy_for_what_stays_is_taken_over(folder: DeploymentFolder) -> None:
    """Nothing is started for it."""
    current = plan_of(2)
    never = current.engines[0].model_copy(update={"restart": NO_RESTART})
    async with started(folder, current.model_copy(update={"engines": (never, *current.engines[1:])})) as deployment:
        before = await pids(deployment)
        assert await change(deployment, current) == []
        assert await pids(deployment) == before
        await check_restarts(deployment, "prefill-0")


async def test_a_step_that_fails_is_undone(folder: DeploymentFolder) -> None:
    """What has been replaced is replaced again, what was taken out is started again, what has come goes."""
    current = plan_of(2, 2)
    async with started(folder, current) as deployment:
        before = await pids(deployment)
        broken = plan_of(3, 2, prefill_0=["--registers-late", "0.1"], decode_0=["--exit", "4"])
        with pytest.raises(ProcessDiedError) as caught:
            await change(deployment, broken)
        assert str(caught.value) == ("decode-0 exited with code 4 (nothing has changed: what ran before serves)")
        assert "something went wrong" in caught.value.detail
        after = await pids(deployment)
        assert list(after) == list(before)
        assert {name for name in after if after[name] != before[name]} == {"prefill-0", "decode-0"}
        assert folder.read_plan() == current
        assert deployment.state.phase == "verified"
        names = [
            one["name"] for one in await (await deployment.client("here")).call("list") if one["exit_code"] is None
        ]
        assert sorted(names) == sorted(before), "what was added is gone"


async def test_an_interrupted_change_is_undone(folder: DeploymentFolder) -> None:
    async with started(folder, plan_of(2, 2)) as deployment:
        wanted = plan_of(3, 2, decode_0=["--never-ready"])
        other = Deployment.attach(folder)
        changing = asyncio.create_task(change(deployment, wanted))
        await state_of(other, "decode-0", "starting")
        status = await other.status()
        assert (deployment.state.phase, status.reason) == ("changing", f"pid {os.getpid()} is changing it")
        changing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await changing
        await state_of(other, "decode-0", "ready")
        assert list(await pids(other)) == ["router", "prefill-0", "prefill-1", "decode-0", "decode-1"]
        await other.close()


async def test_what_a_killed_pdctl_left_is_mended_by_the_next_change(folder: DeploymentFolder) -> None:
    """It had added an engine, stopped one, drained one, and perhaps started one with other flags."""
    async with started(folder, plan_of(3, 2)) as deployment:
        before, client = await pids(deployment), await deployment.client("here")
        extra = plan_of(4).engines[3]
        argv = [word.replace("{router}", str(deployment.state.endpoint).removeprefix("http://")) for word in extra.argv]
        token = f"{client.folder}/secrets/token"
        await client.call("start", name="prefill-3", argv=argv, env={"PDCTL_TOKEN_FILE": token}, grace=5)
        await client.call("stop", name="prefill-1")
        await drain(deployment, "prefill-2", timeout_s=10)
        killed = ProcessId(pid=1, start=0, boot="another")
        folder.write_state(deployment.state.model_copy(update={"phase": "changing", "owner": killed}))
        folder.write_next_plan(plan_of(4, 2, decode_1=["--registers-late", "0.1"]))
        status = await deployment.status()
        assert (status.state, status.reason) == (
            "degraded",
            "the pdctl that was changing it has ended: `pdctl up` with the topology that it is to have brings it there",
        )
        said = await change(deployment, deployment.plan)
        assert said == [
            "stopping prefill-3, left by a change that was interrupted",
            "starting prefill-1",
            *("draining decode-1", "stopping decode-1", "starting decode-1"),
        ]
        after = await pids(deployment)
        assert {name for name in after if after[name] != before[name]} == {"prefill-1", "decode-1"}
        assert await draining(deployment) == []


async def test_an_engine_that_is_drained_when_a_change_is_interrupted_gets_requests_again(
    folder: DeploymentFolder,
) -> None:
    async with started(folder, plan_of(1, 2)) as deployment:
        other, engine = Deployment.attach(folder), psutil.Process((await pids(deployment))["decode-1"])
        engine.suspend()
        async with httpx.AsyncClient(base_url=str(deployment.state.endpoint), timeout=30) as http:
            requests = [asyncio.create_task(http.post("/v1/completions", json=BODY)) for _ in range(2)]
            await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
            changing = asyncio.create_task(change(deployment, plan_of(1, 1)))
            async with asyncio.timeout(20):
                while await draining(other) != ["decode-1"]:  # noqa: ASYNC110 nobody tells
                    await asyncio.sleep(0.02)
            changing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await changing
            engine.resume()
            assert [(await request).status_code for request in requests] == [200, 200]
        assert await draining(other) == []
        assert "decode-1" in await pids(other)
        await other.close()


async def draining(deployment: Deployment) -> list[str]:
    return [process.name for process in (await deployment.status()).processes if process.draining]


async def test_a_change_while_another_holds_it(folder: DeploymentFolder) -> None:
    """What is stopped on purpose is no death; leaving ends what runs then."""
    async with started(folder, plan_of(2)) as deployment:
        holding = asyncio.create_task(hold(deployment))
        other = Deployment.attach(folder)
        async with folder.lock(0):
            await change(other, plan_of(1, 2))
        assert list(await pids(other)) == ["router", "prefill-0", "decode-0", "decode-1"]
        assert not holding.done()
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
        assert living(folder.path.parents[1] / "run") == []
        await other.close()


async def test_a_host_comes_and_goes_with_its_engine(folder: DeploymentFolder) -> None:
    """Its agent too; that is no death to whoever holds the deployment, and a change that fails leaves none there."""
    here, there = plan_of(), HostPlan(name="there")
    both = here.model_copy(update={"hosts": {**here.hosts, "there": there}, "engines": on_there(plan_of(1, 2).engines)})
    broken = both.model_copy(update={"engines": on_there(plan_of(1, 2, decode_1=["--exit", "4"]).engines)})
    async with started(folder, here) as deployment:
        other = Deployment.attach(folder)
        async with folder.lock(0):
            with pytest.raises(ProcessDiedError, match=r"decode-1 exited with code 4 \(nothing has changed"):
                await change(other, broken)
            assert not (folder.path / "hosts" / "there" / "agent.json").exists()
            await change(other, both)
            assert list(await pids(other)) == ["router", "prefill-0", "decode-0", "decode-1"]
            assert (folder.path / "hosts" / "there" / "agent.json").exists()
            deployment.take_plan(both)
            holding = asyncio.create_task(hold(deployment))
            await state_of(deployment, "decode-1", "ready")  # while that was asked, the watch has begun
            await change(other, here)
            assert not (folder.path / "hosts" / "there" / "agent.json").exists()
            assert folder.read_plan() == here
        assert not holding.done()
        await other.close()
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
        assert living(folder.path.parents[1] / "run") == []


def on_there(engines: Sequence[ProcessPlan]) -> tuple[ProcessPlan, ...]:
    """The last one on another host."""
    return (*engines[:-1], engines[-1].model_copy(update={"host": "there"}))
