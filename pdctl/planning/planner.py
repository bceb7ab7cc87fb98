"""Topology + profile + inventories -> Plan. Pure: equal inputs give an equal plan."""

from collections.abc import Iterator

from pdctl.errors import PlanError
from pdctl.planning.engine_plans import EnginePlanner
from pdctl.planning.gpus import assign_gpus
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import ROUTER_PLACEHOLDER, HostPlan, Plan, ProcessPlan
from pdctl.planning.ports import CHOSEN_PORTS, PortPicker, ports_of_users
from pdctl.planning.routers import RouterPlanner, router_profile
from pdctl.profiles import Profile
from pdctl.profiles.templates import in_range
from pdctl.topology.models import OWN_ROUTER, EngineGroup, Topology

_LOOPBACK = "127.0.0.1"


def make_plan(topology: Topology, profile: Profile, inventories: dict[str, Inventory]) -> Plan:
    """Plan every process. `inventories` has each host of `ports_to_probe`; raises PlanError for what cannot be."""
    for role, index, group in topology.groups():
        if group.replicas:
            _refuse_unsupported(profile, role, index, group)
    hosts = _plan_hosts(topology, profile, inventories)
    _refuse_versions(profile, inventories)
    other = router_profile(topology, profile)
    ports = PortPicker(topology, inventories)
    routers = RouterPlanner(topology, hosts, inventories, ports)
    router_ports = routers.pick_ports(other) if other else {"api": [topology.router.port]}
    engines = list(_plan_engines(topology, profile, hosts, inventories, ports, _address(routers, router_ports)))
    return Plan(
        name=topology.name,
        model=topology.model,
        engine=profile.name,
        engine_versions={name: one.engine_version for name, one in inventories.items() if one.engine_version},
        has_own_router=other is None,
        router_starts_last=other is not None and other.starts == "after engines",
        warm_up=profile.warm_up,
        troubles=profile.troubles,
        hosts=hosts,
        router=routers.other(other, engines, router_ports) if other else routers.own(profile, engines),
        engines=tuple(engines),
    )


def ports_to_probe(topology: Topology, profile: Profile) -> dict[str, list[int]]:
    """Return the hosts whose inventories a plan needs, each with the ports whose holders it must know."""
    chosen = list(CHOSEN_PORTS) if profile.chooses_ports or topology.router.kind != OWN_ROUTER else []
    ports = {name: list(chosen) for name in _used_hosts(topology)}
    if topology.router.port:
        ports[topology.router.host].append(topology.router.port)
    for host, port in ports_of_users(topology, profile):
        ports[host].append(port)
    return ports


def missing_engines(topology: Topology, profile: Profile, inventories: dict[str, Inventory]) -> Iterator[str]:
    """Walk the hosts that lack the engine, as far as that is known: what is wrong, and what to do."""
    used = {host for _, _, group in topology.groups() if group.replicas for host in group.nodes}
    for name in topology.hosts:
        problem = inventories[name].engine_problem if name in used else None
        if problem and profile.packages:
            yield (
                f"hosts.{name}: {problem}: name the interpreter that has engine {profile.name!r} with "
                f"`hosts: {{{name}: {{python: ...}}}}` in the topology file, or install it: {profile.packages.install}"
            )


def _used_hosts(topology: Topology) -> list[str]:
    used = {
        topology.router.host,
        *(host for _, _, group in topology.groups() if group.replicas for host in group.nodes),
    }
    return [name for name in topology.hosts if name in used]


def _refuse_unsupported(profile: Profile, role: str, index: int, group: EngineGroup) -> None:
    if role not in profile.roles:
        raise PlanError(f"{role}: engine {profile.name!r} has no such role: it has {', '.join(profile.roles)}")
    for key, limit in (("tp", profile.limits.max_tp), ("dp", profile.limits.max_dp)):
        asked = getattr(group, key)
        if limit is not None and asked > limit:
            raise PlanError(f"{role}[{index}].{key}: engine {profile.name!r} goes up to {key} {limit}, got {asked}")
    if len(group.nodes) > 1 and profile.follower is None:
        raise PlanError(f"{role}[{index}].hosts: one engine {profile.name!r} cannot span several hosts")


def _refuse_versions(profile: Profile, inventories: dict[str, Inventory]) -> None:
    for name, inventory in inventories.items():
        version, packages = inventory.engine_version, profile.packages
        if version and packages and not in_range(version, packages.versions):
            raise PlanError(
                f"hosts.{name}: it has {packages.names[0]} {version}, and the profile {profile.name!r} is for "
                f"{packages.versions}: install another, or give a profile of your own with `extends: {profile.name}`"
            )


def _plan_hosts(topology: Topology, profile: Profile, inventories: dict[str, Inventory]) -> dict[str, HostPlan]:
    used = _used_hosts(topology)
    for name in used:
        if name not in inventories:
            raise PlanError(f"hosts.{name}: nothing is known about this host: it was not probed")
    alone = len(used) == 1 and not profile.on_own_address
    return {name: _plan_host(topology, name, inventories[name], alone=alone) for name in used}


def _plan_host(topology: Topology, name: str, inventory: Inventory, *, alone: bool) -> HostPlan:
    host = topology.hosts[name]
    address = host.address or (_LOOPBACK if alone and host.ssh is None else inventory.address)
    return HostPlan(name=name, ssh=host.ssh, python=host.python, address=address)


def _address(routers: RouterPlanner, ports: dict[str, list[int]]) -> str:
    port = ports["api"][0]
    return f"{routers.address}:{port}" if port else ROUTER_PLACEHOLDER


def _plan_engines(
    topology: Topology,
    profile: Profile,
    hosts: dict[str, HostPlan],
    inventories: dict[str, Inventory],
    ports: PortPicker,
    router: str,
) -> Iterator[ProcessPlan]:
    planner = EnginePlanner(topology, profile, hosts, inventories, router=router, ports=ports)
    gpus = assign_gpus(topology, profile, inventories)
    for role, index, group in topology.groups():
        for replica in range(group.replicas):
            yield from planner.plan(role, index, group, gpus[role, index, replica])
