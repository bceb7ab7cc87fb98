"""The engines of the current plan, as the next one sees them: what each has, and whether it can stay as it is."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.profiles import EngineRole

Gpus = tuple[int, ...]
_ROLES: tuple[EngineRole, ...] = get_args(EngineRole)
# What those who look after a process can take over while it runs; all else is fixed at its start.
_NOT_FIXED = {"name", "nics", "threads", "port_numbers", "group", "restart", "readiness", "stop_grace_s", "metrics"}


class RunningEngine(NamedTuple):
    """An engine of the current plan: its processes, the head first."""

    processes: tuple[ProcessPlan, ...]

    @property
    def head(self) -> ProcessPlan:
        """The process that has its API."""
        return self.processes[0]

    @property
    def name(self) -> str:
        """What it is called: "prefill-0"."""
        return self.head.name

    @property
    def role(self) -> EngineRole:
        """What it does."""
        return next(role for role in _ROLES if role == self.head.role)

    @property
    def number(self) -> int:
        """That of its name."""
        return int(self.name.rpartition("-")[2])

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of its processes."""
        return tuple(process.host for process in self.processes)

    @property
    def gpus(self) -> tuple[Gpus, ...]:
        """Its GPUs on each of its hosts."""
        return tuple(process.gpus for process in self.processes)


def engines_of(plan: Plan | None) -> list[RunningEngine]:
    """Return the engines of a plan by role and number."""
    if plan is None:
        return []
    by_head: dict[str, list[ProcessPlan]] = {}
    for process in plan.engines:
        by_head.setdefault(process.head or process.name, []).append(process)
    return in_order(RunningEngine(tuple(processes)) for processes in by_head.values())


def in_order(engines: Iterable[RunningEngine]) -> list[RunningEngine]:
    """Return engines by role and number."""
    return sorted(engines, key=lambda engine: (_ROLES.index(engine.role), engine.number))


def alike(some: Sequence[ProcessPlan], others: Sequence[ProcessPlan]) -> bool:
    """Whether processes that run as the ones say run as the others say too."""
    fixed = ProcessPlan.model_fields.keys() - _NOT_FIXED
    return len(some) == len(others) and all(
        getattr(one, field) == getattr(other, field) for one, other in zip(some, others, strict=True) for field in fixed
    )
