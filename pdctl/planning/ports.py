"""The ports of each engine: those that the plan picks, and those that the user gives."""

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from pdctl.errors import PlanError
from pdctl.planning.inventory import Inventory
from pdctl.profiles import EngineRole, Port, Profile
from pdctl.profiles.templates import Template
from pdctl.topology.fields import Argument
from pdctl.topology.models import EngineGroup, Topology

CHOSEN_PORTS = range(20000, 20512)  # below those that Linux gives out by itself
API, METRICS = "api", "metrics"
_WHOLE = re.compile(r"\{port\.([^}]+)\}")


class GivenPorts(NamedTuple):
    """Ports that the user gives an engine for a purpose, and where."""

    purpose: str
    numbers: list[int]
    key: str  # as in prefill[0].args.port


class PortPicker:
    """Picks ports of one deployment, each at most once on its host."""

    def __init__(self, topology: Topology, inventories: Mapping[str, Inventory]) -> None:
        self._holders = {name: dict(inventory.taken_ports) for name, inventory in inventories.items()}
        self._holders[topology.router.host][topology.router.port] = "the router"

    def take(self, host: str, given: GivenPorts, owner: str) -> None:
        """Reserve ports that the user has given. Raises PlanError where one is not free."""
        for number in given.numbers:
            holder = self._holders[host].get(number)
            if holder is not None:
                raise PlanError(f"{given.key}: port {number} of host {host!r} is not free: {holder}")
            self._holders[host][number] = owner

    def pick(self, host: str, port: Port, count: int, owner: str) -> list[int]:
        """Return free ports; 0: the process binds a free one itself. Raises PlanError."""
        if port.kind == "reported":
            return [0] * count
        run = count if port.consecutive else 1
        return [number for _ in range(count // run) for number in self._take_run(host, run, owner)]

    def _take_run(self, host: str, count: int, owner: str) -> range:
        taken = self._holders[host]
        for first in CHOSEN_PORTS[: len(CHOSEN_PORTS) - count + 1]:
            run = range(first, first + count)
            if not any(number in taken for number in run):
                taken.update(dict.fromkeys(run, owner))
                return run
        raise PlanError(
            f"hosts.{host}: from {CHOSEN_PORTS[0]} to {CHOSEN_PORTS[-1]}, "
            + ("no port is free" if count == 1 else f"no {count} ports in a row are free")
        )


def named_ports(ports: Mapping[str, list[int]]) -> dict[str, int]:
    """Give each port a name: its purpose, followed by a number where there are several.

    The first that serves HTTP is plain "api" or "metrics" in any case.
    """
    named: dict[str, int] = {}
    for purpose, numbers in ports.items():
        names = [purpose] if len(numbers) == 1 else [f"{purpose}-{rank}" for rank in range(len(numbers))]
        named |= dict(zip([purpose, *names[1:]] if purpose in (API, METRICS) else names, numbers, strict=True))
    return named


def purposes_used(templates: Collection[Template]) -> set[str]:
    """Return the purposes of the ports that texts hold."""
    return {name.removeprefix("port.") for one in templates for name in one.placeholders() if name.startswith("port.")}


def given_ports(profile: Profile, role: EngineRole, index: int, group: EngineGroup) -> Iterator[GivenPorts]:
    """Walk the ports that a group's flags and variables give; raises PlanError where they are too few or too many."""
    ports, at = profile.roles[role].ports, f"{role}[{index}]"
    for flag, purpose in _port_flags(profile, role).items():
        if flag in group.args:
            yield _given(group, purpose, ports[purpose], f"{at}.args.{flag}", group.args[flag])
    for name, template in profile.environment(role).items():
        whole = _WHOLE.fullmatch(template.texts[0])
        if whole and name in group.env:
            yield _given(group, whole[1], ports[whole[1]], f"{at}.env.{name}", group.env[name])


def ports_of_users(topology: Topology, profile: Profile) -> Iterator[tuple[str, int]]:
    """Walk all ports that users give, with their hosts."""
    for role, index, group in topology.groups():
        if group.replicas and role in profile.roles:
            for given in given_ports(profile, role, index, group):
                yield from ((host, number) for host in group.nodes for number in given.numbers)


def _given(group: EngineGroup, purpose: str, port: Port, key: str, value: Argument) -> GivenPorts:
    items = [] if isinstance(value, bool) else value if isinstance(value, list) else str(value).split(",")
    texts = [text for item in items if (text := str(item).strip())]
    needed = 1 if port.consecutive else port.count(group.tp, group.dp)
    if value is not False and len(texts) != needed:
        each = {"engine": "one for the engine", "dp": f"one for each of dp {group.dp}"}.get(port.per)
        each = each or f"one for each rank, with tp {group.tp}" + (f" and dp {group.dp}" if group.dp > 1 else "")
        raise PlanError(f"{key}: {len(texts)} port(s) given, {needed} needed: {each}")
    for text in texts:
        if not (text.isdigit() and int(text) <= 65535):
            raise PlanError(f"{key}: {text} is no port")
    first = [int(text) for text in texts]
    count = port.count(group.tp, group.dp)
    return GivenPorts(purpose, list(range(first[0], first[0] + count)) if port.consecutive and first else first, key)


def _port_flags(profile: Profile, role: EngineRole) -> dict[str, str]:
    """The flags that take ports, with their purposes: those that the profile gives nothing but a port."""
    tokens = [text for template in profile.arguments(role) for text in template.texts]
    found = ((flag, _WHOLE.fullmatch(value)) for flag, value in pairwise(tokens))
    return {flag.removeprefix("--"): value[1] for flag, value in found if value and flag.startswith("--")}
