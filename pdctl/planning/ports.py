"""The ports of each engine: those that the plan picks, and how many the user must give."""

import re
from itertools import pairwise

from pdctl.errors import PlanError
from pdctl.planning.inventory import Inventory
from pdctl.profiles import EngineRole, Port, Profile, RoleProfile
from pdctl.topology.models import Argument, EngineGroup, Topology

CHOSEN_PORTS = range(20000, 20512)  # below those that Linux gives out by itself
_WHOLE = re.compile(r"\{port\.([^}]+)\}")


class PortPicker:
    """Picks ports of one deployment, each at most once on its host."""

    def __init__(self, topology: Topology, inventories: dict[str, Inventory]) -> None:
        self._taken = {name: set(inventory.taken_ports) for name, inventory in inventories.items()}
        self._taken[topology.router.host].add(topology.router.port)

    def pick(self, group: EngineGroup, profile: RoleProfile) -> dict[str, list[int]]:
        """Return the ports of an engine by purpose; 0: it binds a free one itself. Raises PlanError."""
        return {
            purpose: [self._pick(group.host, port) for _ in range(port.count(group.tp))]
            for purpose, port in profile.ports.items()
            if port.kind != "given"
        }

    def _pick(self, host: str, port: Port) -> int:
        if port.kind == "reported":
            return 0
        taken = self._taken[host]
        free = next((number for number in CHOSEN_PORTS if number not in taken), None)
        if free is None:
            raise PlanError(f"hosts.{host}: no port from {CHOSEN_PORTS[0]} to {CHOSEN_PORTS[-1]} is free")
        taken.add(free)
        return free


def named_ports(ports: dict[str, list[int]]) -> dict[str, int]:
    """Give each port a name: its purpose, followed by the rank where there is one for each of several ranks."""
    named: dict[str, int] = {}
    for purpose, numbers in ports.items():
        names = [purpose] if len(numbers) == 1 else [f"{purpose}-{rank}" for rank in range(len(numbers))]
        named |= dict(zip(names, numbers, strict=True))
    return named


def check_given_ports(topology: Topology, profile: Profile) -> None:
    """Raise PlanError where the user gives an engine more or fewer ports than it has."""
    for role, index, group in topology.groups():
        if not group.replicas:
            continue
        for flag, port in _port_flags(profile, role).items():
            needed, given = port.count(group.tp), _count(group.args.get(flag, False))
            if given not in (None, needed):
                each = f"one for each rank, with tp {group.tp}" if port.per == "rank" else "one for the engine"
                raise PlanError(f"{role}[{index}].args.{flag}: {given} port(s) given, {needed} needed: {each}")


def _port_flags(profile: Profile, role: EngineRole) -> dict[str, Port]:
    """The flags that take ports: those that the profile gives nothing but a port."""
    tokens = [token for several in profile.arguments(role) for token in several]
    found = ((flag, _WHOLE.fullmatch(value)) for flag, value in pairwise(tokens))
    ports = profile.roles[role].ports
    return {flag.removeprefix("--"): ports[value[1]] for flag, value in found if value}


def _count(value: Argument) -> int | None:
    """How many ports a flag is given; None where it is left out."""
    if isinstance(value, bool):
        return 0 if value else None
    items = value if isinstance(value, list) else str(value).split(",")
    return sum(1 for item in items if str(item).strip())
