"""How far two PCI devices are from each other."""

from enum import IntEnum
from typing import NamedTuple

from pdctl.planning.inventory import PciPlace

_AT_ROOT_PORT = 2  # the host bridge and the root port are above both; what is above both below them is in a switch


class Distance(IntEnum):
    """What the way between two devices goes through, the shortest first."""

    SWITCH = 0
    ROOT_PORT = 1
    NUMA_NODE = 2
    OTHER = 3

    def __str__(self) -> str:
        return _NAMES[self]


_NAMES = {
    Distance.SWITCH: "same switch",
    Distance.ROOT_PORT: "same root port",
    Distance.NUMA_NODE: "same NUMA node",
    Distance.OTHER: "other",
}


class Way(NamedTuple):
    """The way between two devices; a lesser one is shorter."""

    distance: Distance
    hops: int = 0  # bridges passed below the root port: one switch may lie behind another


def way_between(one: PciPlace | None, other: PciPlace | None) -> Way:
    """Return the way between two devices; of a device that is on no PCI bus nothing is known."""
    if one is None or other is None:
        return Way(Distance.OTHER)
    above, others_above = one.path[:-1], other.path[:-1]
    shared = _count_shared(above, others_above)
    if shared >= _AT_ROOT_PORT:
        distance = Distance.SWITCH if shared > _AT_ROOT_PORT else Distance.ROOT_PORT
        return Way(distance, len(above) + len(others_above) - 2 * shared)
    if one.numa_node is not None and one.numa_node == other.numa_node:
        return Way(Distance.NUMA_NODE)
    return Way(Distance.OTHER)


def _count_shared(above: tuple[str, ...], others_above: tuple[str, ...]) -> int:
    shared = 0
    for one, other in zip(above, others_above, strict=False):
        if one != other:
            break
        shared += 1
    return shared
