"""Asks each host of a topology what it has."""

import asyncio
from pathlib import Path

from pdctl.hosts.host import Host
from pdctl.hosts.open import open_host
from pdctl.hosts.wheel import own_wheel
from pdctl.planning.inventory import Inventory
from pdctl.planning.planner import ports_to_probe
from pdctl.profiles import Profile
from pdctl.topology.models import Topology


async def probe_hosts(topology: Topology, profile: Profile, folder: Path) -> dict[str, Inventory]:
    """Return the inventories that `make_plan` needs, by host; `folder` is where the state will be kept."""
    packages = profile.packages.names if profile.packages else ()

    async def probe(name: str, ports: list[int]) -> Inventory:
        host = topology_host(topology, name)
        environment = own_wheel().environment if topology.hosts[name].ssh else ""
        python = topology.hosts[name].python
        answer = await host.probe(folder, ports, python=python, packages=packages, environment=environment)
        return Inventory.model_validate(answer)

    asked = ports_to_probe(topology, profile)
    answers = await asyncio.gather(*(probe(name, ports) for name, ports in asked.items()))
    return dict(zip(asked, answers, strict=True))


def topology_host(topology: Topology, name: str) -> Host:
    """A host of a topology; nothing is sent to it yet."""
    host = topology.hosts[name]
    return open_host(name, host.ssh, python=host.python, accept_new=host.host_keys == "accept-new")
