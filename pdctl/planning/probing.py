"""Asks each host of a topology what it has."""

import asyncio
from collections.abc import Sequence
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

    asked = ports_to_probe(topology, profile)
    probing = (probe_host(topology, name, folder, ports, packages) for name, ports in asked.items())
    return dict(zip(asked, await asyncio.gather(*probing), strict=True))


async def probe_host(
    topology: Topology, name: str, folder: Path, ports: Sequence[int] = (), packages: Sequence[str] = ()
) -> Inventory:
    """Return what one host of a topology has; `packages`: whose version is asked for."""
    host = topology.hosts[name]
    environment = own_wheel().environment if host.ssh else ""
    answer = await topology_host(topology, name).probe(
        folder, ports, python=host.python, packages=packages, environment=environment
    )
    return Inventory.model_validate(answer)


def topology_host(topology: Topology, name: str) -> Host:
    """A host of a topology; nothing is sent to it yet."""
    host = topology.hosts[name]
    return open_host(name, host.ssh, python=host.python, accept_new=host.host_keys == "accept-new")
