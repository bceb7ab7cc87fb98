"""Topology + profile + inventories -> Plan. Pure: equal inputs give an equal plan."""

from collections.abc import Collection, Iterator

from pdctl.errors import PlanError
from pdctl.planning.checks import engine_hosts, refuse_unsupported, refuse_versions
from pdctl.planning.continuity import Continuity
from pdctl.planning.engine_plans import EnginePlanner
from pdctl.planning.given_ports import ports_of_users
from pdctl.planning.gpus import GpuDealer
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import LOOPBACK, ROUTER_PLACEHOLDER, HostPlan, Plan, ProcessPlan
from pdctl.planning.ports import CHOSEN_PORTS, PortPicker
from pdctl.planning.routers import RouterPlanner, router_profile
from pdctl.planning.running import RunningEngine, engines_of, in_order
from pdctl.profiles import Profile
from pdctl.topology.models import Topology
from pdctl.topology.router import OWN_ROUTER


def make_plan(
    topology: Topology,
    profile: Profile,
    inventories: dict[str, Inventory],
    current: Plan | None = None,
    *,
    leaving: Collection[str] = (),
) -> Plan:
    """Plan every process. `inventories` has each host of `ports_to_probe`; raises PlanError for what cannot be.

    `current`: what runs now. An engine that need not change keeps its name, ports and GPUs; one that must change keeps
    its name and what suits; only those named in `leaving` do not stay in any case.
    """
    other = router_profile(topology, profile)
    refuse_unsupported(topology, profile, other)
    hosts = _plan_hosts(topology, profile, inventories, current)
    refuse_versions(topology, profile, inventories)
    ports = PortPicker(inventories, current, ports_of_users(topology, profile))
    routers = RouterPlanner(topology, hosts, inventories, ports)
    router_ports = (
        routers.pick_ports(other, current.router if current else None) if other else {"api": [topology.router.port]}
    )
    planner = EnginePlanner(topology, profile, hosts, inventories, router=_address(routers, router_ports), ports=ports)
    running = engines_of(current)
    dealer = GpuDealer(topology, profile, inventories, running)
    continuity = Continuity(topology, planner, dealer, running, leaving)
    ports.let_go([process for engine in continuity.going for process in engine.processes])
    engines = list(_plan_engines(topology, planner, dealer, continuity))
    return Plan(
        name=topology.name,
        model=topology.model,
        engine=profile.name,
        engine_versions={
            name: version for name in engine_hosts(topology) if (version := inventories[name].engine_version)
        },
        has_own_router=other is None,
        router_kind=other.name if other else OWN_ROUTER,
        router_starts_last=other is not None and other.starts == "after engines",
        registered_path=other.registered if other else None,
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
    for host, port in ports_of_users(topology, profile):
        ports[host].append(port)
    return ports


def missing_engines(topology: Topology, profile: Profile, inventories: dict[str, Inventory]) -> Iterator[str]:
    """Walk the hosts that lack the engine, as far as that is known: what is wrong, and what to do."""
    for name in engine_hosts(topology):
        problem = inventories[name].engine_problem
        if problem and profile.packages:
            yield (
                f"hosts.{name}: {problem}: name the interpreter that has engine {profile.name!r} with "
                f"`hosts: {{{name}: {{python: ...}}}}` in the topology file, or install it: {profile.packages.install}"
            )


def _used_hosts(topology: Topology) -> list[str]:
    used = {topology.router.host, *engine_hosts(topology)}
    return [name for name in topology.hosts if name in used]


def _plan_hosts(
    topology: Topology, profile: Profile, inventories: dict[str, Inventory], current: Plan | None
) -> dict[str, HostPlan]:
    used = _used_hosts(topology)
    for name in used:
        if name not in inventories:
            raise PlanError(f"hosts.{name}: nothing is known about this host: it was not probed")
    alone = len(used) == 1 and not profile.on_own_address
    if current and any(host.address != LOOPBACK for host in current.hosts.values()):
        alone = False  # it had others beside it: it is reached as before
    return {name: _plan_host(topology, name, inventories[name], alone=alone) for name in used}


def _plan_host(topology: Topology, name: str, inventory: Inventory, *, alone: bool) -> HostPlan:
    host = topology.hosts[name]
    address = host.address or (LOOPBACK if alone and host.ssh is None else inventory.address)
    return HostPlan(
        name=name, ssh=host.ssh, accept_new=host.host_keys == "accept-new", python=host.python, address=address
    )


def _address(routers: RouterPlanner, ports: dict[str, list[int]]) -> str:
    port = ports["api"][0]
    return f"{routers.address}:{port}" if port else ROUTER_PLACEHOLDER


def _plan_engines(
    topology: Topology, planner: EnginePlanner, dealer: GpuDealer, continuity: Continuity
) -> Iterator[ProcessPlan]:
    gpus, engines = dealer.deal(continuity.keep_gpus), []
    for role, index, group in topology.groups():
        for slot in ((role, index, replica) for replica in range(group.replicas)):
            same, name = continuity.same.get(slot), continuity.names[slot]
            engines.append(same or planner.plan(name, index, group, gpus[slot], continuity.has.get(slot)))
    for engine in in_order(map(RunningEngine, map(tuple, engines))):
        yield from engine.processes
