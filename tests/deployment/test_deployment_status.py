"""What is said of a deployment: for every combination of what a look finds, and of real ones that were hurt."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.models import Load
from pdctl.deployment.snapshot import Snapshot
from pdctl.deployment.status import Findings, make_status
from pdctl.deployment.store import DeploymentFolder, ProcessId, State
from pdctl.deployment.teardown import stop_deployment
from pdctl.errors import NotFoundError
from tests.deployment.deployment_harness import METRICS, is_alive, living, make_plan
from tests.processes import Spawned

PLAN = make_plan()
ALL_READY = {p.name: Snapshot(name=p.name, pid=1, state="ready", ports={"api": 9}) for p in PLAN.processes}


def state(phase: str, **changes: object) -> State:
    return State.model_validate(
        {"run_id": "r", "phase": phase, "owner": ProcessId.own(), "started": 0.0, "endpoint": "http://x:9"} | changes
    )


def findings(**changes: object) -> Findings:
    return Findings(False, (), (), ALL_READY, {}, None)._replace(**changes)


def exited(name: str, code: int, state: str = "exited", **changes: object) -> dict[str, Snapshot]:
    return but(name, state=state, exit_code=code, **changes)


def but(name: str, **changes: object) -> dict[str, Snapshot]:
    """All ready, but one."""
    return ALL_READY | {name: ALL_READY[name].model_copy(update=changes)}


@pytest.mark.parametrize(
    ("phase", "found", "expected", "reason"),
    [
        ("verified", findings(), "ready", None),
        ("verified", findings(router_problem="503"), "degraded", "503"),
        (
            *("verified", findings(snapshots=exited("decode-0", 1)), "degraded"),
            "decode-0 exited with code 1: see `pdctl logs decode-0`",
        ),
        ("verified", findings(snapshots=exited("router", -9)), "degraded", "router was killed by SIGKILL"),
        (
            *("verified", findings(snapshots=exited("prefill-0", -9, "restarting", restarts=1)), "degraded"),
            "prefill-0 was killed by SIGKILL: it is being restarted (restart 2)",
        ),
        (
            "verified",
            findings(snapshots=but("prefill-0", state="starting", restarts=2, last_end="was killed by SIGKILL")),
            "degraded",
            "prefill-0 was killed by SIGKILL: it is being restarted (restart 2)",
        ),
        (
            *("verified", findings(snapshots=but("prefill-0", restarts=2, last_end="was killed by SIGKILL"))),
            *("ready", None),
        ),
        (
            *("verified", findings(snapshots=exited("decode-0", 3, "failed", restarts=5)), "degraded"),
            "decode-0 exited with code 3 and keeps failing (restarts: 5): see `pdctl logs decode-0`",
        ),
        (
            *("verified", findings(snapshots=exited("decode-0", -9, "failed", last_end="did not answer")), "degraded"),
            "decode-0 did not answer and keeps failing",
        ),
        (
            *("verified", findings(snapshots=exited("decode-0", 0, stopped=True)), "degraded"),
            "decode-0 was stopped: `pdctl restart decode-0` starts it again",
        ),
        ("verified", findings(snapshots={}, agents_gone=["here"]), "down", "the agent on host here has ended"),
        ("verified", findings(snapshots={}, agents_silent=["here"]), "degraded", "here lives, but does not answer"),
        (
            *("verified", findings(snapshots={}, agents_gone=["here"], left=["pid 7 (x) on host here"]), "degraded"),
            "could not end pid 7 (x) on host here: end it by hand, then `pdctl down`",
        ),
        ("starting", findings(owner_lives=True), "starting", None),
        ("starting", findings(owner_lives=True, snapshots={}, agents_gone=["here"]), "starting", None),
        ("starting", findings(), "degraded", "the pdctl that was starting it has ended"),
        ("starting", findings(snapshots={}), "down", "router was not started"),
        ("stopping", findings(owner_lives=True), "degraded", "it is being stopped"),
        ("stopping", findings(), "degraded", "the pdctl that was stopping it has ended"),
        ("down", findings(), "down", None),
    ],
)
def test_state_and_reason(phase: str, found: Findings, expected: str, reason: str | None) -> None:
    status = make_status(PLAN, state(phase), found)
    assert status.state == expected
    assert (status.reason is None) == (reason is None)
    assert (reason or "") in (status.reason or "")


def test_what_has_ended_for_good_is_told_before_what_comes_back() -> None:
    snapshots = exited("router", -9, "restarting") | {"decode-0": exited("decode-0", 1, "failed")["decode-0"]}
    status = make_status(PLAN, state("verified"), findings(snapshots=snapshots))
    assert (status.reason or "").startswith("decode-0 exited with code 1 and keeps failing")


def test_what_all_waits_for_its_next_life_is_not_down() -> None:
    snapshots = {name: exited(name, -9, "restarting")[name] for name in ALL_READY}
    assert make_status(PLAN, state("verified"), findings(snapshots=snapshots)).state == "degraded"


def test_why_it_went_down_is_kept() -> None:
    status = make_status(PLAN, state("down", reason="decode-0 exited with code 1"), findings())
    assert (status.reason, status.endpoint, status.processes) == ("decode-0 exited with code 1", None, [])


def test_figures_of_a_process() -> None:
    loads = {"decode-0": Load(running=3)}
    snapshot = Snapshot(
        name="decode-0", pid=7, state="ready", ports={"api": 5, "metrics": 6}, cpu_percent=12.5, memory_bytes=99,
        uptime_s=4, warning="w", restarts=2, progress={"step": "s", "done": 1, "total": 2},
    )  # fmt: skip
    status = make_status(PLAN, state("verified"), findings(snapshots=ALL_READY | {"decode-0": snapshot}, loads=loads))
    decode = next(process for process in status.processes if process.name == "decode-0")
    assert decode.model_dump() == {
        "name": "decode-0", "role": "decode", "host": "here", "pid": 7, "port": 5, "metrics_port": 6, "state": "ready",
        "restarts": 2, "restart_in_s": None, "draining": False, "uptime_s": 4, "exit_code": None, "stopped": False,
            "last_end": None, "last_line": None,
        "cpu_percent": 12.5, "memory_bytes": 99, "progress": None, "warning": "w", "load": Load(running=3).model_dump(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("local", "fallbacks", "warning"),
    [
        (1, [], None),
        (1, ["several_choices"], None),
        (50, [], "computed 50 prompt tokens itself (100 were transferred): see its log, and prefill's"),
        (
            *(50, ["prompt_logprobs", "several_choices"]),
            "computed 50 prompt tokens itself (100 were transferred): the router had decode do so for some requests "
            "(prompt_logprobs, several_choices); for others, see its log, and prefill's",
        ),
    ],
)
def test_prompts_that_decode_computes_are_warned_of_with_the_reasons_that_are_known(
    local: float, fallbacks: list[str], warning: str | None
) -> None:
    decode = Load(locally_computed_tokens=local, transferred_tokens=100)
    loads = {"decode-0": decode, "prefill-0": Load(locally_computed_tokens=9), "router": Load(fallbacks=fallbacks)}
    status = make_status(PLAN, state("verified"), findings(loads=loads))
    assert {process.name: process.warning for process in status.processes if process.warning} == (
        {"decode-0": warning} if warning else {}
    )


LAUNCHER = """
import asyncio, sys
from pdctl.deployment.apply import prepare
from pdctl.deployment.launch import hold, launch
from pdctl.deployment.store import Store
from tests.deployment.deployment_harness import make_plan

async def main():
    folder = Store().folder("d")
    async with folder.lock(0):
        deployment = prepare(make_plan(options={OPTIONS}), folder)
        await launch(deployment, report=lambda text: print(text, flush=True))
    print("serving", flush=True)
    await hold(deployment)

asyncio.run(main())
"""


def launcher(**options: list[str]) -> Spawned:
    """A `pdctl up` of its own process, whose deployment is `d`."""
    code = textwrap.dedent(LAUNCHER).replace("{OPTIONS}", repr({k.replace("_", "-"): v for k, v in options.items()}))
    return Spawned([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def read_until(launcher: "subprocess.Popen[str]", word: str) -> None:
    assert launcher.stdout is not None
    assert any(word in line for line in launcher.stdout)


def kill(launcher: "subprocess.Popen[str]") -> None:
    launcher.kill()
    launcher.communicate()


async def down(deployment: Deployment) -> None:
    await stop_deployment(deployment)
    await deployment.close()


async def test_a_launcher_killed_while_serving_and_a_router_that_cannot_serve(folder: DeploymentFolder) -> None:
    with launcher() as process:
        read_until(process, "serving")
        kill(process)
    deployment = Deployment.attach(folder)
    status = await deployment.status()
    assert status.state == "ready"
    assert [(p.state, p.load.running, p.load.transferred_tokens) for p in status.processes] == [("ready", 3, 5)] * 3
    assert set(METRICS) == {"running", "transferred_tokens"}
    await deployment.http("here").post(f"{status.endpoint}/health", json=503)
    status = await deployment.status()
    assert status.state == "degraded"
    assert status.reason == """the router's /health answers 503: {"reason": "as told"}"""
    await down(deployment)


async def test_a_launcher_killed_while_starting(folder: DeploymentFolder) -> None:
    with launcher(decode_0=["--never-ready"]) as process:
        read_until(process, "decode-0: loading")
        deployment = Deployment.attach(folder)
        status = await deployment.status()
        assert status.state == "starting"
        progress = {p.name: p.progress for p in status.processes}["decode-0"]
        assert progress is not None
        assert (progress.step, progress.done, progress.total) == ("loading weights", 1, 4)
        kill(process)
    status = await deployment.status()
    assert (status.state, status.reason) == ("degraded", "the pdctl that was starting it has ended: run `pdctl down`")
    await down(deployment)


async def test_down_ends_a_launcher_that_is_starting(folder: DeploymentFolder) -> None:
    with launcher(decode_0=["--never-ready"]) as process:
        read_until(process, "decode-0: loading")
        deployment = Deployment.attach(folder)
        said: list[str] = []
        await stop_deployment(deployment, report=said.append)
        assert process.wait(20) != 0
        assert said[0] == f"pid {process.pid} is starting it: telling it to stop"
    assert (await deployment.status()).state == "down"
    await deployment.close()


async def test_down_kills_a_launcher_that_does_not_react(
    folder: DeploymentFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdctl.deployment.teardown.LAUNCHER_MARGIN_S", 0.2)
    with launcher(decode_0=["--never-ready"]) as process:
        read_until(process, "decode-0: loading")
        process.send_signal(signal.SIGSTOP)
        deployment = Deployment.attach(folder)
        await stop_deployment(deployment, grace_s=0)
        assert process.wait(20) == -signal.SIGKILL
    assert (await deployment.status()).state == "down"
    await deployment.close()


async def test_an_agent_that_hangs_and_then_is_killed_with_its_guardian(
    folder: DeploymentFolder, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at it is enough to end what they left; but while the agent only hangs, nothing is touched."""
    monkeypatch.setattr("pdctl.deployment.deployment.LIST_TIMEOUT_S", 0.5)
    monkeypatch.setattr("pdctl.hosts.host.CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr("pdctl.deployment.deployment.SWEEP_WAIT_S", 1.0)
    with launcher() as process:
        read_until(process, "serving")
        kill(process)
    deployment = Deployment.attach(folder)
    survivor = start_survivor(deployment)
    agent = json.loads((folder.path / "hosts" / "here" / "agent.json").read_text())
    os.kill(agent["pid"], signal.SIGSTOP)
    status = await deployment.status()
    assert (status.state, status.reason) == ("degraded", "the agent on host here lives, but does not answer")
    assert is_alive(survivor)
    for pid in (agent["guardian_pid"], agent["pid"]):
        os.kill(pid, signal.SIGKILL)
    psutil.wait_procs(living(runtime), timeout=1)
    status = await deployment.status()
    assert status.state == "down"
    assert status.reason is not None
    assert "the agent on host here has ended" in status.reason
    assert not is_alive(survivor)
    await deployment.close()


def start_survivor(deployment: Deployment) -> int:
    """A process with the run's tag that the agent's death does not end."""
    environment = {**os.environ, "PDCTL_RUN": deployment.agent_run("here")}
    return subprocess.Popen(["setsid", "sleep", "1000"], env=environment).pid


async def test_no_deployment(folder: DeploymentFolder) -> None:
    with pytest.raises(NotFoundError, match="there is no deployment 'd'"):
        Deployment.attach(folder)
