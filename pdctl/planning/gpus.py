"""Which GPUs each engine gets."""

from collections.abc import Iterator, Mapping, Sequence

from pdctl.errors import PlanError
from pdctl.planning.gpu_order import GpuOrder
from pdctl.planning.inventory import Gpu, Inventory
from pdctl.planning.running import Gpus, RunningEngine
from pdctl.profiles import EngineRole, Profile
from pdctl.topology.models import EngineGroup, Topology

Slot = tuple[EngineRole, int, int]  # a place for an engine in the topology: role, group, replica


class GpuDealer:
    """Gives each engine GPUs on each of its hosts: those asked for, or free ones where the profile requires GPUs.

    `running`: the engines of the current plan. What they have is theirs, until it is known which of them stay.
    """

    def __init__(
        self,
        topology: Topology,
        profile: Profile,
        inventories: Mapping[str, Inventory],
        running: Sequence[RunningEngine],
    ) -> None:
        self._topology = topology
        self._profile = profile
        self._inventories = inventories
        self._asked = {
            (host, gpu) for _, _, group in topology.groups() for host in group.nodes for gpu in group.gpus or ()
        }
        self._running = {
            (process.host, gpu) for engine in running for process in engine.processes for gpu in process.gpus
        }
        self._order = {host: GpuOrder(inventory) for host, inventory in inventories.items()}
        self._used: dict[str, list[int]] = {host: [] for host in inventories}

    def suits(self, group: EngineGroup, engine: RunningEngine) -> bool:
        """Whether an engine that runs on a group's hosts has GPUs as the group wants them."""
        share = gpus_on_each_host(self._profile, group)
        if group.gpus is not None:
            return all(len(gpus) == share and set(gpus) <= set(group.gpus) for gpus in engine.gpus)
        if self._profile.gpus != "required":
            return not any(engine.gpus)
        return all(
            len(process.gpus) == share and not any((process.host, gpu) in self._asked for gpu in process.gpus)
            for process in engine.processes
        )

    def deal(self, stay: Mapping[Slot, RunningEngine]) -> dict[Slot, tuple[Gpus, ...]]:
        """Return the GPUs of each place, by host; `stay`: the engines that keep theirs. Raises PlanError."""
        for engine in stay.values():
            for process in engine.processes:
                self._used[process.host] += process.gpus
        dealt = {slot: engine.gpus for slot, engine in stay.items()}
        for role, index, group in self._topology.groups():
            new = [slot for replica in range(group.replicas) if (slot := (role, index, replica)) not in stay]
            self._check(role, index, group)
            on_hosts = [self._for_group(role, index, group, host, len(new)) for host in group.nodes if new]
            dealt |= {slot: tuple(next(engines) for engines in on_hosts) for slot in new}
        return dealt

    def _for_group(self, role: str, index: int, group: EngineGroup, host: str, engines: int) -> Iterator[Gpus]:
        """The GPUs of that many new engines on a host."""
        share, inventory = gpus_on_each_host(self._profile, group), self._inventories[host]
        if group.gpus is not None:
            left = [gpu for gpu in group.gpus if gpu not in self._used[host]]
            return (tuple(left[first : first + share]) for first in range(0, engines * share, share))
        if self._profile.gpus != "required":
            return iter([()] * engines)
        free = self._free(host)
        if len(free) < engines * share:
            raise PlanError(
                f"{role}[{index}]: engine {self._profile.name!r} needs {engines * share} free GPU(s) on host {host!r} "
                f"({_sum(group)}), {len(free)} left: it has {_present(inventory)}"
            )
        return iter([self._take(host, share) for _ in range(engines)])

    def _take(self, host: str, count: int) -> Gpus:
        """Free ones; those of engines that will go only where there are no others, as they are in use until then."""
        free = self._free(host)
        idle = [gpu for gpu in free if (host, gpu) not in self._running]
        chosen = self._order[host].best(idle if len(idle) >= count else free, count, self._used[host])
        self._used[host] += chosen
        return chosen

    def _free(self, host: str) -> list[int]:
        return [
            gpu.index
            for gpu in self._inventories[host].gpus
            if (gpu.is_free or (host, gpu.index) in self._running)
            and (host, gpu.index) not in self._asked
            and gpu.index not in self._used[host]
        ]

    def _check(self, role: str, index: int, group: EngineGroup) -> None:
        if group.gpus is None or not group.replicas:
            return
        needed = group.replicas * gpus_on_each_host(self._profile, group)
        for host in group.nodes:
            _check_asked(f"{role}[{index}].gpus", group, host, needed, self._profile, self._inventories[host])


def gpus_on_each_host(profile: Profile, group: EngineGroup) -> int:
    """How many GPUs an engine has on each of its hosts, if it uses any."""
    return (group.tp if profile.dp_shares_gpus else group.tp * group.dp) // len(group.nodes)


def _check_asked(key: str, group: EngineGroup, host: str, needed: int, profile: Profile, inventory: Inventory) -> None:
    gpus, present = group.gpus or [], {gpu.index for gpu in inventory.gpus}
    for gpu in gpus:
        if gpu not in present:
            raise PlanError(f"{key}: host {host!r} has no GPU {gpu}: it has {_present(inventory)}")
    if gpus and profile.gpus == "none":
        raise PlanError(f"{key}: engine {profile.name!r} uses no GPU: leave gpus out")
    if len(gpus) != needed:
        raise PlanError(f"{key}: {len(gpus)} given, {needed} needed on host {host!r} ({_sum(group)})")


def _sum(group: EngineGroup) -> str:
    dp = f" x dp {group.dp}" if group.dp > 1 else ""
    shared = f", shared by {len(group.nodes)} hosts" if len(group.nodes) > 1 else ""
    return f"replicas {group.replicas} x tp {group.tp}{dp}{shared}"


def _present(inventory: Inventory) -> str:
    """What the host has, for an error: with what keeps it from being used."""
    if inventory.gpu_problem:
        return f"none that is known of: {inventory.gpu_problem}"
    return ", ".join(f"{gpu.index} ({gpu.name}{_use(gpu)})" for gpu in inventory.gpus) or "none"


def _use(gpu: Gpu) -> str:
    if gpu.is_free:
        return ""
    by = f" by {', '.join(gpu.users)}" if gpu.users else ""
    return f", {gpu.memory_used_mb} MB in use{by}"
