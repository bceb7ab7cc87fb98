"""Hosts to plan for."""

from pdctl.agent.sysfs_nics import read_nics
from pdctl.agent.sysfs_pci import read_gpu_places
from pdctl.planning.inventory import Gpu, Inventory, Nic, PciPlace
from tests.agent.sysfs_trees import SysfsTree


def make_inventory(
    *, cpus: int = 4, gpus: int = 0, taken_ports: dict[int, str] | None = None, address: str = "10.0.0.1"
) -> Inventory:
    return Inventory(
        hostname="test",
        address=address,
        cpus=cpus,
        memory_bytes=8 * 2**30,
        gpus=tuple(
            Gpu(index=index, uuid=f"GPU-{index}", name="H200", memory_total_mb=1000, memory_used_mb=0)
            for index in range(gpus)
        ),
        taken_ports=taken_ports or {},
        python="/usr/bin/python3",
        free_disk_bytes=2**30,
    )


def inventory_of(tree: SysfsTree, *, nvidia_smi: bool = True) -> Inventory:
    """A host with the NICs of a tree, and its GPUs, of which nvidia-smi may not tell."""
    places = tuple(map(PciPlace.model_validate, read_gpu_places(tree.sys)))
    nics = tuple(map(Nic.model_validate, read_nics(tree.sys, tree.dev)))
    host = make_inventory(gpus=len(places) if nvidia_smi else 0)
    gpus = tuple(gpu.model_copy(update={"pci": places[gpu.index].address}) for gpu in host.gpus)
    return host.model_copy(update={"gpus": gpus, "gpu_places": places, "nics": nics})
