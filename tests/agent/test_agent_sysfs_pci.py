"""Where PCI devices are."""

from pathlib import Path

import pytest

from pdctl.agent.sysfs_pci import pci_address, read_gpu_places, read_pci_place
from tests.agent.sysfs_trees import SysfsTree, cloud_vm, plain_vm, roce_server


def test_gpus_of_a_server(tmp_path: Path) -> None:
    tree = roce_server(tmp_path)
    tree.pci("pci0000:00", "0000:00:1c.0", "0000:02:00.0", vendor="0x1a03", kind="0x030000", numa=0)  # of the console
    tree.pci("pci0000:00", "0000:00:1d.0", "0000:04:00.0", vendor="0x10de", kind="0x068000", numa=0)  # an NVSwitch
    assert read_gpu_places(tree.sys) == [
        {"path": [f"pci0000:{bus:02x}", f"0000:{bus:02x}:01.0", f"0000:{bus + 1:02x}:00.0"], "numa_node": numa}
        for bus, numa in ((0x20, 0), (0x30, 0), (0xA0, 1), (0xB0, 1))
    ]


def test_any_pci_domain(tmp_path: Path) -> None:
    places = read_gpu_places(cloud_vm(tmp_path).sys)
    assert places[1] == {"path": ["pci0002:00", "0002:00:00.0"], "numa_node": 0}
    assert len(places) == 4


def test_a_node_that_the_kernel_does_not_know(tmp_path: Path) -> None:
    assert read_gpu_places(plain_vm(tmp_path).sys) == [{"path": ["pci0000:00", "0000:00:06.0"], "numa_node": None}]


def test_a_bus_that_a_device_of_another_one_opens(tmp_path: Path) -> None:
    """Behind such a device a host bridge begins anew, in a domain of five digits."""
    path = ("pci0000:d7", "0000:d7:05.5", "pci10000:00", "10000:00:02.0", "10000:01:00.0")
    device = SysfsTree(tmp_path).gpu(*path)
    assert read_pci_place(device) == {"path": list(path[2:]), "numa_node": None}


def test_what_is_on_no_bus(tmp_path: Path) -> None:
    assert read_pci_place(tmp_path / "devices/virtual/infiniband/rxe0/device") is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00000000:1B:00.0", "0000:1b:00.0"),
        ("00000009:01:00.0", "0009:01:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("[N/A]", None),
        ("", None),
    ],
)
def test_addresses_as_nvidia_smi_writes_them(text: str, address: str | None) -> None:
    assert pci_address(text) == address
