"""From what was found to what is said: the state of a deployment, as a pure function."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pdctl.deployment.models import DeploymentState, DeploymentStatus, Load, ProcessState, ProcessStatus
from pdctl.deployment.snapshot import Snapshot, describe_exit
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
    if not found.agents_silent and all(snapshot.has_exited for snapshot in found.snapshots.values()):
        return _Verdict("down", _why_nothing_runs(plan, state, found))
    if state.phase == "stopping":
        return _Verdict("degraded", "; ".join(filter(None, [state.reason, _stopping(found.owner_lives)])))
    if state.phase == "starting":
        return _Verdict("degraded", _INTERRUPTED_START)
    problem = _process_problem(plan, found) or found.router_problem
    return _Verdict("degraded", problem) if problem else _Verdict("ready")


def _stopping(owner_lives: bool) -> str:
    return "it is being stopped" if owner_lives else "the pdctl that was stopping it has ended: run `pdctl down`"


_INTERRUPTED_START = "the pdctl that was starting it has ended: run `pdctl down`"


def _why_nothing_runs(plan: Plan, state: State, found: Findings) -> str:
    if found.agents_gone:
        return f"the agent on host {', '.join(found.agents_gone)} has ended, and all that it ran with it"
    return _process_problem(plan, found) or "none of its processes runs: run `pdctl down`"


def _process_problem(plan: Plan, found: Findings) -> str | None:
    if found.agents_gone or found.agents_silent:
        hosts = ", ".join([*found.agents_gone, *found.agents_silent])
        return f"the agent on host {hosts} {'has ended' if found.agents_gone else 'lives, but does not answer'}"
    for process in plan.processes:
        snapshot = found.snapshots.get(process.name)
        if snapshot is None:
            return f"{process.name} was not started"
        if snapshot.exit_code is not None:
            return f"{describe_exit(process.name, snapshot.exit_code)}: see `pdctl logs {process.name}`"
    return None


def _process(process: ProcessPlan, plan: Plan, state: State, found: Findings) -> ProcessStatus:
    snapshot = found.snapshots.get(process.name)
    if snapshot is None:
        awaited = state.phase == "starting" and found.owner_lives
        return ProcessStatus(
            name=process.name, role=process.role, host=process.host, state="starting" if awaited else "unknown"
        )
    load = found.loads.get(process.name, Load())
    return ProcessStatus(
        name=process.name,
        role=process.role,
        host=process.host,
        pid=snapshot.pid,
        port=port_of(process, snapshot, "api"),
        metrics_port=port_of(process, snapshot, "metrics"),
        state=_process_state(process, snapshot, state),
        uptime_s=snapshot.uptime_s,
        exit_code=snapshot.exit_code,
        cpu_percent=snapshot.cpu_percent,
        memory_bytes=snapshot.memory_bytes,
        progress=snapshot.progress if snapshot.state == "starting" else None,
        warning=snapshot.warning or _pd_warning(process, plan, load),
        load=load,
    )


def _pd_warning(process: ProcessPlan, plan: Plan, load: Load) -> str | None:
    """Whether decode computes prompts that it should be sent, unless the router is told that it may."""
    local, moved = load.locally_computed_tokens or 0, load.transferred_tokens or 0
    may = "--pd-min-tokens" in plan.router.argv
    if process.role != "decode" or may or local <= LOCAL_SHARE * (local + moved):
        return None
    return f"computed {local:.0f} prompt tokens itself ({moved:.0f} were transferred): see its log, and prefill's"


def _process_state(process: ProcessPlan, snapshot: Snapshot, state: State) -> ProcessState:
    """A process that does not notify was seen to be ready before the deployment was verified."""
    if snapshot.state == "starting" and process.readiness.kind != "notify" and state.phase == "verified":
        return "ready"
    return snapshot.state


def port_of(process: ProcessPlan, snapshot: Snapshot, purpose: str) -> int | None:
    """The port that a process has bound, or was told to bind; None while it is not known."""
    return snapshot.ports.get(purpose) or process.ports.get(purpose) or None
