"""Stopping single processes of a running deployment so that others can have their places."""

import asyncio
from collections.abc import Sequence
from time import monotonic

from pdctl.deployment.deployment import Deployment
from pdctl.deployment.together import together
from pdctl.errors import PlanError, StepTimeoutError
from pdctl.planning.inventory import Gpu, Inventory
from pdctl.planning.plan import ProcessPlan

GPU_MEMORY_S = 60.0  # for a driver to take back the memory of a process that has ended
KILL_MARGIN_S = 30.0  # for SIGKILL and looking again, beyond the grace
_POLL_S = 1.0


async def stop_processes(deployment: Deployment, processes: Sequence[ProcessPlan]) -> None:
    """Stop processes where they run; returns when nothing of them lives. They are not restarted any more."""

    async def stop(process: ProcessPlan) -> None:
        client = await deployment.client(process.host)
        if process.name in [answer["name"] for answer in await client.call("list")]:
            grace = process.stop_grace_s
            await client.call("stop", name=process.name, grace_s=grace, timeout_s=grace + KILL_MARGIN_S)

    await together(stop(process) for process in processes)


async def wait_for_memory(deployment: Deployment, process: ProcessPlan) -> None:
    """Wait until a process's GPUs are free: one that starts on a GPU that is still full fails, or takes what is left.

    Raises StepTimeoutError, and PlanError where nobody says what is in use.
    """
    host, folder = deployment.hosts[process.host], deployment.agent_folder(process.host)
    deadline = monotonic() + GPU_MEMORY_S
    while process.gpus:
        inventory = Inventory.model_validate(await host.probe(folder, []))
        if inventory.gpu_problem:
            raise PlanError(f"{process.name} was not started: host {host.name}: {inventory.gpu_problem}")
        full = [gpu for gpu in inventory.gpus if gpu.index in process.gpus and not gpu.is_free]
        if not full:
            return
        if monotonic() > deadline:
            held = ", ".join(map(_held, full))
            raise StepTimeoutError(f"{process.name} was not started: after {GPU_MEMORY_S:g} s, {held}")
        await asyncio.sleep(_POLL_S)  # the driver announces nothing


def _held(gpu: Gpu) -> str:
    by = f" by {', '.join(gpu.users)}" if gpu.users else ""
    return f"GPU {gpu.index} still has {gpu.memory_used_mb} MB in use{by}"
