"""Changes of a running deployment: what a wanted topology means for it, and making it so."""

import asyncio
from collections.abc import Collection
from functools import partial
from typing import NamedTuple

from pdctl.deployment.adoption import publish
from pdctl.deployment.apply import Report
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.port_reservation import reserve_ports
from pdctl.deployment.rolling import Rolling, supervise
from pdctl.deployment.secrets import read_secrets
from pdctl.deployment.store import ProcessId
from pdctl.deployment.teardown import end_agents
from pdctl.deployment.uninterrupted import to_its_end, until_hurried
from pdctl.errors import PdctlError, PlanError
from pdctl.planning.changes import PlanChange, difference, refuse_another_deployment
from pdctl.planning.plan import Plan
from pdctl.planning.running import RunningEngine
from pdctl.planning.topology_plan import Planned, TakenPorts, plan_topology
from pdctl.topology.models import Topology
from pdctl.topology.resizing import with_one_more

DRAIN_S = 120.0


class Proposal(NamedTuple):
    """A change that can be made. `planned`: of the topology that it leads to; None: that is not known."""

    change: PlanChange
    planned: Planned | None


class Limits(NamedTuple):
    """How long the steps of a change may take."""

    drain_s: float = DRAIN_S  # for requests in flight at an engine that is taken out
    ready_s: float | None = None  # for what is started, to be verified; None: each step's own limit


async def propose(
    deployment: Deployment, topology: Topology, *, leaving: Collection[str] = (), taken: TakenPorts | None = None
) -> Proposal:
    """Look at the hosts, and say what a topology would change. `leaving`, `taken`: see `plan_topology`.

    Raises PlanError, also for what cannot be changed while it serves.
    """
    root = deployment.folder.path.parent
    planned = await plan_topology(topology, root, deployment.plan, leaving=leaving, taken=taken)
    change = difference(deployment.plan, planned.plan)
    refuse_another_deployment(change)
    return Proposal(change, planned)


async def make_change(
    deployment: Deployment, proposal: Proposal, limits: Limits, report: Report = lambda text: None
) -> None:
    """Change the deployment, so that requests are served all the time. The caller holds the folder's lock.

    Whatever it raises, plan and topology on disk are those of before, and so is what runs: the error says it, and where
    that did not succeed.
    """
    folder, state = deployment.folder, deployment.state
    resumed = folder.read_next_plan() if state.phase == "changing" else None
    folder.write_next_plan(proposal.change.wanted)
    folder.write_state(state.model_copy(update={"phase": "changing", "owner": ProcessId.own()}))
    try:
        await _Change(deployment, proposal, limits, report, resumed).run()
    finally:
        folder.write_state(deployment.state.model_copy(update={"phase": "verified", "owner": state.owner}))
        folder.write_next_plan(None)
    await publish(deployment)


class _Change:
    """`resumed`: the plan that a change led to which was interrupted."""

    def __init__(
        self, deployment: Deployment, proposal: Proposal, limits: Limits, report: Report, resumed: Plan | None
    ) -> None:
        self._deployment = deployment
        self._folder = deployment.folder
        self._change = proposal.change
        self._current, self._wanted = proposal.change.current, proposal.change.wanted
        self._planned = proposal.planned
        self._topology = deployment.folder.read_topology()
        self._report = report
        self._new_hosts = [name for name in self._wanted.hosts if name not in self._current.hosts]
        self._rolling = Rolling(
            deployment,
            proposal.change,
            self._plan_spare,
            report,
            drain_s=limits.drain_s,
            timeout_s=limits.ready_s,
            doubtful=None if resumed is None else _changed(difference(self._current, resumed)),
        )

    async def run(self) -> None:
        try:
            await self._begin()
            await self._rolling.run()
            await self._supervise_otherwise()
            self._write(self._wanted, self._planned.topology if self._planned else self._topology)
        except BaseException as error:
            await to_its_end(partial(self._undo, error))
            raise
        await self._leave_hosts()
        self._deployment.take_plan(self._wanted)
        await reserve_ports(self._deployment, self._wanted)

    async def _begin(self) -> None:
        """From here on, `pdctl down` looks at the new hosts too."""
        for engine in (*self._change.added, *(replaced.new for replaced in self._change.replaced)):
            for process in engine.processes:
                read_secrets(process)  # before anything is started: one may be missing
        both = self._current.model_copy(update={"hosts": {**self._current.hosts, **self._wanted.hosts}})
        self._deployment.take_plan(both)
        if self._new_hosts:
            self._folder.write_plan(both)
            await self._deployment.start_agents(self._new_hosts)
        await reserve_ports(self._deployment, self._current, self._wanted)

    def _write(self, plan: Plan, topology: Topology | None) -> None:
        """Hosts whose agents have still to be ended are in the plan."""
        self._folder.write_plan(plan.model_copy(update={"hosts": {**self._current.hosts, **self._wanted.hosts}}))
        self._folder.write_topology(topology)

    async def _leave_hosts(self) -> None:
        """Agents with nothing to do are ended."""
        left = {name: host for name, host in self._current.hosts.items() if name not in self._wanted.hosts}
        if left:
            self._deployment.take_plan(self._current.model_copy(update={"hosts": left}))
            await end_agents(self._deployment, self._report)
        self._folder.write_plan(self._wanted)

    async def _undo(self, error: BaseException, hurry: asyncio.Event) -> None:
        interrupted = not isinstance(error, Exception)
        self._report(f"going back to what ran before: {'interrupted' if interrupted else error}")
        try:
            if interrupted or not await until_hurried(self._rolling.undo(), hurry):
                await self._rolling.undo(in_haste=True)
            self._write(self._current, self._topology)
            await self._give_up_hosts()
            outcome = "nothing has changed: what ran before serves"
        except PdctlError as second:
            outcome = f"what ran before could not be brought back: {second}: see `pdctl status`"
        if isinstance(error, PdctlError):
            error.args = (f"{error} ({outcome})",)
        else:
            self._report(outcome)

    async def _give_up_hosts(self) -> None:
        if self._new_hosts:
            hosts = {name: self._wanted.hosts[name] for name in self._new_hosts}
            self._deployment.take_plan(self._wanted.model_copy(update={"hosts": hosts}))
            await end_agents(self._deployment, self._report)
        self._folder.write_plan(self._current)
        self._deployment.take_plan(self._current)
        await reserve_ports(self._deployment, self._current)

    async def _plan_spare(self, engine: RunningEngine) -> RunningEngine | None:
        """Plan one more engine of a group, beside what is wanted; None where the hosts cannot carry it."""
        topology = self._planned.topology if self._planned else self._topology
        larger = topology and with_one_more(topology, engine.role, engine.head.group)
        if larger is None:
            return None
        try:
            root = self._folder.path.parent
            plan = (await plan_topology(larger, root, self._wanted)).plan
        except PlanError as error:
            self._report(f"no spare engine: {error}")
            return None
        change = difference(self._wanted, plan)
        if change.router or not change.added:
            return None  # the router would have to be started again to know it
        await reserve_ports(self._deployment, self._current, self._wanted, plan)
        return change.added[0]

    async def _supervise_otherwise(self) -> None:
        """What stays may have to be looked after in another way."""
        before = {process.name: process.restart for process in self._current.processes}
        stays = [process for engine in self._change.kept for process in engine.processes]
        stays += [] if self._change.router else [self._wanted.router]
        if others := [process for process in stays if before[process.name] != process.restart]:
            await supervise(self._deployment, others)


def _changed(change: PlanChange) -> list[str]:
    """The processes that are in both plans, and differ."""
    return [replaced.name for replaced in change.replaced] + [change.wanted.router.name] * change.router
