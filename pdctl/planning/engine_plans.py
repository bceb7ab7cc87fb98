"""One engine's process: its command line, environment and ports, from the profile's templates."""

import re
from collections import Counter

from pdctl.planning.inventory import Inventory
from pdctl.planning.nics import NICS_VARIABLE, EngineNics, engine_nics
from pdctl.planning.plan import HostPlan, ProcessPlan
from pdctl.planning.ports import PortPicker, named_ports
from pdctl.profiles import EngineRole, Profile, fill
from pdctl.topology.models import Argument, EngineGroup, Topology

_NUMBER = re.compile(r"-[0-9.]+(e[-+]?[0-9]+)?")  # a value, although it begins as a flag does


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
    ) -> None:
        self._topology = topology
        self._profile = profile
        self._hosts = hosts
        self._inventories = inventories
        self._router = router
        self._ports = PortPicker(topology, inventories)
        self._count: Counter[EngineRole] = Counter()
        self._on_host = Counter(group.host for _, _, group in topology.groups() for _ in range(group.replicas))

    def plan(self, role: EngineRole, group: EngineGroup, gpus: tuple[int, ...]) -> ProcessPlan:
        """Plan the next engine of a role."""
        profile, role_profile = self._profile, self._profile.roles[role]
        ports = self._ports.pick(group, role_profile)
        nics = engine_nics(self._inventories[group.host], gpus, group.env.get(NICS_VARIABLE))
        values = self._values(role, group, gpus) | _port_values(ports) | _nic_values(nics)
        argv = [argument for templates in profile.arguments(role) for argument in fill(templates, values)]
        templates = {**profile.env, **role_profile.env}
        env = {name: value for name, template in templates.items() for value in fill([template], values)}
        number = self._count[role]
        self._count[role] += 1
        return ProcessPlan(
            name=f"{role}-{number}",
            role=role,
            host=group.host,
            address=self._hosts[group.host].address,
            argv=tuple(with_args(argv, group.args)),
            env={**env, **group.env},
            ports=named_ports(ports),
            gpus=gpus,
            nics=nics.devices,
            readiness=profile.readiness,
            stop_grace_s=profile.stop_grace_s,
            metrics=dict(profile.metrics.items()),
        )

    def _values(self, role: EngineRole, group: EngineGroup, gpus: tuple[int, ...]) -> dict[str, str]:
        host, inventory = self._hosts[group.host], self._inventories[group.host]
        return {
            "python": host.python or inventory.python,
            "model": self._topology.model,
            "role": role,
            "router": self._router,
            "host": host.address,
            "advertise_host": host.address,
            "gpus": ",".join(map(str, gpus)),
            "tp": str(group.tp),
            "threads": str(max(1, inventory.cpus // self._on_host[group.host])),
        }


def _port_values(ports: dict[str, list[int]]) -> dict[str, str]:
    return {f"port.{purpose}": ",".join(map(str, numbers)) for purpose, numbers in ports.items()}


def _nic_values(nics: EngineNics) -> dict[str, str]:
    return {"nics": nics.text, "ucx_net_devices": nics.ucx} if nics.devices else {}


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
