"""Which engines of the current plan stay, as they are or changed, and what new ones are called."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count

from pdctl.errors import PlanError
from pdctl.planning.engine_plans import EnginePlanner
from pdctl.planning.gpus import GpuDealer, Slot
from pdctl.planning.plan import ProcessPlan
from pdctl.planning.running import RunningEngine, alike
from pdctl.profiles import EngineRole
from pdctl.topology.models import EngineGroup, Topology


class Continuity:
    """Finds for each place of the topology the engine that has it now.

    First those that can stay as they are; then, among what is left, those that run on the hosts that a group wants. Of
    several, the one with the lowest number.
    """

    def __init__(
        self,
        topology: Topology,
        planner: EnginePlanner,
        dealer: GpuDealer,
        running: Sequence[RunningEngine],
        leaving: Collection[str],
    ) -> None:
        self.same: dict[Slot, list[ProcessPlan]] = {}  # what stays as it is
        self.has: dict[Slot, RunningEngine] = {}  # the engines that have a place: those, and those that change
        self._topology = topology
        self._planner = planner
        self._dealer = dealer
        self._left = [engine for engine in running if engine.name not in leaving]
        self._place(self._as_it_is)
        self._place(lambda index, group, engine: [])
        self.names = {slot: engine.name for slot, engine in self.has.items()}
        self._name_others({engine.name for engine in running})
        self.going = [engine for engine in running if engine not in self.has.values()]

    @property
    def keep_gpus(self) -> dict[Slot, RunningEngine]:
        """The engines whose GPUs suit their places."""
        groups = {(role, index): group for role, index, group in self._topology.groups()}
        return {slot: engine for slot, engine in self.has.items() if self._dealer.suits(groups[slot[:2]], engine)}

    def _place(self, planned: Callable[[int, EngineGroup, RunningEngine], list[ProcessPlan] | None]) -> None:
        """Give free places to engines for which `planned` does not return None; what it returns stays as it is."""
        for role, index, group in self._topology.groups():
            free = [slot for slot in _slots(role, index, group) if slot not in self.has]
            for engine in [engine for engine in self._left if (engine.role, engine.hosts) == (role, group.nodes)]:
                if not free or (processes := planned(index, group, engine)) is None:
                    continue
                slot = free.pop(0)
                self.has[slot] = engine
                self._left.remove(engine)
                if processes:
                    self.same[slot] = processes

    def _as_it_is(self, index: int, group: EngineGroup, engine: RunningEngine) -> list[ProcessPlan] | None:
        if not self._dealer.suits(group, engine):
            return None
        try:
            processes = self._planner.plan_as_it_is(index, group, engine)
        except PlanError:  # ports that the group gives are not free; if it gets another engine, that is an error
            return None
        return processes if alike(processes, engine.processes) else None

    def _name_others(self, taken: set[str]) -> None:
        for role, index, group in self._topology.groups():
            for slot in _slots(role, index, group):
                if slot not in self.names:
                    self.names[slot] = next(name for n in count() if (name := f"{role}-{n}") not in taken)
                    taken.add(self.names[slot])


def _slots(role: EngineRole, index: int, group: EngineGroup) -> Iterator[Slot]:
    return ((role, index, replica) for replica in range(group.replicas))
