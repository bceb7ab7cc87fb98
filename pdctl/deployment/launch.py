"""Starting a deployment so that it is either ready or gone, and holding it while its launcher is in the foreground."""

from collections.abc import Callable

from pdctl.deployment.apply import apply
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.store import DeploymentFolder
from pdctl.deployment.teardown import finish, teardown
from pdctl.deployment.watch import ProcessWatch
from pdctl.errors import PdctlError, StateError

LOCK_WAIT_S = 60.0

Report = Callable[[str], None]


async def clear_way(folder: DeploymentFolder) -> Deployment | None:
    """The deployment if it runs already; what is left of a dead one is cleared away. The caller holds the lock.

    Raises StateError for a deployment that runs but does not serve: whether to end it is for its user to say.
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
            raise StateError(
                f"deployment {folder.name!r} runs, but is {status.state} ({status.reason}): stop it first with"
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
        await _undo(deployment, error, report)
        raise


async def hold(deployment: Deployment, *, report: Report = lambda text: None) -> None:
    """Return when somebody else stops the deployment; stop it, and raise, on a process's death and when cancelled."""
    try:
        async with ProcessWatch(deployment) as watch:
            await watch.until_one_dies()
    except BaseException as error:
        if deployment.state.phase in ("stopping", "down"):
            return
        async with deployment.folder.lock(LOCK_WAIT_S):
            await _undo(deployment, error, report)
        raise


async def _undo(deployment: Deployment, error: BaseException, report: Report) -> None:
    reason = str(error) if isinstance(error, PdctlError) else "it was interrupted"
    try:
        await finish(deployment, reason, report=report)
    except PdctlError as second:
        second.detail = f"{second.detail}\nwhile handling: {reason}\n{getattr(error, 'detail', '')}".strip()
        raise
