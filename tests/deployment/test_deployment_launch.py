"""A deployment starts as a whole or leaves nothing: every step's failure, and interruptions."""

import asyncio
import contextlib
import socket

import psutil
import pytest

from pdctl.deployment import apply as apply_module
from pdctl.deployment import serving_engines
from pdctl.deployment.apply import prepare
from pdctl.deployment.launch import clear_way, launch
from pdctl.deployment.store import DeploymentFolder
from pdctl.errors import DegradedError, ExitCode, PdctlError, ProcessDiedError, StepTimeoutError, VerifyError
from pdctl.hosts.client import AgentGoneError
from pdctl.planning.plan import Plan, Readiness
from tests.deployment.deployment_harness import (
    NO_RESTART,
    is_alive,
    kill_agent,
    living,
    make_plan,
    process,
    started,
    state_of,
)


async def fails(folder: DeploymentFolder, plan: Plan, error: type[PdctlError], *words: str) -> PdctlError:
    """Check that the start fails so, and leaves nothing but the reason and the logs."""
    deployment = prepare(plan, folder)
    with pytest.raises(error) as caught:
        await launch(deployment)
    for word in words:
        assert word in str(caught.value)
    assert living(folder.path.parents[1] / "run") == []
    assert not folder.token_path.exists()
    status = await deployment.status()
    assert (status.state, status.reason) == ("down", str(caught.value))
    await deployment.close()
    return caught.value


async def test_ready_means_a_request_through_every_pair(folder: DeploymentFolder) -> None:
    said: list[str] = []
    async with started(folder, make_plan(prefill=2, decode=2), said.append) as deployment:
        status = await deployment.status()
        assert (status.state, status.reason) == ("ready", None)
        ports = {p.role: [q.port for q in status.processes if q.role == p.role] for p in status.processes}
        pairs = (await deployment.http("here").get(f"{status.endpoint}/pairs")).json()
        expected = {(p, d) for p in ports["prefill"] for d in ports["decode"]}
        assert sorted(pairs) == sorted([f"http://127.0.0.1:{p}", f"http://127.0.0.1:{d}"] for p, d in expected)
        check_privacy(folder)
    text = "\n".join(said)
    assert f"router listens at {status.endpoint}" in text
    assert "prefill-0: loading weights 25%" in text
    assert "decode-0 is ready after" in text
    assert "a request went through prefill-0 x decode-0, prefill-1 x decode-0," in text


def check_privacy(folder: DeploymentFolder) -> None:
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.token_path.stat().st_mode & 0o777 == 0o600
    token = folder.token_path.read_text()
    assert len(token) == 64
    commands = [" ".join(process.cmdline()) for process in living(folder.path.parents[1] / "run")]
    assert not any(token in command for command in commands)


async def test_every_mixed_engine_is_asked(folder: DeploymentFolder) -> None:
    async with started(folder, make_plan(0, 0, mixed=2)) as deployment:
        status = await deployment.status()
        pairs = (await deployment.http("here").get(f"{status.endpoint}/pairs")).json()
        mixed = [f"http://127.0.0.1:{p.port}" for p in status.processes if p.role == "mixed"]
        assert sorted(pairs) == sorted([None, url] for url in mixed)


@pytest.mark.parametrize("name", ["router", "decode-0"])
async def test_a_process_that_exits_at_start(folder: DeploymentFolder, name: str) -> None:
    plan = make_plan(options={name: ["--exit", "3"]})
    error = await fails(folder, plan, ProcessDiedError, f"{name} exited with code 3")
    assert error.detail.splitlines()[-1] == "something went wrong"


async def test_a_command_that_cannot_be_run(folder: DeploymentFolder) -> None:
    plan = make_plan()
    router = plan.router.model_copy(update={"argv": ("/no/such/program",)})
    error = await fails(folder, plan.model_copy(update={"router": router}), ProcessDiedError, "router", "127")
    assert "cannot run /no/such/program" in error.detail


async def test_a_process_that_does_not_become_ready(folder: DeploymentFolder) -> None:
    plan = make_plan()
    late = process("decode-0", "decode", ["--never-ready"], readiness=Readiness(timeout_s=8))
    plan = plan.model_copy(update={"engines": (plan.engines[0], late)})
    error = await fails(
        folder, plan, StepTimeoutError, "decode-0 did not become ready within", "loading weights, 1 of 4"
    )
    assert "within 8 s" in str(error)
    assert error.detail == "decode-0 | decode begins"


async def test_the_whole_start_has_a_limit(folder: DeploymentFolder) -> None:
    deployment = prepare(make_plan(options={"prefill-0": ["--never-ready"]}), folder)
    what = "not ready within 10 s: it was waiting for prefill-0 to become ready"
    with pytest.raises(StepTimeoutError, match=what) as caught:
        await launch(deployment, timeout_s=10)
    assert caught.value.detail == "prefill-0 | prefill begins"
    await deployment.close()


async def test_an_engine_that_does_not_register(folder: DeploymentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_engines, "REGISTER_TIMEOUT_S", 0.5)
    plan = make_plan(options={"prefill-0": ["--never-register"]})
    error = await fails(folder, plan, StepTimeoutError, "prefill-0 did not register at the router within 0.5 s")
    assert error.detail == "prefill-0 | prefill begins"


async def test_a_request_that_is_not_served(folder: DeploymentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the pair are shown, and the router's."""
    monkeypatch.setattr(apply_module, "DEATH_S", 0.2)
    plan = make_plan(prefill=2, options={"router": ["--answer", "500"]})
    error = await fails(folder, plan, VerifyError, "a request through prefill-", " x decode-0", "500", "no luck today")
    asked = str(error).split(" ")[3]
    lines = error.detail.splitlines()
    assert {"router | router begins", f"{asked} | prefill begins", "decode-0 | decode begins"} <= set(lines)
    assert {line.split(" | ")[0] for line in lines} == {"router", asked, "decode-0"}


async def test_a_process_that_ends_after_its_answer(folder: DeploymentFolder) -> None:
    """Its end is the reason, and not the answer that came first."""
    plan = make_plan(options={"router": ["--answer", "crash"]})
    error = await fails(folder, plan, ProcessDiedError, "router exited with code 3")
    assert error.detail.splitlines()[-1] == "cannot go on"


async def test_readiness_by_http(folder: DeploymentFolder) -> None:
    """For an engine that notifies nothing: its port is the plan's, its readiness an answer."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    plan = make_plan()
    quiet = process("decode-0", "decode", ["--no-notice"], readiness=Readiness(kind="http", timeout_s=20), port=port)
    async with started(folder, plan.model_copy(update={"engines": (plan.engines[0], quiet)})) as deployment:
        status = await deployment.status()
        decode = next(process for process in status.processes if process.name == "decode-0")
        assert (status.state, decode.state, decode.port) == ("ready", "ready", port)


async def test_readiness_by_http_at_a_port_that_is_reported(folder: DeploymentFolder) -> None:
    """The process says which port it has only once it listens."""
    plan = make_plan()
    decode = process("decode-0", "decode", readiness=Readiness(kind="http", timeout_s=20))
    async with started(folder, plan.model_copy(update={"engines": (plan.engines[0], decode)})) as deployment:
        assert (await deployment.status()).state == "ready"


async def test_readiness_by_http_without_a_port(folder: DeploymentFolder) -> None:
    plan = make_plan()
    silent = process("decode-0", "decode", ["--no-notice"], readiness=Readiness(kind="http", timeout_s=1))
    plan = plan.model_copy(update={"engines": (plan.engines[0], silent)})
    what = "decode-0 did not become ready within 1 s: it did not say on which port it listens"
    error = await fails(folder, plan, StepTimeoutError, what)
    assert error.detail == "decode-0 | decode begins"


async def test_an_agent_that_dies_while_starting(folder: DeploymentFolder) -> None:
    deployment = prepare(make_plan(options={"decode-0": ["--never-ready"]}), folder)
    start = asyncio.create_task(launch(deployment))
    await state_of(deployment, "prefill-0", "ready")
    kill_agent(folder)
    with pytest.raises(AgentGoneError) as caught:
        await start
    assert caught.value.exit_code == ExitCode.PROCESS_DIED
    await deployment.close()


async def test_an_interrupted_start_leaves_nothing(folder: DeploymentFolder) -> None:
    deployment = prepare(make_plan(options={"decode-0": ["--never-ready"]}), folder)
    start = asyncio.create_task(launch(deployment))
    await state_of(deployment, "prefill-0", "ready")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    status = await deployment.status()
    assert (status.state, status.reason) == ("down", "it was interrupted")
    await deployment.close()


async def test_a_running_deployment_is_found(folder: DeploymentFolder) -> None:
    assert await clear_way(folder) is None
    async with started(folder, make_plan()) as deployment:
        pids = [process.pid for process in (await deployment.status()).processes]
        running = await clear_way(folder)
        assert running is not None
        assert [process.pid for process in (await running.status()).processes] == pids
        await running.close()
    assert await clear_way(folder) is None


async def test_a_degraded_deployment_is_left_to_its_user(folder: DeploymentFolder) -> None:
    async with started(folder, make_plan(restart=NO_RESTART)) as deployment:
        psutil.Process(await state_of(deployment, "decode-0", "ready")).kill()
        await state_of(deployment, "decode-0", "exited")
        words = r"is degraded: decode-0 was killed by SIGKILL: see `pdctl logs decode-0`; stop .*pdctl down --name d"
        with pytest.raises(DegradedError, match=words) as caught:
            await clear_way(folder)
        assert caught.value.exit_code == ExitCode.DEGRADED
        assert is_alive(await state_of(deployment, "prefill-0", "ready"))


async def test_what_is_left_of_a_dead_one_is_cleared_away(folder: DeploymentFolder) -> None:
    async with started(folder, make_plan()) as deployment:
        for dying in living(folder.path.parents[1] / "run"):
            with contextlib.suppress(psutil.NoSuchProcess):
                dying.kill()
        assert await clear_way(folder) is None
        assert (await deployment.status()).state == "down"
