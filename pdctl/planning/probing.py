"""Asks each host of a topology what it has."""

from pathlib import Path

from pdctl.hosts.open import open_host
from pdctl.planning.inventory import Inventory
from pdctl.planning.planner import ports_to_probe
from pdctl.profiles import Profile
from pdctl.topology.models import Topology


async def probe_hosts(topology: Topology, profile: Profile, folder: Path) -> dict[str, Inventory]:
    """Return the inventories that `make_plan` needs, by host; `folder` is where the state will be kept."""
    packages = profile.packages.names if profile.packages else ()
    inventories = {}
    for name, ports in ports_to_probe(topology, profile).items():
        host = topology.hosts[name]
        answer = await open_host(name, host.ssh).probe(folder, ports, python=host.python, packages=packages)
        inventories[name] = Inventory.model_validate(answer)
    return inventories
