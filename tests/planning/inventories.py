"""Hosts to plan for."""

from pdctl.planning.inventory import Gpu, Inventory


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
