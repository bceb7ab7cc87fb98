"""Starting a deployment so that it is either ready or gone, and holding it while its launcher is in the foreground."""

import asyncio
from collections.abc import Callable
from functools import partial

from pdctl.deployment.apply import apply
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.service import end_of_service
from pdctl.deployment.store import DeploymentFolder
from pdctl.deployment.teardown import stop_changing, teardown
from pdctl.deployment.uninterrupted import to_its_end
from pdctl.deployment.watch import ProcessWatch
from pdctl.errors import DegradedError, PdctlError, ProcessDiedError
from pdctl.hosts.client import AgentGoneError

LOCK_WAIT_S = 120.0  # for another pdctl, which may have to undo a change
_POLL_S = 0.2

Report = Callable[[str], None]


async def clear_way(folder: DeploymentFolder) -> Deployment | None:
    """The deployment if it runs already; what is left of a dead one is cleared away. The caller holds the lock.

    Raises DegradedError for a deployment that runs but does not serve: whether to end it is for its user to say.
    """
    state = folder.read_state()
    if state is None or state.phase == "down":
        return None
    deployment = Deployment.attach(folder)
    status = await deployment.status()
    if status.state == "ready" or (state.phase == "changing" and status.state != "down"):
        return deployment  # an interrupted change is for the next one to finish
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
        await to_its_end(partial(_undo, deployment, error, report))
        raise


async def hold(deployment: Deployment, *, report: Report = lambda text: None) -> None:
    """Return when somebody else stops the deployment; stop it, and raise, when cancelled and when it is lost.

    Lost: of a role no process is left that serves or that its agent restarts. A host that cannot be reached is waited
    for.
    """
    run_id = deployment.state.run_id
    try:
        await _until_lost(deployment)
    except BaseException as error:
        if await to_its_end(partial(_undo_own, deployment, run_id, error, report)):
            raise


async def _until_lost(deployment: Deployment) -> None:
    """Wait for an end that matters. What another pdctl changes it goes along with."""
    ends = end_of_service(lambda: deployment.folder.read_plan() or deployment.plan)
    while True:
        try:
            async with ProcessWatch(deployment, ends=ends, patience_s=None) as watch:
                await watch.until_one_dies()
        except (AgentGoneError, ProcessDiedError):
            if not await _was_changed(deployment):
                raise


async def _was_changed(deployment: Deployment) -> bool:
    """Whether there is another plan than the one that was gone by; that is taken then."""
    while (state := deployment.state).phase == "changing" and state.owner.is_alive():  # noqa: ASYNC110 nobody tells
        await asyncio.sleep(_POLL_S)
    plan = deployment.folder.read_plan()
    if plan is None or plan == deployment.plan:
        return False
    deployment.take_plan(plan)
    return True


async def _undo_own(
    deployment: Deployment, run_id: str, error: BaseException, report: Report, hurry: asyncio.Event
) -> bool:
    """Tear down the run, unless another pdctl has done so or is at it; whether that was done here."""
    if not _is_held(deployment, run_id):
        return False
    stop_changing(deployment.state)
    async with deployment.folder.lock(LOCK_WAIT_S):
        if not _is_held(deployment, run_id):
            return False
        deployment.take_plan(deployment.folder.read_plan() or deployment.plan)
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
