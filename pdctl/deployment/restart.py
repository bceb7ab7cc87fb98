"""Starting processes of a running deployment again."""

import asyncio
from collections.abc import Sequence

from pdctl.deployment.apply import Report, Start
from pdctl.deployment.changes import Limits, Proposal, make_change
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.process_stop import stop_processes, wait_for_memory
from pdctl.deployment.store import ProcessId
from pdctl.errors import NotFoundError, StateError
from pdctl.planning.changes import replacing
from pdctl.planning.plan import ProcessPlan


async def restart(
    deployment: Deployment, names: Sequence[str], *, timeout_s: float | None = None, report: Report = lambda text: None
) -> None:
    """Stop processes where they still run, start them again, and send a request through every pair that they are of.

    The caller holds the folder's lock. What cannot be started is stopped again; the others go on.
    """
    refuse_unless_ready(deployment)
    processes = _engines_of(deployment, names)
    folder, state = deployment.folder, deployment.state
    folder.write_state(state.model_copy(update={"phase": "changing", "owner": ProcessId.own()}))
    start = Start(deployment, report, again=processes)
    try:
        await stop_processes(deployment, processes)
        for process in processes:
            await wait_for_memory(deployment, process)
        await start.to_its_end(start.again(), timeout_s)
    except BaseException:
        await asyncio.shield(stop_processes(deployment, processes))
        raise
    finally:
        # A change that was interrupted before is still for the next one to finish.
        folder.write_state(deployment.state.model_copy(update={"phase": state.phase, "owner": state.owner}))


async def restart_rolling(
    deployment: Deployment, names: Sequence[str], limits: Limits, report: Report = lambda text: None
) -> None:
    """Start engines again, one after the other, so that requests are served all the time. No names: all of them.

    The router too, if it is named: while it starts again, new requests are refused. The caller holds the folder's lock.
    """
    refuse_unless_ready(deployment)
    processes = _engines_of(deployment, names) if names else deployment.plan.engines
    change = replacing(deployment.plan, [process.name for process in processes])
    await make_change(deployment, Proposal(change, None), limits, report)


def refuse_unless_ready(deployment: Deployment) -> None:
    """Raise StateError for a deployment that has not become ready, or is being stopped."""
    phase = deployment.state.phase
    if phase not in ("verified", "changing"):
        raise StateError(f"{deployment.name} is {phase}: only what has become ready can be changed")


def _engines_of(deployment: Deployment, names: Sequence[str]) -> list[ProcessPlan]:
    """The processes; an engine on several hosts is one."""
    known = {process.name: process for process in deployment.plan.processes}
    for name in names:
        if name not in known:
            raise NotFoundError(f"deployment {deployment.name!r} has no process {name!r}, only {', '.join(known)}")
    heads = {known[name].head or name for name in names}
    return [process for process in known.values() if (process.head or process.name) in heads]
