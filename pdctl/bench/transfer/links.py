"""The NICs that rdma uses, and their rate. What the other transports go over, the source finds out."""

from pdctl.bench.transfer.messages import Link
from pdctl.planning.inventory import Inventory
from pdctl.planning.nics import NICS_VARIABLE, engine_nics


def rdma_environment(inventory: Inventory) -> dict[str, str]:
    """Return what an engine without GPUs is given on that host."""
    text = engine_nics(inventory, (), None).text
    return {NICS_VARIABLE: text} if text else {}


def rdma_link(inventory: Inventory) -> Link | None:
    """Return these NICs together; None where there are none. What works in software has no rate of its own."""
    devices = engine_nics(inventory, (), None).devices
    ports = [nic for nic in inventory.nics if nic.device in devices or f"{nic.device}:{nic.port}" in devices]
    if not ports:
        return None
    name = ", ".join(f"{nic.device}:{nic.port} {'in software' if nic.software else nic.rate}" for nic in ports)
    in_software = any(nic.software for nic in ports)
    return Link(name, None if in_software else sum(nic.gigabits for nic in ports) / 8)
