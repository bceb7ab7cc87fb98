"""Topology + profile + inventories -> Plan. Pure: equal inputs give an equal plan."""

from pdctl.errors import PlanError
from pdctl.planning.engine_plans import EnginePlanner, with_args
from pdctl.planning.gpus import assign_gpus
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import ROUTER_PLACEHOLDER, HostPlan, Plan, ProcessPlan
from pdctl.planning.ports import CHOSEN_PORTS, check_given_ports
from pdctl.profiles import Profile, Readiness
from pdctl.topology.models import EVERY_ADDRESS, Topology

ROUTER_METRICS = {"requests": "pdctl_router_requests_total", "running": "pdctl_router_requests_in_flight"}
_LOOPBACK = "127.0.0.1"
_STOP_GRACE_S = 5.0  # for a router to end, beyond its time for draining


def make_plan(topology: Topology, profile: Profile, inventories: dict[str, Inventory]) -> Plan:
    """Plan every process. `inventories` has each host of `ports_to_probe`; raises PlanError for what cannot be."""
    _refuse_unsupported(topology, profile)
    check_given_ports(topology, profile)
    hosts = _plan_hosts(topology, inventories)
    router = _plan_router(topology, hosts, inventories)
    planner = EnginePlanner(topology, profile, hosts, inventories, router=_router_address(topology, hosts))
    gpus = assign_gpus(topology, profile, inventories)
    engines = [
        planner.plan(role, group, gpus[role, index, replica])
        for role, index, group in topology.groups()
        for replica in range(group.replicas)
    ]
    return Plan(
        name=topology.name,
        model=topology.model,
        engine=profile.name,
        hosts=hosts,
        router=router,
        engines=tuple(engines),
    )


def ports_to_probe(topology: Topology, profile: Profile) -> dict[str, list[int]]:
    """Return the hosts whose inventories a plan needs, each with the ports whose holders it must know."""
    chosen = list(CHOSEN_PORTS) if profile.chooses_ports else []
    ports = {name: list(chosen) for name in _used_hosts(topology)}
    if topology.router.port:
        ports[topology.router.host].append(topology.router.port)
    return ports


def _used_hosts(topology: Topology) -> list[str]:
    used = {topology.router.host, *(group.host for _, _, group in topology.groups() if group.replicas)}
    return [name for name in topology.hosts if name in used]


def _refuse_unsupported(topology: Topology, profile: Profile) -> None:
    for role, index, group in topology.groups():
        if group.replicas and role not in profile.roles:
            raise PlanError(f"{role}: engine {profile.name!r} has no such role: it has {', '.join(profile.roles)}")
        limit = profile.limits.max_tp
        if limit is not None and group.tp > limit:
            raise PlanError(f"{role}[{index}].tp: engine {profile.name!r} goes up to tp {limit}, got {group.tp}")


def _plan_hosts(topology: Topology, inventories: dict[str, Inventory]) -> dict[str, HostPlan]:
    used = _used_hosts(topology)
    for name in used:
        if name not in inventories:
            raise PlanError(f"hosts.{name}: nothing is known about this host: it was not probed")
    return {name: _plan_host(topology, name, inventories[name], alone=len(used) == 1) for name in used}


def _plan_host(topology: Topology, name: str, inventory: Inventory, *, alone: bool) -> HostPlan:
    host = topology.hosts[name]
    address = host.address or (_LOOPBACK if alone and host.ssh is None else inventory.address)
    return HostPlan(name=name, ssh=host.ssh, python=host.python, address=address)


def _plan_router(topology: Topology, hosts: dict[str, HostPlan], inventories: dict[str, Inventory]) -> ProcessPlan:
    router = topology.router
    holder = inventories[router.host].taken_ports.get(router.port)
    if holder is not None:
        raise PlanError(
            f"router.port: port {router.port} of host {router.host!r} is not free: {holder}; choose another with "
            "`router: {port: ...}` in the topology file (0: any free one)"
        )
    host = hosts[router.host]
    python = host.python or inventories[router.host].python
    argv = [python, "-P", "-m", "pdctl.router", "--host", router.bind or host.address, "--port", str(router.port)]
    if topology.replicas("mixed"):
        argv += ["--mixed-policy", router.mixed_policy]
    else:
        argv += ["--splitwise", "--prefill-policy", router.prefill_policy, "--decode-policy", router.decode_policy]
    argv += ["--workers", str(router.workers), "--drain-secs", f"{router.drain_secs:g}"]
    if router.pd_min_tokens:
        argv += ["--pd-min-tokens", str(router.pd_min_tokens)]
    return ProcessPlan(
        name="router",
        role="router",
        host=router.host,
        address=_router_host(topology, hosts),
        argv=tuple(with_args(argv, router.args)),
        ports={"api": router.port},
        readiness=Readiness(kind="notify", timeout_s=30),
        stop_grace_s=router.drain_secs + _STOP_GRACE_S,
        metrics=ROUTER_METRICS,
    )


def _router_address(topology: Topology, hosts: dict[str, HostPlan]) -> str:
    port = topology.router.port
    return f"{_router_host(topology, hosts)}:{port}" if port else ROUTER_PLACEHOLDER


def _router_host(topology: Topology, hosts: dict[str, HostPlan]) -> str:
    """The address at which the router is reached. Where it listens is its own affair: engines stay on their host's."""
    bind = topology.router.bind
    return bind if bind and bind not in EVERY_ADDRESS else hosts[topology.router.host].address
