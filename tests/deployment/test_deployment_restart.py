"""Starting processes of a running deployment again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pdctl.deployment import process_stop
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.launch import hold
from pdctl.deployment.restart import restart
from pdctl.deployment.store import DeploymentFolder
from pdctl.errors import NotFoundError, ProcessDiedError, StateError, StepTimeoutError
from pdctl.planning.plan import Plan
from tests.deployment.deployment_harness import NO_RESTART, is_alive, make_plan, started, state_of
from tests.planning.inventories import make_inventory


async def pids(deployment: Deployment) -> dict[str, int | None]:
    return {process.name: process.pid for process in (await deployment.status()).processes}


@pytest.fixture
def plan() -> Plan:
    return make_plan(prefill=2, restart=NO_RESTART)


@pytest.fixture
async def deployment(folder: DeploymentFolder, plan: Plan) -> AsyncIterator[Deployment]:
    async with started(folder, plan) as deployment:
        yield deployment


async def test_a_killed_engine_is_started_again_and_serves(deployment: Deployment):
    before, said = await pids(deployment), []
    os.kill(before["prefill-0"] or 0, signal.SIGKILL)
    await state_of(deployment, "prefill-0", "exited")
    await restart(deployment, ["prefill-0"], report=said.append)
    after = await pids(deployment)
    assert (await deployment.status()).state == "ready"
    assert {name for name in before if before[name] != after[name]} == {"prefill-0"}
    assert said[-1] == "a request went through prefill-0 x decode-0"


async def test_an_engine_that_runs_is_stopped_first(deployment: Deployment):
    before = await pids(deployment)
    await restart(deployment, ["decode-0", "prefill-1"])
    after = await pids(deployment)
    assert {name for name in before if before[name] != after[name]} == {"decode-0", "prefill-1"}
    assert not is_alive(before["decode-0"])


async def test_what_cannot_be_started_is_stopped_and_the_rest_goes_on(deployment: Deployment, tmp_path: Path):
    plan = deployment.plan
    broken = plan.engines[0].model_copy(update={"argv": (*plan.engines[0].argv, "--exit", "3")})
    deployment.plan = plan.model_copy(update={"engines": (broken, *plan.engines[1:])})
    with pytest.raises(ProcessDiedError, match="prefill-0 exited with code 3"):
        await restart(deployment, ["prefill-0"])
    status = await deployment.status()
    assert (status.state, status.reason) == ("degraded", "prefill-0 exited with code 3: see `pdctl logs prefill-0`")
    assert [process.state for process in status.processes] == ["ready", "exited", "ready", "ready"]


async def test_an_unknown_process(deployment: Deployment):
    with pytest.raises(NotFoundError, match="no process 'prefil-0', only router, prefill-0, prefill-1, decode-0"):
        await restart(deployment, ["prefil-0"])


async def test_a_deployment_that_is_held_in_the_foreground_stays_so(deployment: Deployment):
    holding = asyncio.create_task(hold(deployment))
    await restart(deployment, ["prefill-0"])
    assert not holding.done()
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding


async def test_a_deployment_that_is_being_stopped(deployment: Deployment):
    state = deployment.state
    deployment.folder.write_state(state.model_copy(update={"phase": "stopping"}))
    with pytest.raises(StateError, match="d is stopping: only what has become ready can be changed"):
        await restart(deployment, ["prefill-0"])
    deployment.folder.write_state(state)


async def test_gpu_memory_that_is_still_held(deployment: Deployment, monkeypatch: pytest.MonkeyPatch):
    full = make_inventory(gpus=1)
    gpu = full.gpus[0].model_copy(update={"memory_used_mb": 30_000, "users": ("pid 7 (vllm)",)})
    plan = deployment.plan
    prefill = plan.engines[0].model_copy(update={"gpus": (0,)})
    deployment.plan = plan.model_copy(update={"engines": (prefill, *plan.engines[1:])})

    async def probe(*_: object) -> dict[str, object]:
        return full.model_copy(update={"gpus": (gpu,)}).model_dump()

    monkeypatch.setattr(deployment.hosts["here"], "probe", probe)
    monkeypatch.setattr(process_stop, "GPU_MEMORY_S", 0.0)
    with pytest.raises(StepTimeoutError) as caught:
        await restart(deployment, ["prefill-0"])
    assert str(caught.value) == (
        "prefill-0 was not started: after 0 s, GPU 0 still has 30000 MB in use by pid 7 (vllm)"
    )
    await asyncio.wait_for(state_of(deployment, "prefill-0", "exited"), 20)
