"""The two hosts of a sweep: how a measuring process is run on each, and the NICs that rdma uses there."""

import asyncio
from functools import partial

from pdctl.bench.transfer.links import rdma_environment, rdma_link
from pdctl.bench.transfer.messages import Link
from pdctl.bench.transfer.run import HERE, MODULE, Side
from pdctl.deployment.store import state_root
from pdctl.errors import PlanError
from pdctl.planning.inventory import Inventory
from pdctl.planning.probing import probe_host, topology_host
from pdctl.topology.models import Host as HostOfTopology
from pdctl.topology.models import Topology


class Ends:
    """From which host to which: names of a topology's, or any other for this machine."""

    def __init__(self, topology: Topology, source: str, target: str) -> None:
        this_machine = {name: HostOfTopology() for name in (source, target) if name not in topology.hosts}
        self._topology = topology.model_copy(update={"hosts": {**topology.hosts, **this_machine}})
        self._names = (source, target)
        self._inventories: dict[str, Inventory] = {}
        self.environment: dict[str, str] = {}  # of a process on this machine
        self.rdma_link: Link | None = None  # the slower of the two; None: one has none

    @property
    def _all_here(self) -> bool:
        return all(self._topology.hosts[name].ssh is None for name in self._names)

    async def look(self, *, rdma: bool) -> None:
        """Ask the hosts what is needed; `rdma`: their NICs too."""
        if self._all_here and not rdma:
            return
        names = list(dict.fromkeys(self._names))
        found = await asyncio.gather(*(probe_host(self._topology, name, state_root()) for name in names))
        self._inventories = dict(zip(names, found, strict=True))
        if not rdma:
            return
        here = [name for name in names if self._topology.hosts[name].ssh is None]
        self.environment = rdma_environment(self._inventories[here[0]]) if here else {}
        links = [link for inventory in found if (link := rdma_link(inventory)) is not None]
        if len(links) == len(names):
            self.rdma_link = min(links, key=lambda link: link.gigabytes_s or 0.0)

    def sides(self) -> tuple[Side, Side]:
        """Source and target; `look` was called."""
        source, target = (self._side(name) for name in self._names)
        return source, target

    def _side(self, name: str) -> Side:
        if self._all_here:
            return HERE
        host, inventory = self._topology.hosts[name], self._inventories[name]
        address = host.address or inventory.address
        if host.ssh is None:
            return Side(address)
        python = host.python or inventory.prepared_python
        if python is None:
            raise PlanError(f"hosts.{name}: it has no pdctl: run `pdctl hosts prepare` with the topology file")
        return Side(address, partial(self._command, name, python, rdma_environment(inventory)))

    def _command(self, name: str, python: str, env: dict[str, str], part: str) -> list[str]:
        return topology_host(self._topology, name).command([python, *MODULE, part], env)
