"""From what was found to what is said: the state of a deployment, as a pure function."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pdctl.deployment.models import DeploymentState, DeploymentStatus, Load, ProcessState, ProcessStatus
from pdctl.deployment.snapshot import Snapshot, describe_end
from pdctl.deployment.store import State
from pdctl.planning.plan import Plan, ProcessPlan

# Of a prompt's tokens, some engines compute the last one again on decode.
LOCAL_SHARE = 0.02


class Findings(NamedTuple):
    """What a look at a deployment found."""

    owner_lives: bool  # the pdctl that starts or stops it
    agents_gone: Sequence[str]  # hosts whose agent has ended, with all that it ran
    agents_silent: Sequence[str]  # hosts whose agent lives, but does not answer
    snapshots: Mapping[str, Snapshot]  # by process
    loads: Mapping[str, Load]  # by process
    router_problem: str | None  # why the router's /health is not 200
    left: Sequence[str] = ()  # what an agent left, and a sweep could not end
    unreachable: Sequence[str] = ()  # hosts that cannot be reached: what runs there may well go on


class _Verdict(NamedTuple):
    state: DeploymentState
    reason: str | None = None


def make_status(plan: Plan, state: State, found: Findings) -> DeploymentStatus:
    """Describe the deployment truthfully."""
    verdict = _judge(plan, state, found)
    processes = [] if state.phase == "down" else [_process(process, plan, state, found) for process in plan.processes]
    return DeploymentStatus(
        name=plan.name,
        state=verdict.state,
        endpoint=state.endpoint if state.phase != "down" else None,
        model=plan.model,
        reason=verdict.reason,
        processes=processes,
    )


def _judge(plan: Plan, state: State, found: Findings) -> _Verdict:
    if state.phase == "down":
        return _Verdict("down", state.reason)
    if state.phase == "starting" and found.owner_lives:
        return _Verdict("starting")
    if found.left:
        return _Verdict("degraded", f"could not end {', '.join(found.left)}: end it by hand, then `pdctl down`")
    unseen = [*found.agents_silent, *found.unreachable]
    if not unseen and all(snapshot.has_exited for snapshot in found.snapshots.values()):
        return _Verdict("down", _why_nothing_runs(plan, state, found))
    if state.phase == "stopping":
        return _Verdict("degraded", "; ".join(filter(None, [state.reason, _stopping(found.owner_lives)])))
    if state.phase == "starting":
        return _Verdict("degraded", _INTERRUPTED_START)
    if state.phase == "changing" and found.owner_lives:
        changing = f"pid {state.owner.pid} is changing it"
        return _Verdict("degraded", found.router_problem) if found.router_problem else _Verdict("ready", changing)
    if state.phase == "changing":
        return _Verdict("degraded", _INTERRUPTED_CHANGE)
    problem = _process_problem(plan, found) or found.router_problem
    return _Verdict("degraded", problem) if problem else _Verdict("ready")


def _stopping(owner_lives: bool) -> str:
    return "it is being stopped" if owner_lives else "the pdctl that was stopping it has ended: run `pdctl down`"


_INTERRUPTED_START = "the pdctl that was starting it has ended: run `pdctl down`"
_INTERRUPTED_CHANGE = (
    "the pdctl that was changing it has ended: `pdctl up` with the topology that it is to have brings it there"
)


def _why_nothing_runs(plan: Plan, state: State, found: Findings) -> str:
    if found.agents_gone:
        return f"the agent on host {', '.join(found.agents_gone)} has ended, and all that it ran with it"
    return _process_problem(plan, found) or "none of its processes runs: run `pdctl down`"


def _process_problem(plan: Plan, found: Findings) -> str | None:
    if found.unreachable:
        return f"host {', '.join(found.unreachable)} cannot be reached: what runs there may go on"
    if found.agents_gone or found.agents_silent:
        hosts = ", ".join([*found.agents_gone, *found.agents_silent])
        return f"the agent on host {hosts} {'has ended' if found.agents_gone else 'lives, but does not answer'}"
    snapshots = [found.snapshots.get(process.name) for process in plan.processes]
    for process, snapshot in zip(plan.processes, snapshots, strict=True):
        if snapshot is None:
            return f"{process.name} was not started"
        if snapshot.has_exited:
            return _end(snapshot)
    return next((_restart(snapshot) for snapshot in snapshots if snapshot and _is_coming_back(snapshot)), None)


def _end(snapshot: Snapshot) -> str:
    if snapshot.stopped:
        return f"{snapshot.name} was stopped: `pdctl restart {snapshot.name}` starts it again"
    return f"{describe_end(snapshot)}: see `pdctl logs {snapshot.name}`"


def _is_coming_back(snapshot: Snapshot) -> bool:
    return snapshot.state == "restarting" or (snapshot.state == "starting" and snapshot.restarts > 0)


def _restart(snapshot: Snapshot) -> str:
    """Says the same from the end of one life until the next is ready."""
    number = snapshot.restarts + (snapshot.state == "restarting")
    return f"{describe_end(snapshot)}: it is being restarted (restart {number})"


def _process(process: ProcessPlan, plan: Plan, state: State, found: Findings) -> ProcessStatus:
    snapshot = found.snapshots.get(process.name)
    if snapshot is None:
        return ProcessStatus(
            name=process.name, role=process.role, host=process.host, state=_state_unseen(process, state, found)
        )
    load = found.loads.get(process.name, Load())
    return ProcessStatus(
        name=process.name,
        role=process.role,
        host=process.host,
        pid=snapshot.pid,
        port=port_of(process, snapshot, "api"),
        metrics_port=port_of(process, snapshot, "metrics"),
        state=snapshot.state,
        restarts=snapshot.restarts,
        restart_in_s=snapshot.restart_in_s,
        draining=_is_draining(process, snapshot, plan, found),
        uptime_s=snapshot.uptime_s,
        exit_code=snapshot.exit_code,
        stopped=snapshot.stopped,
        last_end=snapshot.last_end,
        last_line=snapshot.last_lines[-1] if snapshot.last_lines else None,
        cpu_percent=snapshot.cpu_percent,
        memory_bytes=snapshot.memory_bytes,
        progress=snapshot.progress if snapshot.state == "starting" else None,
        warning=snapshot.warning or _pd_warning(process, plan, load, found),
        load=load,
    )


def _state_unseen(process: ProcessPlan, state: State, found: Findings) -> ProcessState:
    if process.host in found.unreachable:
        return "unreachable"
    if process.host in found.agents_gone and not found.left:
        return "exited"
    return "starting" if state.phase == "starting" and found.owner_lives else "unknown"


def _pd_warning(process: ProcessPlan, plan: Plan, load: Load, found: Findings) -> str | None:
    """Whether decode computes prompts that it should be sent, unless the router is told that it may."""
    local, moved = load.locally_computed_tokens or 0, load.transferred_tokens or 0
    may = "--pd-min-tokens" in plan.router.argv
    if process.role != "decode" or may or local <= LOCAL_SHARE * (local + moved):
        return None
    known = found.loads.get(plan.router.name, Load()).fallbacks
    told = f"the router had decode do so for some requests ({', '.join(known)}); for others, " if known else ""
    return f"computed {local:.0f} prompt tokens itself ({moved:.0f} were transferred): {told}see its log, and prefill's"


def _is_draining(process: ProcessPlan, snapshot: Snapshot, plan: Plan, found: Findings) -> bool:
    known = found.loads.get(plan.router.name, Load()).draining
    return f"{process.address}:{port_of(process, snapshot, 'api')}" in known


def port_of(process: ProcessPlan, snapshot: Snapshot, purpose: str) -> int | None:
    """The port that a process has bound, or was told to bind; None while it is not known."""
    return snapshot.ports.get(purpose) or process.ports.get(purpose) or None
