"""From a topology to a plan, with a look at its hosts."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from pdctl.errors import PlanError
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import Plan
from pdctl.planning.planner import make_plan, missing_engines
from pdctl.planning.probing import probe_hosts
from pdctl.profiles import Profile, load_profile
from pdctl.topology.models import Topology

TakenPorts = Mapping[str, Mapping[int, str]]  # by host: ports that are not free, and their holders


class Planned(NamedTuple):
    """A plan, and what it was made from."""

    topology: Topology
    profile: Profile
    inventories: dict[str, Inventory]
    plan: Plan


async def plan_topology(
    topology: Topology,
    folder: Path,
    current: Plan | None = None,
    *,
    leaving: Collection[str] = (),
    taken: TakenPorts | None = None,
) -> Planned:
    """Ask the hosts what they have, and plan; see `make_plan`. `folder`: where this machine keeps the state.

    `taken`: further ports that are not free. Raises PlanError.
    """
    profile = load_profile(topology.engine)
    inventories = await probe_hosts(topology, profile, folder)
    for problem in missing_engines(topology, profile, inventories):
        raise PlanError(problem)
    for host, ports in (taken or {}).items():
        if host in inventories:
            known = inventories[host].taken_ports
            inventories[host] = inventories[host].model_copy(update={"taken_ports": {**known, **ports}})
    return Planned(topology, profile, inventories, make_plan(topology, profile, inventories, current, leaving=leaving))
