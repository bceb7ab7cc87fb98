"""Starting processes of a running deployment again."""

import asyncio
from collections.abc import Sequence
from time import monotonic

from pdctl.deployment.apply import Report, Start
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.store import ProcessId
from pdctl.errors import NotFoundError, StateError, StepTimeoutError
from pdctl.planning.inventory import Gpu, Inventory
from pdctl.planning.plan import ProcessPlan

GPU_MEMORY_S = 60.0  # for a driver to take back the memory of a process that has ended
_POLL_S = 1.0


async def restart(
    deployment: Deployment, names: Sequence[str], *, timeout_s: float | None = None, report: Report = lambda text: None
) -> None:
    """Stop processes where they still run, start them again, and send a request through every pair that they are of.

    The caller holds the folder's lock. What cannot be started is stopped again; the others go on.
    """
    _refuse_while_held(deployment)
    processes = _engines_of(deployment, names)
    state = deployment.state
    deployment.folder.write_state(state.model_copy(update={"phase": "starting", "owner": ProcessId.own()}))
    start = Start(deployment, report, again=processes)
    try:
        await _stop(deployment, processes)
        for process in processes:
            await _wait_for_memory(deployment, process)
        await start.to_its_end(start.again(), timeout_s)
    except BaseException:
        await asyncio.shield(_stop(deployment, processes))
        raise
    finally:
        deployment.folder.write_state(deployment.state.model_copy(update={"phase": "verified"}))


def _refuse_while_held(deployment: Deployment) -> None:
    state = deployment.state
    if state.phase != "verified":
        raise StateError(f"{deployment.name} is {state.phase}: only what has become ready can be restarted in part")
    if state.owner.is_alive():
        raise StateError(
            f"`pdctl up` (pid {state.owner.pid}) holds {deployment.name} in the foreground, and ends it when a process "
            "ends: start it with `pdctl up -d` to restart parts of it"
        )


def _engines_of(deployment: Deployment, names: Sequence[str]) -> list[ProcessPlan]:
    """The processes; an engine on several hosts is one."""
    known = {process.name: process for process in deployment.plan.processes}
    for name in names:
        if name not in known:
            raise NotFoundError(f"deployment {deployment.name!r} has no process {name!r}, only {', '.join(known)}")
    heads = {known[name].head or name for name in names}
    return [process for process in known.values() if (process.head or process.name) in heads]


async def _stop(deployment: Deployment, processes: Sequence[ProcessPlan]) -> None:
    async def stop(process: ProcessPlan) -> None:
        client = await deployment.client(process.host)
        await client.call("stop", name=process.name, timeout_s=process.stop_grace_s + GPU_MEMORY_S)

    await asyncio.gather(*(stop(process) for process in processes))


async def _wait_for_memory(deployment: Deployment, process: ProcessPlan) -> None:
    """An engine that starts on a GPU that is still full fails, or takes what is left."""
    host, folder = deployment.hosts[process.host], deployment.folder.agent_folder(process.host)
    deadline = monotonic() + GPU_MEMORY_S
    while process.gpus:
        inventory = Inventory.model_validate(await host.probe(folder, []))
        full = [gpu for gpu in inventory.gpus if gpu.index in process.gpus and not gpu.is_free]
        if not full:
            return
        if monotonic() > deadline:
            held = ", ".join(map(_held, full))
            raise StepTimeoutError(f"{process.name} was not started again: after {GPU_MEMORY_S:g} s, {held}")
        await asyncio.sleep(_POLL_S)  # the driver announces nothing


def _held(gpu: Gpu) -> str:
    by = f" by {', '.join(gpu.users)}" if gpu.users else ""
    return f"GPU {gpu.index} still has {gpu.memory_used_mb} MB in use{by}"
