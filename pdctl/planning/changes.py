"""What is between two plans of one deployment: the engines that come, go, or are started again with other settings."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pdctl.errors import PlanError
from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.planning.running import RunningEngine, alike, engines_of


class Replaced(NamedTuple):
    """An engine that keeps its name, and runs otherwise."""

    old: RunningEngine
    new: RunningEngine

    @property
    def name(self) -> str:
        """What it is called."""
        return self.new.name


class PlanChange(NamedTuple):
    """Two plans, and what it takes to come from one to the other."""

    current: Plan
    wanted: Plan
    added: tuple[RunningEngine, ...]
    removed: tuple[RunningEngine, ...]
    replaced: tuple[Replaced, ...]
    kept: tuple[RunningEngine, ...]  # as they are wanted: what is not fixed at the start may differ
    router: bool  # whether it is replaced too

    @property
    def changes_processes(self) -> bool:
        """Whether anything has to be started or stopped."""
        return bool(self.added or self.removed or self.replaced or self.router)


def difference(current: Plan, wanted: Plan) -> PlanChange:
    """Compare the plans of a deployment."""
    before = {engine.name: engine for engine in engines_of(current)}
    after = {engine.name: engine for engine in engines_of(wanted)}
    both = [name for name in after if name in before]
    same = [name for name in both if alike(before[name].processes, after[name].processes)]
    return PlanChange(
        current,
        wanted,
        added=tuple(engine for name, engine in after.items() if name not in before),
        removed=tuple(engine for name, engine in before.items() if name not in after),
        replaced=tuple(Replaced(before[name], after[name]) for name in both if name not in same),
        kept=tuple(after[name] for name in same),
        router=not alike([current.router], [wanted.router]),
    )


def replacing(plan: Plan, names: Sequence[str]) -> PlanChange:
    """Return the change that starts processes again as they are; an engine on several hosts is one."""
    engines = engines_of(plan)
    heads = {process.head or process.name for process in plan.processes if process.name in names}
    return PlanChange(
        plan,
        plan,
        added=(),
        removed=(),
        replaced=tuple(Replaced(engine, engine) for engine in engines if engine.name in heads),
        kept=tuple(engine for engine in engines if engine.name not in heads),
        router=plan.router.name in heads,
    )


def refuse_another_deployment(change: PlanChange) -> None:
    """Raise PlanError where the wanted plan is not that of a deployment that goes on, but of another one."""
    for key, now, then in _identity(change.current, change.wanted):
        if now != then:
            raise PlanError(
                f"{key}: {now!r} runs, and {then!r} is wanted: that is no change that can be made while it serves; "
                f"end it with `pdctl down --name {change.current.name}` first, or give the other a `name` of its own"
            )


def _identity(current: Plan, wanted: Plan) -> Iterator[tuple[str, object, object]]:
    yield "model", current.model, wanted.model
    yield "engine", current.engine, wanted.engine
    for name in current.hosts.keys() & wanted.hosts.keys():
        yield f"hosts.{name}.ssh", current.hosts[name].ssh, wanted.hosts[name].ssh
    yield "router.kind", current.router_kind, wanted.router_kind
    yield "router.host", current.router.host, wanted.router.host
    yield "router", _endpoint(current.router), _endpoint(wanted.router)


def _endpoint(router: ProcessPlan) -> str:
    return f"{router.address}:{router.ports['api'] or '(any free port)'}"
