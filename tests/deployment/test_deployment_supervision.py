"""What agents do for a deployment that is ready: it comes back by itself, whoever watches."""

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from pdctl.deployment import watch as watch_module
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.launch import hold
from pdctl.deployment.models import DeploymentStatus, ProcessStatus
from pdctl.deployment.process_start import at_port
from pdctl.deployment.restart import restart
from pdctl.deployment.store import DeploymentFolder, ProcessId
from pdctl.deployment.teardown import stop_deployment
from pdctl.errors import HostUnreachableError, ProcessDiedError
from pdctl.hosts.client import AgentClient, AgentGoneError
from pdctl.planning.plan import HostPlan, Readiness
from pdctl.topology.restart import Restart
from tests.deployment.deployment_harness import is_alive, kill_agent, living, make_plan, process, started, state_of

SOON = Restart(backoff_s=0.01, max_backoff_s=0.02)
HASTY = SOON.model_copy(update={"probe_interval_s": 0.1, "probe_timeout_s": 0.5, "probe_failures": 2})
NOT_NOW = Restart(backoff_s=1000, max_backoff_s=1000)
TWICE = SOON.model_copy(update={"max_restarts": 2})


def found(status: DeploymentStatus, name: str) -> ProcessStatus:
    return next(process for process in status.processes if process.name == name)


async def after_restart(deployment: Deployment, name: str, number: int = 1) -> ProcessStatus:
    """Wait until the process is ready once more."""
    async with asyncio.timeout(20):
        while True:
            seen = found(await deployment.status(), name)
            if (seen.state, seen.restarts) == ("ready", number):
                return seen
            await asyncio.sleep(0.02)


async def registered(deployment: Deployment, role: str) -> list[int]:
    answer = await deployment.http("here").get(f"{deployment.state.endpoint}/registered")
    return [entry["port"] for entry in answer.json()[role]]


async def kill(deployment: Deployment, name: str) -> None:
    psutil.Process(await state_of(deployment, name, "ready")).kill()


def test_the_router_keeps_the_port_that_it_was_given() -> None:
    open_port, fixed = process("router", "router"), process("router", "router", port=8000)
    known = at_port(open_port, 31234)
    assert known.argv[known.argv.index("--port") + 1] == "31234"
    assert (at_port(known, 0), at_port(known, 31234), at_port(fixed, 31234)) == (known, known, fixed)


async def test_what_is_killed_comes_back(folder: DeploymentFolder) -> None:
    """An engine registers again; the router is where it was: its port was any free one at first, and is known since."""
    async with started(folder, make_plan(restart=SOON)) as deployment:
        before = await deployment.status()
        await kill(deployment, "decode-0")
        decode = await after_restart(deployment, "decode-0")
        assert (await deployment.status()).state == "ready"
        assert decode.port in await registered(deployment, "decode")
        await kill(deployment, "router")
        router = await after_restart(deployment, "router")
        assert (router.port, router.pid == found(before, "router").pid) == (found(before, "router").port, False)
        assert (await deployment.status()).endpoint == before.endpoint


async def test_what_waits_for_its_next_life(folder: DeploymentFolder) -> None:
    """It is told, keeps nothing else from being restarted, and ends with all the others."""
    async with started(folder, make_plan(prefill=2, restart=NOT_NOW)) as deployment:
        await kill(deployment, "prefill-1")
        await state_of(deployment, "prefill-1", "restarting")
        status = await deployment.status()
        assert (status.state, status.reason) == (
            "degraded",
            "prefill-1 was killed by SIGKILL: it is being restarted (restart 1)",
        )
        assert 900 < (found(status, "prefill-1").restart_in_s or 0) <= 1000
        not_ours(deployment)
        said: list[str] = []
        await restart(deployment, ["prefill-0"], report=said.append)
        assert said[-1] == "a request went through prefill-0 x decode-0"
        await stop_deployment(deployment)
        assert living(folder.path.parents[1] / "run") == []


async def test_restarts_by_hand(folder: DeploymentFolder) -> None:
    """The router is where it was, and an engine is supervised again."""
    async with started(folder, make_plan(restart=SOON)) as deployment:
        not_ours(deployment)
        before = found(await deployment.status(), "router")
        restarting = asyncio.create_task(restart(deployment, ["router"]))
        await register_all(deployment, before.pid)
        await restarting
        assert found(await deployment.status(), "router").port == before.port
        await restart(deployment, ["prefill-0"])
        assert found(await deployment.status(), "prefill-0").restarts == 0
        await kill(deployment, "prefill-0")
        await after_restart(deployment, "prefill-0")


async def register_all(deployment: Deployment, old_pid: int | None) -> None:
    """Do at the next router what engines do with their heartbeat; these here register once."""
    async with asyncio.timeout(20):
        while True:
            router = found(await deployment.status(), "router")
            if router.pid != old_pid and router.state == "ready":
                break
            await asyncio.sleep(0.02)
    token = {"Authorization": f"Bearer {deployment.folder.read_token()}"}
    for engine in (await deployment.status()).processes[1:]:
        body = {"role": engine.role, "host_ip": "127.0.0.1", "port": engine.port, "model": "fake"}
        await deployment.http("here").post(f"{deployment.state.endpoint}/register", json=body, headers=token)


def not_ours(deployment: Deployment) -> None:
    """As if the `up -d` that started it had ended."""
    owner = ProcessId(pid=1, start=0, boot="another")
    deployment.folder.write_state(deployment.state.model_copy(update={"owner": owner}))


async def test_what_hangs_is_killed_and_started_again(folder: DeploymentFolder) -> None:
    """Also one that tells nothing, and is ready again when it answers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    readiness = Readiness(kind="http", timeout_s=20)
    quiet = process("decode-0", "decode", ["--no-notice"], readiness=readiness, port=port, restart=HASTY)
    plan = make_plan(restart=HASTY)
    async with started(folder, plan.model_copy(update={"engines": (plan.engines[0], quiet)})) as deployment:
        for name in ("prefill-0", "decode-0"):
            pid = await state_of(deployment, name, "ready")
            os.kill(pid, signal.SIGSTOP)
            assert (await after_restart(deployment, name)).pid != pid


async def test_an_engine_that_keeps_failing(folder: DeploymentFolder, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    plan = make_plan(prefill=2, restart=TWICE, options={"prefill-0": ["--broken-by", str(broken)]})
    async with started(folder, plan) as deployment:
        broken.touch()
        await kill(deployment, "prefill-0")
        await state_of(deployment, "prefill-0", "failed")
        status = await deployment.status()
        assert (status.state, status.reason) == (
            "degraded",
            "prefill-0 exited with code 3 and keeps failing (restarts: 2): see `pdctl logs prefill-0`",
        )
        assert (await asyncio.wait_for(anext(deployment.logs(["prefill-0"])), 20)).text == "prefill begins"
        broken.unlink()
        not_ours(deployment)
        await restart(deployment, ["prefill-0"])
        assert (await deployment.status()).state == "ready"


class Held:
    """A deployment that is held in the foreground."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.task = asyncio.create_task(hold(deployment))

    async def ends(self) -> ProcessDiedError:
        async with asyncio.timeout(20):
            with pytest.raises(ProcessDiedError) as caught:
                await self.task
        return caught.value

    async def is_interrupted(self) -> None:
        assert not self.task.done()
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task
        assert (await self.deployment.status()).state == "down"


async def test_holding_goes_on_through_a_restart(folder: DeploymentFolder) -> None:
    async with started(folder, make_plan(restart=SOON)) as deployment:
        held = Held(deployment)
        for number, name in enumerate(("decode-0", "router", "decode-0")):
            await kill(deployment, name)
            await after_restart(deployment, name, 1 + (number == 2))
        await held.is_interrupted()


async def test_holding_ends_when_a_role_has_no_engine_left(folder: DeploymentFolder, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    options = {f"prefill-{number}": ["--broken-by", str(broken)] for number in (0, 1)}
    async with started(folder, make_plan(prefill=2, restart=TWICE, options=options)) as deployment:
        held = Held(deployment)
        broken.touch()
        await kill(deployment, "prefill-0")
        await state_of(deployment, "prefill-0", "failed")
        assert (await deployment.status()).state == "degraded"
        assert not held.task.done()
        await kill(deployment, "prefill-1")
        error = await held.ends()
        assert str(error) == "prefill-1 exited with code 3 and keeps failing (restarts: 2)"
        assert error.detail.splitlines()[-1] == "something went wrong"
        assert (await deployment.status()).reason == str(error)
        assert living(folder.path.parents[1] / "run") == []


async def test_holding_goes_on_while_another_host_can_serve(folder: DeploymentFolder) -> None:
    """All that an agent runs ends with it; here are two, as of two hosts."""
    plan = make_plan(prefill=2, restart=SOON)
    hosts = {**plan.hosts, "there": HostPlan(name="there")}
    engines = [e.model_copy(update={"host": "there"}) if e.name == "prefill-1" else e for e in plan.engines]
    plan = plan.model_copy(update={"hosts": hosts, "engines": tuple(engines)})
    async with started(folder, plan) as deployment:
        held = Held(deployment)
        pid = await state_of(deployment, "prefill-1", "ready")
        kill_agent(folder, "there")
        await state_of(deployment, "prefill-1", "exited")
        status = await deployment.status()
        assert (status.state, status.reason) == ("degraded", "the agent on host there has ended")
        assert (is_alive(pid), held.task.done()) == (False, False)
        kill_agent(folder)
        with pytest.raises(AgentGoneError, match="the agent on host here has ended"):
            await asyncio.wait_for(held.task, 20)
        assert living(folder.path.parents[1] / "run") == []


async def test_what_another_stops_while_it_is_held_may_come_back(folder: DeploymentFolder) -> None:
    async with started(folder, make_plan(restart=SOON)) as deployment:
        held = Held(deployment)
        await state_of(deployment, "decode-0", "ready")
        await (await deployment.client("here")).call("stop", name="decode-0")
        status = await deployment.status()
        assert status.reason == "decode-0 was stopped: `pdctl restart decode-0` starts it again"
        await held.is_interrupted()


async def test_holding_waits_for_a_host_that_cannot_be_reached(
    folder: DeploymentFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way there is closed at first, and once more while it is held; meanwhile the agent goes on by itself."""
    monkeypatch.setattr(watch_module, "RECONNECT_S", 0.01)
    async with started(folder, make_plan(restart=TWICE)) as deployment:
        way = Way(deployment)
        monkeypatch.setattr(deployment, "connect", way.connect)
        way.is_open = False
        held = Held(deployment)
        await way.tried()
        way.is_open = True
        await way.passed()
        way.close()
        await way.tried()
        await kill(deployment, "decode-0")
        await after_restart(deployment, "decode-0")
        assert not held.task.done()
        way.is_open = True
        await way.passed()
        await held.is_interrupted()


class Way:
    """To the agent, by which `hold` connects."""

    def __init__(self, deployment: Deployment) -> None:
        self.is_open = True
        self._connect = deployment.connect
        self._client: AgentClient | None = None
        self._tried, self._passed = asyncio.Event(), asyncio.Event()

    async def connect(self, host: str) -> AgentClient:
        if not self.is_open:
            self._tried.set()
            raise HostUnreachableError(f"host {host} cannot be reached")
        self._client = await self._connect(host)
        self._passed.set()
        return self._client

    def close(self) -> None:
        """As a link does that goes down."""
        self.is_open = False
        writer: Any = self._client._writer if self._client else None
        writer.transport.abort()

    async def tried(self) -> None:
        self._tried.clear()
        await asyncio.wait_for(self._tried.wait(), 20)

    async def passed(self) -> None:
        self._passed.clear()
        await asyncio.wait_for(self._passed.wait(), 20)
