"""Plans whose processes are small scripts, and a look at /proc that does not go through the code under test."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from pdctl.deployment.apply import Report, prepare
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.launch import launch
from pdctl.deployment.store import DeploymentFolder
from pdctl.deployment.teardown import stop_deployment
from pdctl.planning.plan import ROUTER_PLACEHOLDER, HostPlan, Plan, ProcessPlan, Readiness, Role
from pdctl.topology.restart import Restart

FAKE = Path(__file__).with_name("fake_process.py")
NO_RESTART = Restart(policy="never")
METRICS = {"running": "fake_running", "transferred_tokens": 'fake_tokens_total{source="b"}'}


def process(
    name: str,
    role: Role,
    options: Sequence[str] = (),
    *,
    readiness: Readiness | None = None,
    port: int = 0,
    restart: Restart | None = None,
) -> ProcessPlan:
    router = [] if role == "router" else ["--router", ROUTER_PLACEHOLDER]
    return ProcessPlan(
        name=name,
        role=role,
        host="here",
        argv=(sys.executable, str(FAKE), "--role", role, "--port", str(port), *router, *options),
        ports={"api": port, "metrics": port},
        readiness=readiness or Readiness(timeout_s=30),
        stop_grace_s=10,
        restart=restart or Restart(),
        metrics=METRICS,
    )


def make_plan(
    prefill: int = 1,
    decode: int = 1,
    mixed: int = 0,
    *,
    options: Mapping[str, Sequence[str]] | None = None,
    name: str = "d",
    restart: Restart | None = None,
) -> Plan:
    """A plan with so many engines; ``options``: of the script, by process; ``restart``: of all processes."""
    counts: dict[Role, int] = {"prefill": prefill, "decode": decode, "mixed": mixed}
    names = [(f"{role}-{i}", role) for role, count in counts.items() for i in range(count)]
    by_name = options or {}
    return Plan(
        name=name,
        model="fake",
        engine="fake",
        hosts={"here": HostPlan(name="here")},
        router=process("router", "router", by_name.get("router", ()), restart=restart),
        engines=tuple(process(name, role, by_name.get(name, ()), restart=restart) for name, role in names),
    )


def living(runtime: Path) -> list[psutil.Process]:
    """Every live process that was started, at whatever remove, with this runtime folder."""
    return [process for process in psutil.process_iter() if _started_with(process, runtime)]


def _started_with(process: psutil.Process, runtime: Path) -> bool:
    try:
        return process.environ().get("XDG_RUNTIME_DIR") == str(runtime) and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def is_alive(pid: int | None) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@asynccontextmanager
async def started(
    folder: DeploymentFolder, plan: Plan, report: Report = lambda text: None
) -> AsyncIterator[Deployment]:
    deployment = None
    try:
        async with folder.lock(0):
            deployment = prepare(plan, folder)
            await launch(deployment, report=report)
        yield deployment
    finally:
        if deployment is not None:
            await stop_deployment(deployment)
            await deployment.close()


async def state_of(deployment: Deployment, name: str, state: str) -> int:
    """Wait for a process's state, which nobody announces to a reader of the status; its pid."""
    async with asyncio.timeout(20):
        while True:
            for process in (await deployment.status()).processes:
                if (process.name, process.state) == (name, state):
                    return process.pid or 0
            await asyncio.sleep(0.02)


def kill_agent(folder: DeploymentFolder, host: str = "here") -> None:
    psutil.Process(json.loads((folder.path / "hosts" / host / "agent.json").read_text())["pid"]).kill()
