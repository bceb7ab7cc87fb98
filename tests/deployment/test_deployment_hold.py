"""What a launcher in the foreground holds: interruptions, deaths, and other launchers beside it."""

import asyncio
from contextlib import AbstractAsyncContextManager

import psutil
import pytest

from pdctl.deployment.apply import prepare
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.launch import hold, launch
from pdctl.deployment.store import DeploymentFolder
from pdctl.deployment.teardown import stop_deployment, teardown
from pdctl.errors import ProcessDiedError
from pdctl.hosts.client import AgentGoneError
from tests.deployment.deployment_harness import NO_RESTART, kill_agent, living, make_plan, started, state_of


async def test_a_second_interruption_kills_at_once(folder: DeploymentFolder) -> None:
    plan = make_plan(options={"decode-0": ["--ignore-term"]})
    stubborn = plan.engines[1].model_copy(update={"stop_grace_s": 1000})
    deployment = prepare(plan.model_copy(update={"engines": (plan.engines[0], stubborn)}), folder)
    await launch(deployment)
    holding = asyncio.create_task(hold(deployment))
    await asyncio.sleep(0)
    holding.cancel()
    await state_of(deployment, "decode-0", "stopping")
    holding.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await holding
    assert (await deployment.status()).state == "down"
    await deployment.close()


async def test_the_end_of_a_roles_last_process_stops_everything(folder: DeploymentFolder) -> None:
    async with started(folder, make_plan(restart=NO_RESTART)) as deployment:
        holding = asyncio.create_task(hold(deployment))
        psutil.Process(await state_of(deployment, "prefill-0", "ready")).kill()
        with pytest.raises(ProcessDiedError, match="prefill-0 was killed by SIGKILL") as caught:
            await holding
        assert "prefill begins" in caught.value.detail
        assert living(folder.path.parents[1] / "run") == []
        assert (await deployment.status()).reason == "prefill-0 was killed by SIGKILL"


async def test_an_agent_that_dies_while_held(folder: DeploymentFolder) -> None:
    async with started(folder, make_plan()) as deployment:
        holding = asyncio.create_task(hold(deployment))
        await state_of(deployment, "prefill-0", "ready")  # while that was asked, the watch has begun
        kill_agent(folder)
        with pytest.raises(AgentGoneError, match="the agent on host here has ended"):
            await holding
        assert living(folder.path.parents[1] / "run") == []


async def test_what_is_held_can_be_stopped_by_another(folder: DeploymentFolder) -> None:
    async with started(folder, make_plan()) as deployment:
        holding = asyncio.create_task(hold(deployment))
        other = Deployment.attach(folder)
        await stop_deployment(other)
        await other.close()
        await asyncio.wait_for(holding, 20)


async def test_what_another_started_meanwhile_is_not_touched(folder: DeploymentFolder) -> None:
    """The launcher slept, say suspended, while its agent died and another pdctl stopped and started anew."""
    async with started(folder, make_plan()) as first:
        holding = asyncio.create_task(hold(first))
        asked = lock_asked(first)
        async with folder.lock(0):
            kill_agent(folder)
            await asked.wait()
            await teardown(first)
            second = prepare(make_plan(), folder)
            await launch(second)
        await holding
        assert (await second.status()).state == "ready"
        await stop_deployment(second)
        await second.close()


async def test_interruptions_while_another_has_the_lock_are_not_lost(folder: DeploymentFolder) -> None:
    plan = make_plan(options={"decode-0": ["--ignore-term"]})
    stubborn = plan.engines[1].model_copy(update={"stop_grace_s": 1000})
    async with started(folder, plan.model_copy(update={"engines": (plan.engines[0], stubborn)})) as deployment:
        holding = asyncio.create_task(hold(deployment))
        asked = lock_asked(deployment)
        await asyncio.sleep(0)
        async with folder.lock(0):
            holding.cancel()
            await asked.wait()
            await asyncio.sleep(0)
            holding.cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            with pytest.raises(asyncio.CancelledError):
                await holding
        assert living(folder.path.parents[1] / "run") == []


def lock_asked(deployment: Deployment) -> asyncio.Event:
    """Set when the deployment's lock is asked for."""
    asked, folder = asyncio.Event(), DeploymentFolder(deployment.folder.path)

    def lock(wait_s: float) -> AbstractAsyncContextManager[None]:
        asked.set()
        return folder.lock(wait_s)

    deployment.folder = DeploymentFolder(folder.path)
    deployment.folder.lock = lock  # type: ignore[method-assign]
    return asked
