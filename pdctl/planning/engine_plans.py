"""An engine's processes: their command lines, environments and ports, from the profile's templates."""

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from pdctl.planning.given_ports import given_ports
from pdctl.planning.inventory import Inventory
from pdctl.planning.nics import NICS_VARIABLE, EngineNics, engine_nics
from pdctl.planning.plan import LOOPBACK, WORK_DIR_PLACEHOLDER, HostPlan, ProcessPlan, Readiness
from pdctl.planning.ports import API, METRICS, GivenPorts, PortPicker, named_ports, purposes_used
from pdctl.planning.running import Gpus, RunningEngine
from pdctl.planning.user_args import with_args
from pdctl.profiles import EngineRole, Profile
from pdctl.profiles.templates import Template
from pdctl.topology.models import ROLES, EngineGroup, Topology

_ALWAYS_PICKED = (API, METRICS)


class Node(NamedTuple):
    """One host's part of an engine."""

    engine: str  # "prefill-0"
    rank: int  # 0: the head
    host: str
    gpus: Gpus
    threads: int

    @property
    def name(self) -> str:
        """What its process is called."""
        return f"{self.engine}-node{self.rank}" if self.rank else self.engine


class EnginePlanner:
    """Plans the engines of one deployment, one after the other."""

    def __init__(
        self,
        topology: Topology,
        profile: Profile,
        hosts: dict[str, HostPlan],
        inventories: dict[str, Inventory],
        *,
        router: str,
        ports: PortPicker,
    ) -> None:
        self._topology = topology
        self._profile = profile
        self._hosts = hosts
        self._inventories = inventories
        self._router = router
        self._ports = ports
        self._on_host = Counter(
            host for _, _, group in topology.groups() for host in group.nodes for _ in range(group.replicas)
        )

    def plan(
        self,
        name: str,
        index: int,
        group: EngineGroup,
        gpus: tuple[Gpus, ...],
        has: RunningEngine | None = None,
    ) -> list[ProcessPlan]:
        """Plan an engine of a group: its head, then a process on each further host. `gpus`: by host.

        `has`: the engine as it runs, on the same hosts: it keeps the ports that suit.
        """
        threads = [self._threads(host) for host in group.nodes]
        return self._plan(name, index, group, gpus, threads, self._ports, has)

    def plan_as_it_is(self, index: int, group: EngineGroup, engine: RunningEngine) -> list[ProcessPlan]:
        """Plan an engine that runs, on a group's hosts, as one of the group that keeps all it can. Takes no ports."""
        threads = [process.threads or self._threads(process.host) for process in engine.processes]
        return self._plan(engine.name, index, group, engine.gpus, threads, self._ports.trial(), engine)

    def _plan(
        self,
        name: str,
        index: int,
        group: EngineGroup,
        gpus: tuple[Gpus, ...],
        threads: list[int],
        picker: PortPicker,
        has: RunningEngine | None,
    ) -> list[ProcessPlan]:
        role = role_of(name)
        given = list(given_ports(self._profile, role, index, group))
        head_ports: dict[str, list[int]] = {}
        planned: list[ProcessPlan] = []
        for rank, host in enumerate(group.nodes):
            node = Node(name, rank, host, gpus[rank], threads[rank])
            own = has.processes[rank].port_numbers if has else {}
            ports = self._pick_ports(role, group, node, given, head_ports, picker, own)
            head_ports = head_ports or ports
            planned.append(self._plan_node(role, index, group, node, ports))
        return planned

    def _plan_node(
        self, role: EngineRole, index: int, group: EngineGroup, node: Node, ports: dict[str, list[int]]
    ) -> ProcessPlan:
        profile, follows = self._profile, node.rank > 0
        described = profile.roles[role].ports
        nics = engine_nics(self._inventories[node.host], node.gpus, group.env.get(NICS_VARIABLE))
        values = self._values(role, group, node) | self._port_values(role, ports) | _nic_values(nics)
        arguments, environment = self._arguments(role, node), self._environment(role, node)
        argv = [text for template in arguments for text in template.filled(values)]
        env = {name: text for name, one in environment.items() for text in one.filled(values)}
        told = {name for template in (*arguments, *environment.values()) for name in template.placeholders()}
        host = self._topology.hosts[node.host]
        return ProcessPlan(
            name=node.name,
            role=role,
            host=node.host,
            address=self._hosts[node.host].address,
            argv=tuple(with_args(argv, group.args)),
            env={**host.env, **env, **group.env},
            secrets=group.secrets,
            workdir=group.workdir or host.workdir,
            setup="\n".join(filter(None, [host.setup, group.setup])) or None,
            ports={} if follows else named_ports(ports),
            port_numbers={
                purpose: tuple(numbers)
                for purpose, numbers in ports.items()
                if not (follows and described[purpose].of_head)
            },
            gpus=node.gpus,
            nics=nics.devices if told & {*_NIC_VALUES} else (),
            threads=node.threads,
            group=index,
            head=node.engine if follows else None,
            readiness=Readiness(kind="head", timeout_s=profile.readiness.timeout_s) if follows else profile.readiness,
            stop_grace_s=profile.stop_grace_s,
            restart=group.restart,
            metrics={} if follows else dict(profile.metrics.items()),
        )

    def _pick_ports(
        self,
        role: EngineRole,
        group: EngineGroup,
        node: Node,
        given: list[GivenPorts],
        of_head: dict[str, list[int]],
        picker: PortPicker,
        own: Mapping[str, tuple[int, ...]],
    ) -> dict[str, list[int]]:
        """The ports of the purposes that its command line and environment name; `own`: those that it has."""
        profile = self._profile
        values = self._values(role, group, node)
        named = [*self._arguments(role, node), *self._environment(role, node).values()]
        wanted = purposes_used([template for template in named if not template.lacks([*values, *_NIC_VALUES])])
        for one in given:
            picker.take(node.host, one._replace(numbers=self._bound(role, one, group, node)), node.name)
        ports = {one.purpose: one.numbers for one in given if one.numbers}
        for purpose, port in profile.roles[role].ports.items():
            if (
                purpose in [one.purpose for one in given]
                or port.kind == "given"
                or purpose not in (*wanted, *_ALWAYS_PICKED)
            ):
                continue
            if port.of_head and purpose in of_head:
                ports[purpose] = of_head[purpose]
                continue
            count = port.needed(group.tp, group.dp)
            ports[purpose] = picker.pick(node.host, port, count, node.name, own.get(purpose, ()))
        return {purpose: ports[purpose] for purpose in profile.roles[role].ports if purpose in ports}

    def _bound(self, role: EngineRole, given: GivenPorts, group: EngineGroup, node: Node) -> list[int]:
        """Those of an engine's ports that its process on one of its hosts binds."""
        port = self._profile.roles[role].ports[given.purpose]
        if port.per == "dp" and group.dp > 1:
            local = group.dp // len(group.nodes)
            return given.numbers[node.rank * local : (node.rank + 1) * local]
        return [] if node.rank and (port.of_head or port.per == "dp") else given.numbers

    def _threads(self, host: str) -> int:
        return max(1, self._inventories[host].cpus // self._on_host[host])

    def _arguments(self, role: EngineRole, node: Node) -> list[Template]:
        version = self._inventories[node.host].engine_version
        arguments = self._profile.arguments(role, follower=node.rank > 0)
        return [template for template in arguments if template.is_for(version)]

    def _environment(self, role: EngineRole, node: Node) -> dict[str, Template]:
        version = self._inventories[node.host].engine_version
        return {name: one for name, one in self._profile.environment(role).items() if one.is_for(version)}

    def _values(self, role: EngineRole, group: EngineGroup, node: Node) -> dict[str, str]:
        host, inventory = self._hosts[node.host], self._inventories[node.host]
        python = host.python or inventory.prepared_python or inventory.python
        values = {
            "python": python,
            "bin": str(PurePosixPath(python).parent),
            "model": self._topology.model,
            "role": role,
            "name": node.name,
            "work_dir": WORK_DIR_PLACEHOLDER,
            "router": self._router,
            "host": host.address,
            "advertise_host": host.address,
            "tp": str(group.tp),
            "threads": str(node.threads),
        }
        return values | self._parallel_values(group, node)

    def _parallel_values(self, group: EngineGroup, node: Node) -> dict[str, str]:
        """What has a value only where there is more than one, or all is on one host."""
        values = {"loopback": "lo"} if self._hosts[node.host].address == LOOPBACK else {}
        if node.gpus:
            values["gpus"] = ",".join(map(str, node.gpus))
        if group.dp > 1:
            values["dp"] = str(group.dp)
        count = len(group.nodes)
        if count > 1 or group.dp > 1:
            values["head"] = self._hosts[group.nodes[0]].address
        if count == 1:
            return values
        values |= {"nodes": str(count), "node_rank": str(node.rank)}
        if group.dp == 1:
            return values | {"tp_nodes": str(count)}
        local = group.dp // count
        return values | {"dp_local": str(local), "dp_start": str(node.rank * local)}

    def _port_values(self, role: EngineRole, ports: dict[str, list[int]]) -> dict[str, str]:
        described = self._profile.roles[role].ports
        return {
            f"port.{purpose}": ",".join(map(str, numbers[:1] if described[purpose].consecutive else numbers))
            for purpose, numbers in ports.items()
        }


def role_of(name: str) -> EngineRole:
    """The role in an engine's name."""
    return next(role for role in ROLES if name.startswith(f"{role}-"))


_NIC_VALUES = ("nics", "ucx_net_devices")


def _nic_values(nics: EngineNics) -> dict[str, str]:
    return dict(zip(_NIC_VALUES, (nics.text, nics.ucx), strict=True)) if nics.devices else {}
