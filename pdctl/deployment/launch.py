"""Starting a deployment so that it is either ready or gone, and holding it while its launcher is in the foreground."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TypeVar

from pdctl.deployment.apply import apply
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.store import DeploymentFolder
from pdctl.deployment.teardown import teardown
from pdctl.deployment.watch import ProcessWatch
from pdctl.errors import DegradedError, PdctlError

LOCK_WAIT_S = 60.0

Report = Callable[[str], None]
Result = TypeVar("Result")


async def clear_way(folder: DeploymentFolder) -> Deployment | None:
    """The deployment if it runs already; what is left of a dead one is cleared away. The caller holds the lock.

    Raises DegradedError for a deployment that runs but does not serve: whether to end it is for its user to say.
    """
    state = folder.read_state()
    if state is None or state.phase == "down":
        return None
    deployment = Deployment.attach(folder)
    status = await deployment.status()
    if status.state == "ready":
        return deployment
    try:
        if status.state != "down":
            raise DegradedError(
                f"deployment {folder.name!r} runs, but is {status.state}: {status.reason}; stop it first with"
                f" `pdctl down --name {folder.name}`"
            )
        await teardown(deployment)
    finally:
        await deployment.close()
    return None


async def launch(deployment: Deployment, *, timeout_s: float | None = None, report: Report = lambda text: None) -> None:
    """Apply the plan; on any error, and when cancelled, nothing is left. The caller holds the lock."""
    try:
        await apply(deployment, timeout_s=timeout_s, report=report)
    except BaseException as error:
        await _to_its_end(partial(_undo, deployment, error, report))
        raise


async def hold(deployment: Deployment, *, report: Report = lambda text: None) -> None:
    """Return when somebody else stops the deployment; stop it, and raise, on a process's death and when cancelled."""
    run_id = deployment.state.run_id
    try:
        async with ProcessWatch(deployment) as watch:
            await watch.until_one_dies()
    except BaseException as error:
        if await _to_its_end(partial(_undo_own, deployment, run_id, error, report)):
            raise


async def _to_its_end(work: Callable[[asyncio.Event], Coroutine[object, object, Result]]) -> Result:
    """The result of ``work(hurry)``: cancelling the caller does not stop it, but sets ``hurry``."""
    hurry = asyncio.Event()
    task = asyncio.create_task(work(hurry))
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
            break
        hurry.set()
    return task.result()


async def _undo_own(
    deployment: Deployment, run_id: str, error: BaseException, report: Report, hurry: asyncio.Event
) -> bool:
    """Tear down the run, unless another pdctl has done so or is at it; whether that was done here."""
    if not _is_held(deployment, run_id):
        return False
    async with deployment.folder.lock(LOCK_WAIT_S):
        if not _is_held(deployment, run_id):
            return False
        await _undo(deployment, error, report, hurry)
    return True


def _is_held(deployment: Deployment, run_id: str) -> bool:
    """While we slept, another may have stopped this run, and started the next in the same folder."""
    state = deployment.state
    return state.run_id == run_id and state.phase not in ("stopping", "down")


async def _undo(deployment: Deployment, error: BaseException, report: Report, hurry: asyncio.Event) -> None:
    reason = str(error) if isinstance(error, PdctlError) else "it was interrupted"
    try:
        await teardown(deployment, reason=reason, hurry=hurry, report=report)
    except PdctlError as second:
        second.detail = f"{second.detail}\nwhile handling: {reason}\n{getattr(error, 'detail', '')}".strip()
        raise
