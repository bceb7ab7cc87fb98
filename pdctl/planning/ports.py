"""The ports of each process: which are free, and which have which purpose."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Self

from pdctl.errors import PlanError
from pdctl.planning.inventory import Inventory
from pdctl.planning.plan import Plan, ProcessPlan
from pdctl.profiles import Port
from pdctl.profiles.templates import Template

CHOSEN_PORTS = range(20000, 20512)  # below those that Linux gives out by itself
API, METRICS = "api", "metrics"
ROUTER = "router"  # the name of its process


class GivenPorts(NamedTuple):
    """Ports that the user gives a process for a purpose, and where."""

    purpose: str
    numbers: list[int]
    key: str  # as in prefill[0].args.port


class PortPicker:
    """Picks ports of one deployment, each at most once on its host.

    `current`: what runs of it now: a port that one of its processes has is that process's own.
    `asked`: what users give on each host, which is not picked for anything else.
    """

    def __init__(
        self, inventories: Mapping[str, Inventory], current: Plan | None, asked: Iterable[tuple[str, int]] = ()
    ) -> None:
        self._asked: defaultdict[str, set[int]] = defaultdict(set)
        for host, number in asked:
            self._asked[host].add(number)
        self._holders = {name: dict(inventory.taken_ports) for name, inventory in inventories.items()}
        self._ending: dict[str, set[int]] = {name: set() for name in inventories}  # ports of processes that will go
        for process in current.processes if current else ():
            self._hold(process, process.name)

    def let_go(self, processes: Sequence[ProcessPlan]) -> None:
        """These will be stopped: users can give their ports to others. None is picked, as they still run."""
        for process in processes:
            self._ending.get(process.host, set()).update(process.given_ports)

    def trial(self) -> Self:
        """Return a picker that knows the same, for a plan that may be dropped."""
        other = object.__new__(type(self))
        other._asked = self._asked
        other._holders = {name: dict(holders) for name, holders in self._holders.items()}
        other._ending = {name: set(ports) for name, ports in self._ending.items()}
        return other

    def take(self, host: str, given: GivenPorts, owner: str, hint: str = "") -> None:
        """Reserve ports that the user has given. Raises PlanError, with the hint, where one is not free."""
        for number in filter(None, given.numbers):
            holder = self._holders[host].get(number)
            if holder not in (None, owner) and number not in self._ending[host]:
                raise PlanError(f"{given.key}: port {number} of host {host!r} is not free: {_shown(holder)}{hint}")
            self._ending[host].discard(number)
            self._holders[host][number] = owner

    def pick(self, host: str, port: Port, count: int, owner: str, has: Sequence[int] = ()) -> list[int]:
        """Return free ports, those that the owner has already where they suit; 0: the process binds a free one itself.

        Raises PlanError.
        """
        if port.kind == "reported":
            return [0] * count
        run = count if port.consecutive else 1
        if len(has) == count and 0 not in has and (run == 1 or list(has) == list(range(has[0], has[0] + run))):
            return list(has)
        return [number for _ in range(count // run) for number in self._take_run(host, run, owner)]

    def _hold(self, process: ProcessPlan, owner: str) -> None:
        if process.host in self._holders:
            self._holders[process.host].update(dict.fromkeys(process.given_ports, owner))

    def _take_run(self, host: str, count: int, owner: str) -> range:
        taken, asked = self._holders[host], self._asked[host]
        for first in CHOSEN_PORTS[: len(CHOSEN_PORTS) - count + 1]:
            run = range(first, first + count)
            if not any(number in taken or number in asked for number in run):
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


def _shown(holder: str | None) -> str:
    return "the router" if holder == ROUTER else str(holder)
