"""Applying a plan: agent, router, engines, one step after the other, until every pair has served a request."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from time import monotonic, time

from pdctl.deployment.adoption import publish
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.port_reservation import reserve_ports
from pdctl.deployment.process_start import ProcessStarter, at_port
from pdctl.deployment.secrets import read_secrets
from pdctl.deployment.serving_engines import REGISTER_TIMEOUT_S, wait_known
from pdctl.deployment.snapshot import Snapshot
from pdctl.deployment.store import DeploymentFolder, ProcessId, State, new_run_id
from pdctl.deployment.together import together
from pdctl.deployment.troubles import TAIL, advice
from pdctl.deployment.verify import Pair, pairs, verify
from pdctl.deployment.watch import ProcessWatch
from pdctl.errors import PdctlError, ProcessDiedError, StepTimeoutError, VerifyError
from pdctl.hosts.client import AgentCallError
from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.topology.models import Topology

DEATH_S = 5.0  # for a process to end that has answered with an error
LOG_LINES = 20  # of each process that was awaited in vain

Report = Callable[[str], None]


def prepare(plan: Plan, folder: DeploymentFolder, topology: Topology | None = None) -> Deployment:
    """Record the start of a deployment. The caller holds the folder's lock until `apply` has ended."""
    folder.create_token()
    folder.write_plan(plan)
    folder.write_topology(topology)
    state = State(run_id=new_run_id(), phase="starting", owner=ProcessId.own(), started=time())
    folder.write_state(state)
    return Deployment(folder, plan)


async def apply(deployment: Deployment, *, timeout_s: float | None = None, report: Report = lambda text: None) -> None:
    """Start everything and verify it, each step within its own limit and all within ``timeout_s``.

    Whatever it raises, the caller is to tear the deployment down.
    """
    start = Start(deployment, report)
    await start.to_its_end(start.all(), timeout_s)


class Start:
    """The steps of a start, of a whole deployment or of one of its processes."""

    def __init__(self, deployment: Deployment, report: Report, *, again: Sequence[ProcessPlan] = ()) -> None:
        self._again = again
        self._deployment = deployment
        self._plan = deployment.plan
        self._report = report
        names = [process.name for process in again]
        self._watch = ProcessWatch(deployment, _ProgressReport(report, names), again=names)
        self._starter = ProcessStarter(deployment, self._watch)

    async def to_its_end(self, steps: Coroutine[object, object, None], timeout_s: float | None) -> None:
        """Run steps; what goes wrong is told with the last lines of the processes' logs, and with what they mean."""
        try:
            await self._within(steps, timeout_s)
        except (StepTimeoutError, VerifyError) as error:
            error.detail = await self._last_lines(self._starter.awaited, LOG_LINES)
            error.detail = _joined(error.detail, await self._advice(self._starter.awaited))
            raise
        except ProcessDiedError as error:
            error.detail = _joined(error.detail, await self._advice(error.processes))
            raise

    async def all(self) -> None:
        """Agents, router, engines, then a request through every pair."""
        for process in self._plan.processes:
            read_secrets(process)  # before anything is started: one may be missing
        await self._deployment.start_agents()
        await reserve_ports(self._deployment, self._plan)
        async with self._watch:
            await self._watch.unless_one_dies(self._steps())

    async def again(self) -> None:
        """Start the processes that have ended, then send a request through every pair that they are of."""
        async with self._watch:
            await self._watch.unless_one_dies(self._steps_again())

    async def unverified(self) -> None:
        """Start the processes that have ended, and wait until they are ready: the router need not know of them yet."""
        async with self._watch:
            await self._watch.unless_one_dies(self._steps_unverified())

    async def in_haste(self) -> None:
        """Start the processes that do not live, and wait for nothing: their agents look after them."""
        async with self._watch:
            for process in map(self._where_it_was, self._again):
                with suppress(AgentCallError):  # it lives
                    await self._starter.start(process, self._router_address())
                    await self._starter.supervise(process, serves=False)

    async def _within(self, steps: Coroutine[object, object, None], timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await steps
        except TimeoutError:
            waited = self._starter.waiting_for
            raise StepTimeoutError(f"not ready within {timeout_s:g} s: it was waiting for {waited}") from None

    async def _steps(self) -> None:
        router, engines = self._plan.router, self._plan.engines
        if not self._plan.router_starts_last:
            await self._start_router()
        for engine in engines:
            await self._starter.start(engine, self._router_address())
        await self._starter.wait_all(engines, self._report)
        if self._plan.router_starts_last:
            await self._start_router()
        endpoint = self._starter.url(router)
        known = await wait_known(self._plan, self._starter, endpoint, self._report)
        await self._verify(list(pairs(known)), endpoint)
        await self._supervise(self._plan.processes)
        self._write_state(phase="verified")
        await publish(self._deployment)

    async def _steps_again(self) -> None:
        for process in self._again:
            await self._starter.start(self._where_it_was(process), self._router_address())
        await self._starter.wait_all(self._again, self._report)
        endpoint = self._starter.url(self._plan.router)
        self._write_state(endpoint=endpoint)
        engines = await wait_known(self._without_absent(), self._starter, endpoint, self._report)
        names = {process.head or process.name for process in self._again}
        await self._verify([pair for pair in pairs(engines) if names & {"router", *pair.processes}], endpoint)
        await self._supervise(self._again)

    async def _steps_unverified(self) -> None:
        for process in self._again:
            await self._starter.start(process, self._router_address())
        await self._starter.wait_all(self._again, self._report)
        await self._supervise(self._again)

    async def _start_router(self) -> None:
        router = self._plan.router
        await self._starter.start(router, "")
        await self._starter.wait_ready(router, monotonic() + router.readiness.timeout_s)
        endpoint = self._starter.url(router)
        self._write_state(endpoint=endpoint)
        self._report(f"router listens at {endpoint}")

    async def _supervise(self, processes: Sequence[ProcessPlan]) -> None:
        """From here on their agents restart them."""
        await together(self._starter.supervise(process) for process in processes)

    def _where_it_was(self, process: ProcessPlan) -> ProcessPlan:
        endpoint = self._deployment.state.endpoint
        if process.role != "router" or endpoint is None:
            return process
        return at_port(process, int(endpoint.rpartition(":")[2]))

    def _without_absent(self) -> Plan:
        """The plan without the engines that do not serve now: no request can go through them."""
        serving = {name for name, snapshot in self._watch.snapshots.items() if snapshot.state == "ready"}
        serving |= {process.name for process in self._again}
        engines = [engine for engine in self._plan.engines if engine.name in serving]
        return self._plan.model_copy(update={"engines": tuple(engines)})

    def _router_address(self) -> str:
        """Empty before it has started: engines that start before the router know nothing of it."""
        return (self._deployment.state.endpoint or "").removeprefix("http://")

    async def _verify(self, asked: list[Pair], endpoint: str) -> None:
        shown = ", ".join(map(str, asked))
        self._starter.waiting_for = f"a request to go through {shown}"
        self._starter.awaited = [process.name for process in self._plan.processes]
        token = self._deployment.folder.read_token() if self._plan.has_own_router else None
        early_s = 0.0 if self._plan.router_starts_last else REGISTER_TIMEOUT_S
        try:
            client = self._deployment.http(self._plan.router.host)
            await verify(client, endpoint, token, asked, self._plan.warm_up, early_s=early_s)
        except VerifyError as error:
            self._starter.awaited = [self._plan.router.name, *error.processes]
            await self._expect_a_death(error)
            raise
        if self._plan.has_own_router:
            self._report(f"a request went through {shown}")
        else:
            self._report(f"requests were answered; {self._plan.router_kind} does not say by which of {shown}")

    async def _expect_a_death(self, error: VerifyError) -> None:
        """A process that fails answers first and ends then: its end is the better reason, and cancels this wait."""
        with suppress(StepTimeoutError):
            await self._watch.until(error.processes[-1], lambda _: False, DEATH_S, "end")

    async def _advice(self, processes: Sequence[str]) -> str:
        if not self._plan.troubles:
            return ""
        return advice((await self._last_lines(processes, TAIL)).splitlines(), self._plan.troubles)

    async def _last_lines(self, processes: Sequence[str], count: int) -> str:
        """The end of the logs of processes."""
        if not processes:
            return ""
        with suppress(PdctlError):  # what went wrong is said in any case
            lines = self._deployment.logs(processes, tail=count)
            return "\n".join([f"{line.process} | {line.text}" async for line in lines])
        return ""

    def _write_state(self, **changes: object) -> None:
        state = self._deployment.state
        self._deployment.folder.write_state(state.model_copy(update=changes))


def _joined(*texts: str) -> str:
    return "\n".join(text for text in texts if text)


class _ProgressReport:
    """Reports a process's progress at each quarter of a step. ``names``: only of these, if there are any."""

    def __init__(self, report: Report, names: Collection[str]) -> None:
        self._report = report
        self._names = names
        self._said: set[tuple[str, str, int]] = set()

    def __call__(self, snapshot: Snapshot) -> None:
        progress = snapshot.progress
        if progress is None or progress.total <= 0 or (self._names and snapshot.name not in self._names):
            return
        quarter = 4 * progress.done // progress.total
        if (snapshot.name, progress.step, quarter) not in self._said:
            self._said.add((snapshot.name, progress.step, quarter))
            self._report(f"{snapshot.name}: {progress.step} {25 * quarter}%")
