"""Changing a running deployment while it serves: step by step, and back again if a step fails."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from pdctl.deployment.apply import Report, Start
from pdctl.deployment.deployment import Deployment
from pdctl.deployment.drain import drain, undrain
from pdctl.deployment.process_start import ProcessStarter
from pdctl.deployment.process_stop import KILL_MARGIN_S, stop_processes, wait_for_memory
from pdctl.deployment.snapshot import Snapshot
from pdctl.deployment.together import together
from pdctl.deployment.watch import ProcessWatch
from pdctl.errors import NotFoundError, PdctlError, RouterError, StepTimeoutError
from pdctl.planning.changes import PlanChange, Replaced
from pdctl.planning.plan import ProcessPlan
from pdctl.planning.running import RunningEngine, alike, engines_of, in_order

UNPROVEN_S = 10.0  # for the requests in flight at an engine that has not become ready

PlanSpare = Callable[[RunningEngine], Awaitable[RunningEngine | None]]  # one more like it; None: there is no room


class Rolling:
    """One change of a deployment whose connections reach the hosts of both plans.

    What is added is started and verified first. What is replaced follows, one after the other: where no other engine
    has its role, a spare one serves meanwhile. What goes is drained, then stopped. `doubtful`: processes that an
    interrupted change may have left otherwise than the current plan says.
    """

    def __init__(
        self,
        deployment: Deployment,
        change: PlanChange,
        plan_spare: PlanSpare,
        report: Report,
        *,
        drain_s: float,
        timeout_s: float | None,
        doubtful: Collection[str] | None = None,
    ) -> None:
        self._deployment = deployment
        self._change = change
        self._plan_spare = plan_spare
        self._report = report
        self._drain_s = drain_s
        self._timeout_s = timeout_s
        self._doubtful = doubtful
        self._in_haste = False
        self._router = change.current.router
        self._running: dict[str, RunningEngine] = {}  # what was started, and not stopped
        self._serving: set[str] = set()  # the processes that are ready
        self._stopped: set[str] = set()  # the engines that an interrupted change has stopped
        self._going = list(change.removed)
        self._back: list[Callable[[], Awaitable[None]]] = []  # the steps that lead back

    async def run(self) -> None:
        """Make the change. When it raises or is cancelled, `undo` leads back."""
        await self._look()
        added = [engine for engine in self._change.added if not _overlapping(engine, self._running.values())]
        if self._change.router or self._router.name not in self._serving or self._is_doubtful(self._router.name):
            await self._replace_router(self._change.wanted.router, added)
        else:
            await self._start(added)
        again = [one for one in self._change.kept if one.name in self._stopped or self._is_doubtful(one.name)]
        for replaced in (*self._change.replaced, *(Replaced(engine, engine) for engine in again)):
            await self._replace(replaced)
        for engine in [engine for engine in self._change.added if engine not in added]:
            await self._make_room(engine)
            await self._until_free(engine)
            await self._start([engine])
        going, self._going = self._going, []
        await self._take_out(going)

    async def undo(self, *, in_haste: bool = False) -> None:
        """Go back to what ran before; raises the first error once all steps have been tried.

        In haste nothing is drained, and what is started becomes ready by itself. When it was cancelled it can be called
        again.
        """
        self._in_haste, steps, errors = in_haste, self._back, []
        while steps:
            self._back = []  # the steps back are not undone
            try:
                await steps[-1]()
            except PdctlError as error:
                errors.append(error)
            finally:
                self._back = steps
            steps.pop()
        if errors:
            raise errors[0]

    async def _look(self) -> None:
        """See what runs; what an interrupted change has left is ended."""
        planned = [process.name for process in self._change.current.processes]
        snapshots: dict[str, Snapshot] = {}
        for host in self._deployment.hosts:
            client = await self._deployment.client(host)
            for snapshot in map(Snapshot.model_validate, await client.call("list")):
                snapshots[snapshot.name] = snapshot
                if snapshot.name not in planned and not snapshot.has_exited:
                    self._report(f"stopping {snapshot.name}, left by a change that was interrupted")
                    await client.call("stop", name=snapshot.name, timeout_s=KILL_MARGIN_S + self._drain_s)
        self._serving = {name for name, snapshot in snapshots.items() if snapshot.state == "ready"}
        for engine in engines_of(self._change.current):
            found = [snapshots.get(process.name) for process in engine.processes]
            if all(snapshot is not None and not snapshot.has_exited for snapshot in found):
                self._running[engine.name] = engine
            elif any(snapshot is None or snapshot.stopped for snapshot in found):
                self._stopped.add(engine.name)
        if self._doubtful is not None:
            self._show_plan(self._running.values())
            await self._undrain([engine for engine in self._running.values() if engine.name in self._serving])

    def _is_doubtful(self, name: str) -> bool:
        return self._doubtful is not None and name in self._doubtful

    async def _replace_router(self, router: ProcessPlan, added: Sequence[RunningEngine] = ()) -> None:
        """`added`: engines that only the next router knows of, or is meant to."""
        before = self._router
        await self._start(added, verified=False)
        self._back.append(partial(self._replace_router, before))
        self._report("stopping the router: it ends what it has")
        await stop_processes(self._deployment, [before])
        self._router = router
        self._show_plan(engine for engine in self._running.values() if engine not in self._going)
        await self._start_processes([router], verified=True)
        if not self._in_haste:
            await supervise(self._deployment, _processes(added))
            await self._undrain(added)

    async def _replace(self, replaced: Replaced) -> None:
        """Start an engine again in its place, as it is to be."""
        old, new = replaced.old, replaced.new
        await self._make_room(new)
        mark = len(self._back)
        spare = await self._spare(replaced)
        if old.name in self._running:
            await self._take_out([old])
        await self._until_free(new)
        await self._start([new])
        if spare is not None:
            await self._end([spare])
        del self._back[mark:]  # from here on, the way back is as long as that was
        if not alike(old.processes, new.processes):
            self._back.append(partial(self._replace, Replaced(new, old)))

    async def _spare(self, replaced: Replaced) -> RunningEngine | None:
        """One that serves while this one does not, if there is no other."""
        old = replaced.old
        others = {other.name for other in self._running.values() if other.role == old.role and other.name != old.name}
        if self._in_haste or old.name not in self._running or others & self._serving:
            return None
        spare = await self._plan_spare(replaced.new)
        if spare is None:
            self._report(f"no other engine can serve meanwhile: requests for {old.name} are refused while it restarts")
            return None
        self._report(f"{spare.name} serves while {old.name} is started again")
        await self._start([spare])
        return spare

    async def _make_room(self, engine: RunningEngine) -> None:
        """Take out what is to go in any case and has its GPUs or ports."""
        for other in _overlapping(engine, self._going):
            self._going.remove(other)
            await self._take_out([other])

    async def _until_free(self, engine: RunningEngine) -> None:
        await together(wait_for_memory(self._deployment, process) for process in engine.processes)

    async def _take_out(self, engines: Sequence[RunningEngine]) -> None:
        self._back.append(partial(self._bring_back, engines))
        await self._end(engines)

    async def _bring_back(self, engines: Sequence[RunningEngine]) -> None:
        """Whatever has been done so far to take them out."""
        drained = [engine for engine in engines if engine.name in self._serving]
        await self._undrain(drained)
        others = [engine for engine in engines if engine not in drained]
        await stop_processes(self._deployment, _processes(others))  # if that has begun, to its end
        await self._start(others)

    async def _start(self, engines: Sequence[RunningEngine], *, verified: bool = True) -> None:
        """Start engines; verified: until requests have gone through all pairs that they are of."""
        if not engines:
            return
        self._back.append(partial(self._end, engines))
        self._running |= {engine.name: engine for engine in engines}
        self._show_plan(self._running.values())
        await self._start_processes(_processes(engines), verified=verified)
        if verified:
            await self._undrain(engines)  # the router may know one of before at its address

    async def _undrain(self, engines: Sequence[RunningEngine]) -> None:
        if not self._change.wanted.has_own_router:
            return
        for engine in engines:
            with suppress(NotFoundError):  # the router learns of it later, and then it is not drained
                await undrain(self._deployment, engine.name)

    async def _start_processes(self, processes: Sequence[ProcessPlan], *, verified: bool) -> None:
        self._report(f"starting {', '.join(process.name for process in processes)}")
        start = Start(self._deployment, self._report, again=processes)
        if self._in_haste:
            await start.in_haste()
            return
        await start.to_its_end(start.again() if verified else start.unverified(), self._timeout_s)
        self._serving |= {process.name for process in processes}

    async def _end(self, engines: Sequence[RunningEngine]) -> None:
        """Drain and stop engines."""
        if not engines:
            return
        self._show_plan({**self._running, **{engine.name: engine for engine in engines}}.values())
        await together(self._drain(engine) for engine in engines if engine.name in self._running)
        self._report(f"stopping {', '.join(engine.name for engine in engines)}")
        self._serving -= {process.name for process in _processes(engines)}
        await stop_processes(self._deployment, _processes(engines))
        for engine in engines:
            self._running.pop(engine.name, None)

    async def _drain(self, engine: RunningEngine) -> None:
        if self._in_haste:
            return
        serves = engine.name in self._serving
        if serves:
            self._report(f"draining {engine.name}")
        try:
            limit_s = self._drain_s if serves else min(self._drain_s, UNPROVEN_S)
            await drain(self._deployment, engine.name, timeout_s=limit_s)
        except NotFoundError:
            return  # the router sends it nothing
        except StepTimeoutError as error:
            self._report(f"{error}; what they are goes on elsewhere where that can be")
        except RouterError as error:
            if self._change.wanted.has_own_router:
                raise
            self._report(f"{error}: what {engine.name} still serves may be cut")

    def _show_plan(self, engines: Iterable[RunningEngine]) -> None:
        """Have the deployment's plan be that of what runs now."""
        current, wanted = self._change.current, self._change.wanted
        self._deployment.plan = wanted.model_copy(
            update={
                "hosts": {**current.hosts, **wanted.hosts},
                "router": self._router,
                "engines": tuple(_processes(in_order(engines))),
            }
        )


async def supervise(deployment: Deployment, processes: Sequence[ProcessPlan]) -> None:
    """Have the agents restart processes that serve, from now on as their plans say."""
    async with ProcessWatch(deployment) as watch:
        starter = ProcessStarter(deployment, watch)
        await together(starter.supervise(process) for process in processes)


def _processes(engines: Iterable[RunningEngine]) -> list[ProcessPlan]:
    return [process for engine in engines for process in engine.processes]


def _overlapping(engine: RunningEngine, others: Iterable[RunningEngine]) -> list[RunningEngine]:
    """The others that have GPUs or ports which an engine needs."""
    needed = set(_places(engine))
    return [other for other in others if needed & set(_places(other))]


def _places(engine: RunningEngine) -> Iterator[tuple[str, str, int]]:
    for process in engine.processes:
        yield from ((process.host, "gpu", gpu) for gpu in process.gpus)
        yield from ((process.host, "port", port) for port in process.given_ports)
