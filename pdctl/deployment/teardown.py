"""Ending a deployment so that nothing of it is left, whatever state it is in."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from time import monotonic
from typing import NamedTuple

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.store import BusyError, ProcessId, State
from pdctl.deployment.uninterrupted import until_hurried
from pdctl.errors import HostUnreachableError, LeftoverError, StateError, StepTimeoutError
from pdctl.hosts.client import AgentCallError, AgentGoneError
from pdctl.planning.plan import ProcessPlan, Role

# The router first: it takes no new requests and lets those under way finish while the engines still run.
STOP_ORDER: tuple[tuple[Role, ...], ...] = (("router",), ("decode", "mixed"), ("prefill",))
KILL_MARGIN_S = 30.0  # for SIGKILL and looking again, beyond the grace
LIST_TIMEOUT_S = 5.0  # an agent that does not answer within it is taken for dead
AGENT_END_S = 10.0  # for agent and guardian to end once nothing runs
LOCK_STEP_S = 0.5  # how often the state is looked at while another holds the lock
LAUNCHER_MARGIN_S = 60.0  # for a launcher that was told to stop, beyond the graces

Report = Callable[[str], None]


async def stop_deployment(
    deployment: Deployment, *, grace_s: float | None = None, report: Report = lambda text: None
) -> None:
    """`pdctl down`: end it whatever state it is in; also a launcher that is starting it. Idempotent."""
    async with AsyncExitStack() as lock:
        await _take_over(deployment, lock, _longest_stop(deployment, grace_s) + LAUNCHER_MARGIN_S, report)
        deployment.take_plan(deployment.folder.read_plan() or deployment.plan)  # it may have been changed meanwhile
        state = deployment.state
        if state.phase == "down":
            await end_agents(deployment, report, for_good=True)
        else:
            await teardown(deployment, grace_s=grace_s, report=report)


async def teardown(
    deployment: Deployment,
    *,
    grace_s: float | None = None,
    reason: str | None = None,
    hurry: asyncio.Event | None = None,
    report: Report = lambda text: None,
) -> None:
    """Stop router, decode and prefill in this order, then the agents; raises LeftoverError if anything still lives.

    The caller holds the folder's lock. ``grace_s`` replaces the plan's own; once ``hurry`` is set, everything is
    killed at once. ``reason``: why it is down.
    """
    folder, state = deployment.folder, deployment.state
    with suppress(StateError):  # a full disk must not keep it running
        folder.write_state(state.model_copy(update={"phase": "stopping", "owner": ProcessId.own(), "reason": reason}))
    await until_hurried(_stop_in_order(deployment, grace_s, report), hurry or asyncio.Event())
    await end_agents(deployment, report, for_good=True)
    folder.token_path.unlink(missing_ok=True)
    folder.write_state(state.model_copy(update={"phase": "down", "endpoint": None, "reason": reason}))


def stop_changing(state: State) -> None:
    """Tell a pdctl that is changing the deployment to stop, and to undo what it has done."""
    if state.phase == "changing":
        _signal(state, signal.SIGTERM)


async def _take_over(deployment: Deployment, lock: AsyncExitStack, limit_s: float, report: Report) -> None:
    """Get the lock. A launcher that is starting the deployment is told to stop, and killed after the limit."""
    deadline, told = monotonic() + limit_s, False
    while True:
        try:
            await lock.enter_async_context(deployment.folder.lock(LOCK_STEP_S))
            return
        except BusyError:
            state = deployment.state
            starting = state.phase in ("starting", "changing") and state.owner.is_alive()
            if starting and not told:
                report(f"pid {state.owner.pid} is {state.phase} it: telling it to stop")
                _signal(state, signal.SIGTERM)
                deadline, told = monotonic() + limit_s, True
            elif monotonic() > deadline and not starting:
                raise
            elif monotonic() > deadline:
                report(f"pid {state.owner.pid} does not stop: SIGKILL")
                _signal(state, signal.SIGKILL)


async def _stop_in_order(deployment: Deployment, grace_s: float | None, report: Report) -> None:
    found = await asyncio.gather(*(_running(deployment, host) for host in deployment.hosts))
    running = [name for names in found for name in names]
    for roles in STOP_ORDER:
        stage = [process for process in deployment.plan.processes if process.role in roles and process.name in running]
        if stage:
            report(f"stopping {', '.join(process.name for process in stage)}")
        await asyncio.gather(*(_stop(deployment, process, grace_s, report) for process in stage))


async def _running(deployment: Deployment, host: str) -> list[str]:
    """The processes that a host's agent has; none without an agent that can be spoken to."""
    try:
        client = await deployment.client(host)
        snapshots = await client.call("list", timeout_s=LIST_TIMEOUT_S)
    except (AgentGoneError, AgentCallError, HostUnreachableError):
        return []
    return [snapshot["name"] for snapshot in snapshots if snapshot["state"] not in ("exited", "failed")]


async def _stop(deployment: Deployment, process: ProcessPlan, grace_s: float | None, report: Report) -> None:
    grace = process.stop_grace_s if grace_s is None else grace_s
    try:
        client = await deployment.client(process.host)
        await client.call("stop", name=process.name, grace_s=grace, timeout_s=grace + KILL_MARGIN_S)
    except (AgentGoneError, AgentCallError, HostUnreachableError) as error:
        report(str(error))  # what still lives is killed, and looked for, in the end


async def end_agents(deployment: Deployment, report: Report, *, for_good: bool = False) -> None:
    """End the agents with all that they still have, then look for anything that carries the run's tag.

    On all hosts that can be reached, whatever is wrong with others. Raises LeftoverError and HostUnreachableError.
    ``for_good``: no agent of the run may come after that.
    """
    ends = await asyncio.gather(*(_end_host(deployment, name, report, for_good) for name in deployment.hosts))
    left = [process for end in ends for process in end.left]
    if left:
        raise LeftoverError(f"{deployment.name}: could not end {', '.join(left)}: end them by hand, then `pdctl down`")
    unreached = [end.unreached for end in ends if end.unreached is not None]
    if unreached:
        raise HostUnreachableError(
            f"{deployment.name}: nothing of it runs on the hosts that were reached, but {'; '.join(unreached)}:"
            " run `pdctl down` again when that is mended"
        )


class _HostEnd(NamedTuple):
    left: list[str]
    unreached: str | None = None  # why the host could not be looked at


async def _end_host(deployment: Deployment, name: str, report: Report, for_good: bool) -> _HostEnd:
    host, folder = deployment.hosts[name], deployment.agent_folder(name)
    try:
        with suppress(AgentGoneError, AgentCallError):
            client = await deployment.client(name)
            await client.call("shutdown", grace=0, timeout_s=KILL_MARGIN_S)
        run = deployment.agent_run(name)
        sweep = await host.sweep(folder, run, AGENT_END_S, force=True, for_good=for_good)
        planned = [
            port for process in deployment.plan.processes if process.host == name for port in process.given_ports
        ]
        for line in await host.remains(folder, planned, deployment.state.started):
            report(f"host {name}: {line}")
    except (HostUnreachableError, StepTimeoutError) as error:
        return _HostEnd([], str(error))
    left = [f"{process} on host {name}" for process in sweep.left]
    left += [f"the agent of host {name}: it runs on another machine"] if sweep.agent_lives else []
    return _HostEnd(left)


def _signal(state: State, number: int) -> None:
    """Signal the launcher, unless it has ended."""
    with suppress(ProcessLookupError):
        if state.owner.is_alive():
            os.kill(state.owner.pid, number)


def _longest_stop(deployment: Deployment, grace_s: float | None) -> float:
    graces = [process.stop_grace_s for process in deployment.plan.processes]
    return len(STOP_ORDER) * (max(graces) if grace_s is None else grace_s)
