"""All that the checks look at: what was asked for, and what the hosts answered."""

from dataclasses import dataclass, field

from pdctl.doctor.system import Meeting, Netdev, System
from pdctl.errors import PdctlError
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.profiles import Profile
from pdctl.topology.models import EngineGroup, Topology


@dataclass(frozen=True)
class HostFacts:
    """What is known of a host that answered."""

    name: str
    ssh: str | None  # None: this machine
    inventory: Inventory
    system: System
    asked: tuple[float, float]  # by this machine's clock: when its system was asked for, and when it had answered
    given_address: str | None = None  # that of the topology

    @property
    def address(self) -> str:
        """At which other hosts reach it."""
        return self.given_address or self.inventory.address

    @property
    def netdev(self) -> Netdev | None:
        """The interface that has the address; None where the host itself does not have it."""
        own = self.system.address if self.given_address else self.inventory.address
        return next((netdev for netdev in self.system.netdevs if netdev.address == own), None)


@dataclass(frozen=True)
class Facts:
    """What is known of a topology's hosts."""

    topology: Topology
    profile: Profile
    hosts: dict[str, HostFacts]
    silent: dict[str, PdctlError] = field(default_factory=dict)  # hosts that could not be asked, and why
    plan: Plan | None = None
    refusal: PdctlError | None = None  # why there is no plan
    meetings: dict[str, Meeting] = field(default_factory=dict)
    not_met: dict[str, PdctlError] = field(default_factory=dict)  # hosts that could not try to reach the others

    @property
    def is_spread(self) -> bool:
        """Whether it is on several hosts."""
        return len(used_hosts(self.topology)) > 1

    @property
    def engine_hosts(self) -> dict[str, HostFacts]:
        """Those that run engines."""
        names = {name for group in groups(self.topology) for name in group.nodes}
        return {name: host for name, host in self.hosts.items() if name in names}

    def groups_on(self, host: str) -> list[EngineGroup]:
        """The groups of engines on a host."""
        return [group for group in groups(self.topology) if host in group.nodes]

    def processes_on(self, host: str) -> list[ProcessPlan]:
        """The processes that are planned for a host; none where there is no plan."""
        return [process for process in self.plan.processes if process.host == host] if self.plan else []


def groups(topology: Topology) -> list[EngineGroup]:
    """The groups that have engines."""
    return [group for _, _, group in topology.groups() if group.replicas]


def used_hosts(topology: Topology) -> list[str]:
    """The hosts that run something, in the topology's order."""
    used = {topology.router.host, *(name for group in groups(topology) for name in group.nodes)}
    return [name for name in topology.hosts if name in used]
