"""Whether a deployment can still serve, or will be able to again."""

from collections.abc import Callable, Mapping
from functools import partial

from pdctl.deployment.snapshot import Snapshot
from pdctl.deployment.watch import Ends
from pdctl.planning.plan import Plan, Role


def end_of_service(plan: Callable[[], Plan]) -> Ends:
    """Whether a process's end leaves a role without any that serves or comes back by itself.

    What was told to stop does not count: whoever did that may start it again. ``plan``: the one that is in force.
    """
    return partial(_ends_service, plan)


def _ends_service(current: Callable[[], Plan], snapshots: Mapping[str, Snapshot], changed: Snapshot) -> bool:
    if not _is_lost(changed):
        return False
    plan = current()
    role = next((process.role for process in plan.processes if process.name == changed.name), None)
    return role is not None and all(_engines_lost(plan, snapshots, role).values())


def _engines_lost(plan: Plan, snapshots: Mapping[str, Snapshot], role: Role) -> dict[str, bool]:
    """Each of a role, by the name of its head: one on several hosts needs all its processes."""
    lost: dict[str, bool] = {}
    for process in plan.processes:
        if process.role == role:
            head, snapshot = process.head or process.name, snapshots.get(process.name)
            lost[head] = lost.get(head, False) or (snapshot is not None and _is_lost(snapshot))
    return lost


def _is_lost(snapshot: Snapshot) -> bool:
    return snapshot.has_exited and not snapshot.stopped
