"""Which RDMA NICs each GPU, and each engine, uses."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from pdctl.planning.inventory import Inventory, Nic, PciPlace
from pdctl.planning.pci_distance import Distance, way_between
from pdctl.planning.usable_nics import usable_nics

NICS_VARIABLE = "KVCACHE_RDMA_NICS"  # FastDeploy's name for it; holds devices, with commas between them


class GpuNics(NamedTuple):
    """A GPU and the NICs that are nearest to it, the one to be used first before the others."""

    gpu: int | None  # as nvidia-smi numbers it; None where that is not known
    place: PciPlace | None
    distance: Distance
    nics: tuple[Nic, ...]


class EngineNics(NamedTuple):
    """What an engine is told of its NICs; all of it is empty where there are none."""

    text: str = ""  # as in KVCACHE_RDMA_NICS
    devices: tuple[str, ...] = ()
    ucx: str = ""  # as in UCX_NET_DEVICES: mlx5_0:1,mlx5_1:1


def nics_by_gpu(inventory: Inventory) -> list[GpuNics]:
    """Return the nearest NICs of each GPU. GPUs with the same nearest ones begin with different ones."""
    usable = usable_nics(inventory.nics)
    found: list[GpuNics] = []
    before: list[list[Nic]] = []
    for gpu, place in _gpus(inventory):
        distance, nearest = _nearest(place, usable)
        first = before.count(nearest) % max(1, len(nearest))
        before.append(nearest)
        found.append(GpuNics(gpu, place, distance, tuple(nearest[first:] + nearest[:first])))
    return found


def nics_of_all_gpus(inventory: Inventory) -> list[Nic]:
    """Return the NICs for a process that uses all GPUs."""
    return _merged([found.nics for found in nics_by_gpu(inventory)])


def engine_nics(inventory: Inventory, gpus: Sequence[int], asked: str | None) -> EngineNics:
    """Return the NICs of an engine: the nearest of its GPUs, rank by rank, or all that can be used if it has no GPU.

    `asked`: what the user gives in NICS_VARIABLE; it counts before all else, then what the agent's environment has.
    """
    given = inventory.nics_in_environment if asked is None else asked
    if given is not None:
        devices = tuple(device.strip() for device in given.split(",") if device.strip())
        ports = {nic.device: nic.port for nic in (*reversed(inventory.nics), *reversed(usable_nics(inventory.nics)))}
        return EngineNics(given, devices, ",".join(f"{device}:{ports.get(device, 1)}" for device in devices))
    nearest = {found.gpu: found.nics for found in nics_by_gpu(inventory)}
    nics = _merged([nearest[gpu] for gpu in gpus]) if gpus else usable_nics(inventory.nics)
    devices = device_names(nics)
    return EngineNics(",".join(devices), devices, ",".join(f"{nic.device}:{nic.port}" for nic in nics))


def device_names(nics: Sequence[Nic]) -> tuple[str, ...]:
    """Return the devices of ports, each once."""
    return tuple(dict.fromkeys(nic.device for nic in nics))


def _gpus(inventory: Inventory) -> list[tuple[int | None, PciPlace | None]]:
    """Those that nvidia-smi tells of; where it tells of none, those on the PCI bus."""
    places = {place.address: place for place in inventory.gpu_places}
    if inventory.gpus:
        return [(gpu.index, places.get(gpu.pci or "")) for gpu in inventory.gpus]
    return [(None, place) for place in inventory.gpu_places]


def _nearest(gpu: PciPlace | None, nics: list[Nic]) -> tuple[Distance, list[Nic]]:
    """The NICs with the shortest way; of several the fastest, as a slow one beside them is there for something else."""
    if not nics:
        return Distance.OTHER, []
    ways = [way_between(gpu, nic.place) for nic in nics]
    shortest = min(ways)
    near = [nic for nic, way in zip(nics, ways, strict=True) if way == shortest]
    fastest = max(nic.gigabits for nic in near)
    return shortest.distance, [nic for nic in near if nic.gigabits == fastest]


def _merged(nics_by_rank: Sequence[Sequence[Nic]]) -> list[Nic]:
    """Each NIC once: the first of every rank, then the second of every rank, and so on."""
    turns = zip_longest(*nics_by_rank)
    return list(dict.fromkeys(nic for turn in turns for nic in turn if nic is not None))
