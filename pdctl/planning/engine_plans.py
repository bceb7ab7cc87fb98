"""An engine's processes: their command lines, environments and ports, from the profile's templates."""

import re
from collections import Counter
from pathlib import PurePosixPath
from typing import NamedTuple

from pdctl.planning.inventory import Inventory
from pdctl.planning.nics import NICS_VARIABLE, EngineNics, engine_nics
from pdctl.planning.plan import WORK_DIR_PLACEHOLDER, HostPlan, ProcessPlan, Readiness
from pdctl.planning.ports import API, METRICS, GivenPorts, PortPicker, given_ports, named_ports, purposes_used
from pdctl.profiles import EngineRole, Profile
from pdctl.profiles.templates import Template
from pdctl.topology.fields import Argument
from pdctl.topology.models import EngineGroup, Topology

_ALWAYS_PICKED = (API, METRICS)
_NUMBER = re.compile(r"-[0-9.]+(e[-+]?[0-9]+)?")  # a value, although it begins as a flag does


class Node(NamedTuple):
    """One host's part of an engine."""

    engine: str  # "prefill-0"
    rank: int  # 0: the head
    host: str
    gpus: tuple[int, ...]

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
        self._count: Counter[EngineRole] = Counter()
        self._on_host = Counter(
            host for _, _, group in topology.groups() for host in group.nodes for _ in range(group.replicas)
        )

    def plan(
        self, role: EngineRole, index: int, group: EngineGroup, gpus: tuple[tuple[int, ...], ...]
    ) -> list[ProcessPlan]:
        """Plan the next engine of a group: its head, then a process on each further host. `gpus`: by host."""
        name = f"{role}-{self._count[role]}"
        self._count[role] += 1
        nodes = [Node(name, rank, host, gpus[rank]) for rank, host in enumerate(group.nodes)]
        head_ports: dict[str, list[int]] = {}
        planned = []
        for node in nodes:
            ports = self._pick_ports(
                role, group, node, list(given_ports(self._profile, role, index, group)), head_ports
            )
            head_ports = head_ports or ports
            planned.append(self._plan_node(role, group, node, ports))
        return planned

    def _plan_node(self, role: EngineRole, group: EngineGroup, node: Node, ports: dict[str, list[int]]) -> ProcessPlan:
        profile, follows = self._profile, node.rank > 0
        nics = engine_nics(self._inventories[node.host], node.gpus, group.env.get(NICS_VARIABLE))
        values = self._values(role, group, node) | self._port_values(role, ports) | _nic_values(nics)
        argv = [text for template in self._arguments(role, node) for text in template.filled(values)]
        env = {name: text for name, one in self._environment(role, node).items() for text in one.filled(values)}
        return ProcessPlan(
            name=node.name,
            role=role,
            host=node.host,
            address=self._hosts[node.host].address,
            argv=tuple(with_args(argv, group.args)),
            env={**env, **group.env},
            ports={} if follows else named_ports(ports),
            gpus=node.gpus,
            nics=nics.devices,
            head=node.engine if follows else None,
            readiness=Readiness(kind="head", timeout_s=profile.readiness.timeout_s) if follows else profile.readiness,
            stop_grace_s=profile.stop_grace_s,
            metrics={} if follows else dict(profile.metrics.items()),
        )

    def _pick_ports(
        self,
        role: EngineRole,
        group: EngineGroup,
        node: Node,
        given: list[GivenPorts],
        of_head: dict[str, list[int]],
    ) -> dict[str, list[int]]:
        """The ports of the purposes that its command line and environment name."""
        profile = self._profile
        values = self._values(role, group, node)
        named = [*self._arguments(role, node), *self._environment(role, node).values()]
        wanted = purposes_used([template for template in named if not template.lacks([*values, *_NIC_VALUES])])
        for one in given:
            self._ports.take(node.host, one, node.name)
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
            ports[purpose] = self._ports.pick(node.host, port, port.count(group.tp, group.dp), node.name)
        return ports

    def _arguments(self, role: EngineRole, node: Node) -> list[Template]:
        version = self._inventories[node.host].engine_version
        arguments = self._profile.arguments(role, follower=node.rank > 0)
        return [template for template in arguments if template.is_for(version)]

    def _environment(self, role: EngineRole, node: Node) -> dict[str, Template]:
        version = self._inventories[node.host].engine_version
        return {name: one for name, one in self._profile.environment(role).items() if one.is_for(version)}

    def _values(self, role: EngineRole, group: EngineGroup, node: Node) -> dict[str, str]:
        host, inventory = self._hosts[node.host], self._inventories[node.host]
        python = host.python or inventory.python
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
            "threads": str(max(1, inventory.cpus // self._on_host[node.host])),
        }
        return values | self._parallel_values(group, node)

    def _parallel_values(self, group: EngineGroup, node: Node) -> dict[str, str]:
        """What has a value only where there is more than one."""
        values: dict[str, str] = {}
        if node.gpus:
            values["gpus"] = ",".join(map(str, node.gpus))
        if group.dp > 1:
            values["dp"] = str(group.dp)
        count = len(group.nodes)
        if count == 1:
            return values
        values |= {"nodes": str(count), "node_rank": str(node.rank), "head": self._hosts[group.nodes[0]].address}
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


_NIC_VALUES = ("nics", "ucx_net_devices")


def _nic_values(nics: EngineNics) -> dict[str, str]:
    return dict(zip(_NIC_VALUES, (nics.text, nics.ucx), strict=True)) if nics.devices else {}


def with_args(argv: list[str], args: dict[str, Argument]) -> list[str]:
    """Add the user's flags to a command line, each in place of the command's own flag of that name."""
    for name, value in args.items():
        argv = [*_without(argv, f"--{name}"), *_tokens(f"--{name}", value)]
    return argv


def _without(argv: list[str], flag: str) -> list[str]:
    """Drop the flag and the values that follow it."""
    kept, dropping = [], False
    for token in argv:
        if token.startswith("-") and not _NUMBER.fullmatch(token):
            dropping = token == flag
        if not dropping and not token.startswith(f"{flag}="):
            kept.append(token)
    return kept


def _tokens(flag: str, value: Argument) -> list[str]:
    if value is True:
        return [flag]
    if value is False:
        return []
    text = ",".join(map(_text, value)) if isinstance(value, list) else _text(value)
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _text(value: bool | int | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
