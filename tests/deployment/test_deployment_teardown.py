"""Ending a deployment in whatever state it is: in order, to the last process, as often as asked."""

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from pdctl.agent.protocol import VERSION
from pdctl.deployment.apply import prepare
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.launch import launch
from pdctl.deployment.store import DeploymentFolder
from pdctl.deployment.teardown import stop_deployment
from pdctl.errors import LeftoverError
from pdctl.hosts.client import AgentCallError
from pdctl.hosts.host import Host, Sweep
from tests.agent.agent_harness import eventually
from tests.deployment.deployment_harness import living, make_plan


@pytest.fixture
async def deployment(folder: DeploymentFolder) -> AsyncIterator[Deployment]:
    deployment = prepare(make_plan(), folder)
    await launch(deployment)
    yield deployment
    await stop_deployment(deployment, grace_s=0)
    await deployment.close()


def agent_pids(folder: DeploymentFolder) -> tuple[int, int]:
    description = json.loads((folder.path / "hosts" / "here" / "agent.json").read_text())
    return description["pid"], description["guardian_pid"]


async def test_router_then_decode_then_prefill(deployment: Deployment) -> None:
    await stop_deployment(deployment)
    stops = [line async for line in deployment.logs() if line.text == "told to stop"]
    order = [line.process for line in sorted(stops, key=lambda line: line.time)]
    assert order == ["router", "decode-0", "prefill-0"]


async def test_what_stays_and_what_goes_however_often(deployment: Deployment, runtime: Path) -> None:
    for _ in range(2):
        await stop_deployment(deployment)
    assert (await deployment.status()).state == "down"
    folder = deployment.folder
    assert living(runtime) == []
    assert not folder.token_path.exists()
    left = sorted(path.name for path in (folder.path / "hosts" / "here").iterdir())
    assert left == ["agent.lock", "agent.log", "logs", "run.json"]
    assert list((runtime / "pdctl").iterdir()) == []  # no socket


async def test_by_one_who_did_not_start_it(deployment: Deployment, runtime: Path) -> None:
    other = Deployment.attach(deployment.folder)
    await stop_deployment(other)
    await other.close()
    assert living(runtime) == []


async def test_when_the_agent_is_dead(deployment: Deployment, runtime: Path) -> None:
    psutil.Process(agent_pids(deployment.folder)[0]).kill()
    await stop_deployment(deployment)
    assert living(runtime) == []


@pytest.mark.parametrize("content", ["", "{}", "[]"])
async def test_when_the_agents_description_is_damaged(deployment: Deployment, runtime: Path, content: str) -> None:
    (deployment.agent_folder("here") / "agent.json").write_text(content)
    other = Deployment.attach(deployment.folder)
    assert (await other.status()).reason == "the agent on host here lives, but does not answer"
    await stop_deployment(other)
    await other.close()
    assert living(runtime) == []


async def test_when_the_agent_is_of_another_version(
    deployment: Deployment, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployment.close()
    with monkeypatch.context() as context:
        context.setattr("pdctl.hosts.client.VERSION", 99)
        with pytest.raises(AgentCallError, match=rf"version {VERSION} .*or end it with `pdctl down`"):
            await Deployment.attach(deployment.folder).status()
        other = Deployment.attach(deployment.folder)
        await stop_deployment(other)
        await other.close()
    assert living(runtime) == []


async def test_when_agent_and_guardian_are_dead(deployment: Deployment, runtime: Path) -> None:
    agent, guardian = agent_pids(deployment.folder)
    for pid in (guardian, agent):
        os.kill(pid, signal.SIGKILL)
    await stop_deployment(deployment)
    assert living(runtime) == []


async def test_when_the_agent_hangs(deployment: Deployment, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIST_TIMEOUT_S", "KILL_MARGIN_S", "AGENT_END_S"):
        monkeypatch.setattr(f"pdctl.deployment.teardown.{name}", 0.2)
    monkeypatch.setattr("pdctl.hosts.host.CONNECT_TIMEOUT_S", 0.2)
    os.kill(agent_pids(deployment.folder)[0], signal.SIGSTOP)
    await stop_deployment(deployment)
    assert living(runtime) == []


async def test_when_a_process_ignores_sigterm(folder: DeploymentFolder, runtime: Path) -> None:
    deployment = prepare(make_plan(options={"decode-0": ["--ignore-term"]}), folder)
    await launch(deployment)
    await stop_deployment(deployment, grace_s=0.2)
    assert living(runtime) == []
    await deployment.close()


async def test_what_cannot_be_ended_is_named(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sweep(*_: object, **__: object) -> Sweep:
        return Sweep([], ["pid 7 (stuck)"], agent_lives=False)

    with monkeypatch.context() as context:
        context.setattr(Host, "sweep", sweep)
        with pytest.raises(LeftoverError, match=r"could not end pid 7 \(stuck\) on host here"):
            await stop_deployment(deployment)
        eventually(lambda: not (deployment.agent_folder("here") / "agent.json").exists(), "the agent's end")
        state = deployment.state
        assert state.phase == "stopping"  # so that `down` looks again
        ended = state.owner.model_copy(update={"start": 0})
        deployment.folder.write_state(state.model_copy(update={"owner": ended}))
        for _ in range(2):
            status = await deployment.status()
            assert status.state == "degraded"
            assert status.reason == "could not end pid 7 (stuck) on host here: end it by hand, then `pdctl down`"
    await stop_deployment(deployment)
    assert deployment.state.phase == "down"


async def test_a_full_disk_does_not_keep_it_running(
    deployment: Deployment, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pdctl.errors import StateError

    def full(*_: object) -> None:
        raise StateError("no space")

    with monkeypatch.context() as context:
        context.setattr(DeploymentFolder, "write_state", full)
        with pytest.raises(StateError, match="no space"):
            await stop_deployment(deployment)
    assert living(runtime) == []
