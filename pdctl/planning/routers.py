"""The router's process: pdctl's own, or another by its profile."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from pdctl.errors import PlanError
from pdctl.planning.given_ports import router_ports
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import WORK_DIR_PLACEHOLDER, HostPlan, ProcessPlan
from pdctl.planning.ports import API, ROUTER, GivenPorts, PortPicker, named_ports
from pdctl.planning.user_args import with_args
from pdctl.profiles import Profile, Readiness, RouterProfile, load_router_profile, router_names
from pdctl.profiles.models import OWN_PROTOCOLS, Listing
from pdctl.topology.fields import EVERY_ADDRESS
from pdctl.topology.models import Topology
from pdctl.topology.router import OWN_ROUTER

OWN_METRICS = {
    "requests": "pdctl_router_requests_total",
    "running": "pdctl_router_requests_in_flight",
    "waiting": "pdctl_router_queue_depth",
    "ttft_seconds": "pdctl_router_ttft_seconds_sum",
    "ttft_count": "pdctl_router_ttft_seconds_count",
    "draining": "pdctl_router_instance_draining",
    "fallbacks": "pdctl_router_fallbacks_total",
}
_STOP_GRACE_S = 5.0  # for a router to end, beyond its time for draining


def router_profile(topology: Topology, profile: Profile) -> RouterProfile | None:
    """The profile of the router; None: pdctl's own. Raises PlanError where it does not speak the engine's protocol."""
    kind = topology.router.kind
    other = None if kind == OWN_ROUTER else load_router_profile(kind)
    spoken = other.protocols if other else OWN_PROTOCOLS
    if profile.protocol in spoken:
        return other
    able = [name for name in router_names() if profile.protocol in load_router_profile(name).protocols]
    able += [OWN_ROUTER] * (profile.protocol in OWN_PROTOCOLS)
    raise PlanError(
        f"router.kind: {kind} does not speak {profile.protocol}, the protocol of engine {profile.name!r}: "
        + (f"these do: {', '.join(able)}" if able else "no router that is known does: give the profile of one")
    )


class RouterPlanner:
    """Plans the router of one deployment."""

    def __init__(
        self, topology: Topology, hosts: dict[str, HostPlan], inventories: dict[str, Inventory], ports: PortPicker
    ) -> None:
        self._topology = topology
        self._router = topology.router
        self._host = hosts[topology.router.host]
        self._inventory = inventories[topology.router.host]
        self._ports = ports
        if self._router.port:
            given = GivenPorts(API, [self._router.port], "router.port")
            hint = "; choose another with `router: {port: ...}` in the topology file (0: any free one)"
            ports.take(self._router.host, given, ROUTER, hint)

    @property
    def address(self) -> str:
        """At which it is reached. Where it listens is its own affair: engines stay on their host's."""
        bind = self._router.bind
        return bind if bind and bind not in EVERY_ADDRESS else self._host.address

    def own(self, profile: Profile, engines: Sequence[ProcessPlan]) -> ProcessPlan:
        """Plan pdctl's router."""
        router = self._router
        argv = [self._own_python(), "-P", "-m", "pdctl.router"]
        argv += ["--host", router.bind or self._host.address, "--port", str(router.port)]
        if self._topology.replicas("mixed"):
            argv += ["--mixed-policy", router.mixed_policy]
        else:
            argv += ["--splitwise", "--prefill-policy", router.prefill_policy, "--decode-policy", router.decode_policy]
        argv += ["--workers", str(router.workers), "--drain-secs", f"{router.drain_secs:g}"]
        if router.pd_min_tokens:
            argv += ["--pd-min-tokens", str(router.pd_min_tokens)]
        host = self._topology.hosts[router.host]
        return ProcessPlan(
            name=ROUTER,
            role="router",
            host=router.host,
            address=self.address,
            argv=tuple(with_args([*argv, *_told(profile, engines)], router.args)),
            env={**host.env, **router.env},
            secrets=router.secrets,
            workdir=host.workdir,
            setup=host.setup,
            ports={API: router.port},
            port_numbers={API: (router.port,)},
            readiness=Readiness(kind="notify", timeout_s=30),
            stop_grace_s=router.drain_secs + _STOP_GRACE_S,
            restart=router.restart,
            metrics=OWN_METRICS,
        )

    def _own_python(self) -> str:
        """The interpreter that has pdctl: on another host, the prepared one, or the user's where it has the engine."""
        host, inventory = self._host, self._inventory
        if host.ssh is None:
            return inventory.python
        python = inventory.prepared_python or host.python
        if python is None:
            raise PlanError(
                f"router.host: host {host.name!r} has no pdctl, whose router it is to run: run `pdctl hosts prepare`"
                " with the topology file, or name an interpreter that has it with"
                f" `hosts: {{{host.name}: {{python: ...}}}}`"
            )
        return python

    def other(self, profile: RouterProfile, engines: Sequence[ProcessPlan], ports: dict[str, list[int]]) -> ProcessPlan:
        """Plan a router that has a profile, on ports that were picked for it."""
        router, python = self._router, self._host.python or self._inventory.python
        values = {
            "python": python,
            "bin": str(PurePosixPath(python).parent),
            "model": self._topology.model,
            "name": ROUTER,
            "work_dir": WORK_DIR_PLACEHOLDER,
            "host": router.bind or self._host.address,
            "advertise_host": self.address,
            **{f"port.{purpose}": str(numbers[0]) for purpose, numbers in ports.items()},
        }
        templates = [*profile.command, *(() if self._topology.replicas("mixed") else profile.pd)]
        argv = [text for template in templates for text in template.filled(values)]
        for role, listing in profile.engines.items():
            argv += _listed(listing, [engine for engine in engines if engine.role == role], values)
        own = {name: text for name, one in profile.env.items() for text in one.filled(values)}
        host = self._topology.hosts[router.host]
        return ProcessPlan(
            name=ROUTER,
            role="router",
            host=router.host,
            address=self.address,
            argv=tuple(with_args(argv, router.args)),
            env={**host.env, **own, **router.env},
            secrets=router.secrets,
            workdir=host.workdir,
            setup=host.setup,
            ports=named_ports(ports),
            port_numbers={purpose: tuple(numbers) for purpose, numbers in ports.items()},
            readiness=profile.readiness,
            stop_grace_s=profile.stop_grace_s,
            restart=router.restart,
            metrics=dict(profile.metrics.items()),
        )

    def pick_ports(self, profile: RouterProfile, current: ProcessPlan | None) -> dict[str, list[int]]:
        """The user's ports, and free ones for what else it has: those of the current one on its host."""
        has = current.port_numbers if current and current.host == self._router.host else {}
        given = {one.purpose: one for one in router_ports(self._router, profile)}
        for one in given.values():
            self._ports.take(self._router.host, one, ROUTER)
        ports = {API: [self._router.port]} if self._router.port else {}
        ports |= {purpose: one.numbers for purpose, one in given.items() if one.numbers}
        for purpose, port in profile.ports.items():
            if purpose not in (*ports, *given) and port.kind != "given":
                ports[purpose] = self._ports.pick(self._router.host, port, 1, ROUTER, has.get(purpose, ()))
        return ports


def _told(profile: Profile, engines: Sequence[ProcessPlan]) -> list[str]:
    """What pdctl's router is told of engines that cannot register, or cannot show the token."""
    heads = [engine for engine in engines if engine.head is None]
    if profile.registers == "with token":
        return []
    if profile.registers == "without token":
        return [
            text
            for engine in heads
            for port in engine.api_ports
            for text in ("--admit", engine.role, f"http://{engine.address}:{engine.ports[port]}")
        ]
    told = ["--protocol", profile.protocol]
    for engine in heads:
        told += [f"--{engine.role}", f"http://{engine.address}:{engine.ports['api']}", *_bootstrap(engine)]
    return told


def _bootstrap(engine: ProcessPlan) -> list[str]:
    port = engine.ports.get("bootstrap")
    return [str(port)] if port and engine.role == "prefill" else []


def _listed(listing: Listing, engines: Sequence[ProcessPlan], values: dict[str, str]) -> list[str]:
    """What another router is told of the engines of a role."""
    heads = [engine for engine in engines if engine.head is None]
    told = [text for template in listing.once if heads for text in template.filled(values)]
    for engine in heads:
        own = {"engine": f"{engine.address}:{engine.ports['api']}"}
        if bootstrap := _bootstrap(engine):
            own["bootstrap"] = bootstrap[0]
        told += [text for template in listing.each for text in template.filled(values | own)]
    return told
