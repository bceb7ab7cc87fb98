"""How far PCI devices are from each other."""

import pytest

from pdctl.planning.inventory import PciPlace
from pdctl.planning.pci_distance import Distance, way_between

SWITCH = ("pci0000:10", "0000:10:01.0", "0000:11:00.0")


def place(*path: str, numa: int | None = None) -> PciPlace:
    return PciPlace(path=path, numa_node=numa)


GPU = place(*SWITCH, "0000:12:00.0", "0000:13:00.0", numa=0)


@pytest.mark.parametrize(
    ("other", "distance"),
    [
        (place(*SWITCH, "0000:12:01.0", "0000:14:00.0", numa=0), Distance.SWITCH),
        (place(*SWITCH[:2], "0000:11:00.1", numa=0), Distance.ROOT_PORT),
        (place("pci0000:10", "0000:10:02.0", "0000:19:00.0", numa=0), Distance.NUMA_NODE),
        (place("pci0000:50", "0000:50:01.0", "0000:51:00.0", numa=0), Distance.NUMA_NODE),
        (place("pci0000:50", "0000:50:01.0", "0000:51:00.0", numa=1), Distance.OTHER),
        (place("pci0000:10", "0000:10:02.0", "0000:19:00.0"), Distance.OTHER),
        (None, Distance.OTHER),
    ],
)
def test_the_distance_is_the_same_in_both_directions(other: PciPlace | None, distance: Distance):
    assert way_between(GPU, other).distance == way_between(other, GPU).distance == distance


def test_nodes_that_are_not_known_are_not_the_same():
    vm = [place("pci0000:00", f"0000:00:0{slot}.0") for slot in (5, 6)]
    assert way_between(*vm).distance == Distance.OTHER


def test_the_nearer_of_two_switches_counts():
    """One switch behind another: what shares both is nearer than what shares the outer one."""
    inner = (*SWITCH, "0000:12:00.0", "0000:13:00.0")
    gpu = place(*inner, "0000:14:00.0", "0000:15:00.0")
    near = place(*inner, "0000:14:01.0", "0000:16:00.0")
    far = place(*SWITCH, "0000:12:01.0", "0000:17:00.0")
    assert way_between(gpu, near) < way_between(gpu, far)
    assert way_between(gpu, far).distance == Distance.SWITCH
    assert way_between(gpu, far) < way_between(gpu, place("pci0000:50", "0000:51:00.0", numa=0))


def test_the_names():
    assert [str(distance) for distance in Distance] == ["same switch", "same root port", "same NUMA node", "other"]
