"""Which GPUs each engine gets."""

from collections.abc import Iterator
from itertools import islice

from pdctl.errors import PlanError
from pdctl.planning.inventory import Gpu, Inventory
from pdctl.profiles import EngineRole, Profile
from pdctl.topology.models import EngineGroup, Topology

Engine = tuple[EngineRole, int, int]  # role, group, replica


def assign_gpus(
    topology: Topology, profile: Profile, inventories: dict[str, Inventory]
) -> dict[Engine, tuple[int, ...]]:
    """Give each engine the GPUs asked for, or free ones where the profile requires GPUs; raises PlanError."""
    free = _free_gpus(topology, inventories)
    assigned: dict[Engine, tuple[int, ...]] = {}
    for role, index, group in topology.groups():
        if not group.replicas:
            continue
        inventory = inventories[group.host]
        gpus = group.gpus
        if gpus is not None:
            _check_asked(f"{role}[{index}].gpus", group.host, gpus, profile, inventory)
        elif profile.gpus == "required":
            gpus = list(islice(free[group.host], group.replicas * group.tp))
            _check_found(f"{role}[{index}]", group, gpus, profile, inventory)
        for replica in range(group.replicas):
            assigned[role, index, replica] = tuple((gpus or [])[replica * group.tp : (replica + 1) * group.tp])
    return assigned


def _free_gpus(topology: Topology, inventories: dict[str, Inventory]) -> dict[str, Iterator[int]]:
    asked = {(group.host, gpu) for _, _, group in topology.groups() for gpu in group.gpus or ()}
    return {
        host: iter([gpu.index for gpu in inventory.gpus if gpu.is_free and (host, gpu.index) not in asked])
        for host, inventory in inventories.items()
    }


def _check_asked(key: str, host: str, gpus: list[int], profile: Profile, inventory: Inventory) -> None:
    present = {gpu.index for gpu in inventory.gpus}
    for gpu in gpus:
        if gpu not in present:
            raise PlanError(f"{key}: host {host!r} has no GPU {gpu}: it has {_present(inventory)}")
    if gpus and profile.gpus == "none":
        raise PlanError(f"{key}: engine {profile.name!r} uses no GPU: leave gpus out")


def _check_found(key: str, group: EngineGroup, gpus: list[int], profile: Profile, inventory: Inventory) -> None:
    needed = group.replicas * group.tp
    if len(gpus) < needed:
        raise PlanError(
            f"{key}: engine {profile.name!r} needs {needed} free GPU(s) on host {group.host!r} "
            f"(replicas {group.replicas} x tp {group.tp}), {len(gpus)} left: it has {_present(inventory)}"
        )


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
