"""Which GPUs each engine gets."""

from collections.abc import Iterator
from itertools import islice

from pdctl.errors import PlanError
from pdctl.planning.inventory import Gpu, Inventory
from pdctl.profiles import EngineRole, Profile
from pdctl.topology.models import EngineGroup, Topology

Engine = tuple[EngineRole, int, int]  # role, group, replica
Gpus = tuple[int, ...]


def assign_gpus(
    topology: Topology, profile: Profile, inventories: dict[str, Inventory]
) -> dict[Engine, tuple[Gpus, ...]]:
    """Give each engine GPUs on each of its hosts: those asked for, or free ones where the profile requires GPUs.

    Raises PlanError.
    """
    free = _free_gpus(topology, inventories)
    assigned: dict[Engine, tuple[Gpus, ...]] = {}
    for role, index, group in topology.groups():
        if not group.replicas:
            continue
        share = gpus_on_each_host(profile, group)
        on_hosts = [
            _gpus_of_group(f"{role}[{index}]", group, host, share, profile, inventories[host], free[host])
            for host in group.nodes
        ]
        for replica in range(group.replicas):
            own = slice(replica * share, (replica + 1) * share)
            assigned[role, index, replica] = tuple(tuple(gpus[own]) for gpus in on_hosts)
    return assigned


def gpus_on_each_host(profile: Profile, group: EngineGroup) -> int:
    """How many GPUs an engine has on each of its hosts, if it uses any."""
    return (group.tp if profile.dp_shares_gpus else group.tp * group.dp) // len(group.nodes)


def _free_gpus(topology: Topology, inventories: dict[str, Inventory]) -> dict[str, Iterator[int]]:
    asked = {(host, gpu) for _, _, group in topology.groups() for host in group.nodes for gpu in group.gpus or ()}
    return {
        host: iter([gpu.index for gpu in inventory.gpus if gpu.is_free and (host, gpu.index) not in asked])
        for host, inventory in inventories.items()
    }


def _gpus_of_group(
    key: str,
    group: EngineGroup,
    host: str,
    share: int,
    profile: Profile,
    inventory: Inventory,
    free: Iterator[int],
) -> list[int]:
    needed = group.replicas * share
    if group.gpus is not None:
        _check_asked(f"{key}.gpus", group, host, needed, profile, inventory)
        return group.gpus
    if profile.gpus != "required":
        return []
    found = list(islice(free, needed))
    if len(found) < needed:
        raise PlanError(
            f"{key}: engine {profile.name!r} needs {needed} free GPU(s) on host {host!r} "
            f"({_sum(group)}), {len(found)} left: it has {_present(inventory)}"
        )
    return found


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
