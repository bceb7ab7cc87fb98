"""RDMA devices as sysfs shows them on several kinds of machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pdctl.agent.sysfs_nics import read_nics
from pdctl.planning.inventory import Nic
from tests.agent import sysfs_trees
from tests.agent.sysfs_trees import Entry, SysfsTree, hgx_h100, plain_vm, roce_gids, soft_roce_vm

ROOT = ("pci0000:10", "0000:10:01.0")


def nics_of(tree: SysfsTree) -> dict[str, Nic]:
    return {f"{nic.device}:{nic.port}": nic for nic in map(Nic.model_validate, read_nics(tree.sys, tree.dev))}


def roce(netdev: str, **changes: Any) -> dict[str, Any]:
    gids = roce_gids(netdev, "1:2:3:4", "10.0.0.1")
    return {"link_layer": "Ethernet", "rate": sysfs_trees.HDR, "netdev": netdev, "gids": gids} | changes


def test_an_infiniband_port(tmp_path: Path) -> None:
    nic = nics_of(hgx_h100(tmp_path))["mlx5_3:1"]
    assert (nic.state, nic.phys_state, nic.link_layer, nic.lid) == ("ACTIVE", "LinkUp", "InfiniBand", 12)
    assert (nic.rate, nic.gigabits, nic.netdev, nic.node_type) == ("400 Gb/sec (4X NDR)", 400, "ibp60s0", "CA")
    assert nic.place is not None
    assert (nic.place.address, nic.place.numa_node) == ("0000:3c:00.0", 0)
    assert nic.place.path == ("pci0000:37", "0000:37:01.0", "0000:38:00.0", "0000:39:00.0", "0000:3c:00.0")
    (gid,) = nic.gids
    assert (gid.index, gid.type, gid.netdev) == (0, "IB/RoCE v1", None)


def test_devices_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    assert list(nics_of(hgx_h100(tmp_path))) == [f"mlx5_{number}:1" for number in range(12)]


def test_an_ethernet_port_has_a_table_of_gids(tmp_path: Path) -> None:
    nics = nics_of(hgx_h100(tmp_path))
    up, down = nics["mlx5_1:1"], nics["mlx5_2:1"]
    assert [(gid.index, gid.type, gid.netdev) for gid in up.gids] == [
        (0, "IB/RoCE v1", "enp27s0f0np0"),
        (1, "RoCE v2", "enp27s0f0np0"),
        (2, "IB/RoCE v1", "enp27s0f0np0"),
        (3, "RoCE v2", "enp27s0f0np0"),
    ]
    assert up.gids[3].gid == "0000:0000:0000:0000:0000:ffff:0a00:0005"
    assert (down.state, down.phys_state, down.netdev) == ("DOWN", "Disabled", "enp27s0f1np1")


def test_attributes_that_cannot_be_read_are_no_error(tmp_path: Path) -> None:
    """As the kernel refuses them, for an entry that is not set or a port that is in reset."""
    tree = hgx_h100(tmp_path)
    port = tree.sys / "class/infiniband/mlx5_3/ports/1"
    for name in ("rate", "gids/0", "lid"):
        (port / name).unlink()
        (port / name).mkdir()
    nic = nics_of(tree)["mlx5_3:1"]
    assert (nic.rate, nic.gigabits, nic.gids, nic.lid) == ("", 0, (), 0)


def test_two_ports_of_one_device_have_their_own_interfaces(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path)
    tree.nic("mlx4_0", *ROOT, "0000:11:00.0", netdev="ib0")
    tree.port("mlx4_0", 2, netdev="ib1", state="1: DOWN", phys_state="2: Polling")
    nics = nics_of(tree)
    assert {name: (nic.netdev, nic.state) for name, nic in nics.items()} == {
        "mlx4_0:1": ("ib0", "ACTIVE"),
        "mlx4_0:2": ("ib1", "DOWN"),
    }


def test_a_bond_has_one_device(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path)
    tree.nic("mlx5_bond_0", *ROOT, "0000:11:00.0", **roce("ens1f0np0", gids=roce_gids("bond0", "1:2:3:4", "10.0.0.1")))
    second = tree.pci(*ROOT, "0000:11:00.1", vendor="0x15b3", kind="0x020000", numa=0)
    tree.netdev("ens1f1np1", second)
    tree.bond("bond0", "ens1f0np0", "ens1f1np1")
    (nic,) = nics_of(tree).values()
    assert (nic.netdev, nic.bond) == ("bond0", ("ens1f0np0", "ens1f1np1"))


def test_a_bond_that_is_down_is_found_by_its_member(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path)
    tree.nic("mlx5_bond_0", *ROOT, "0000:11:00.0", **roce("ens1f0np0", gids=[], state="1: DOWN"))
    tree.bond("bond0", "ens1f0np0")
    (nic,) = nics_of(tree).values()
    assert (nic.netdev, nic.bond) == ("bond0", ("ens1f0np0",))


def test_a_virtual_function_names_its_physical_one(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path)
    owner = tree.nic("mlx5_0", *ROOT, "0000:11:00.0", **roce("ens1f0np0"))
    tree.virtual_function("mlx5_1", *ROOT, "0000:11:00.2", of=owner, **roce("ens1f0v0"))
    nics = nics_of(tree)
    assert (nics["mlx5_0:1"].physical_function, nics["mlx5_1:1"].physical_function) == (None, "0000:11:00.0")


def test_a_scalable_function_is_at_its_pci_device(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path)
    pci = tree.pci(*ROOT, "0000:11:00.0", vendor="0x15b3", kind="0x020000", numa=1)
    tree.rdma("mlx5_2", pci / "mlx5_core.sf.4")
    tree.port("mlx5_2", netdev="enp17s0f0s88")
    (nic,) = nics_of(tree).values()
    assert nic.place is not None
    assert (nic.place.path, nic.place.numa_node) == ((*ROOT, "0000:11:00.0"), 1)
    assert nic.netdev == "enp17s0f0s88"


def test_a_device_of_another_container_cannot_be_opened(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path)
    for number, openable in enumerate((True, False)):
        pci = tree.pci(*ROOT, f"0000:11:00.{number}", vendor="0x15b3", kind="0x020000", numa=0)
        tree.rdma(f"mlx5_{number}", pci, openable=openable)
        tree.port(f"mlx5_{number}")
    assert [nic.can_open for nic in nics_of(tree).values()] == [True, False]


def test_soft_roce_is_on_no_bus(tmp_path: Path) -> None:
    (nic,) = nics_of(soft_roce_vm(tmp_path)).values()
    assert (nic.software, nic.place, nic.netdev) == (True, None, "dummy0")


def test_soft_roce_on_a_nic_that_an_older_kernel_puts_below_it(tmp_path: Path) -> None:
    tree = SysfsTree(tmp_path)
    pci = tree.pci(*ROOT, "0000:11:00.0", vendor="0x8086", kind="0x020000", numa=0)
    (tree.rdma("rxe0", pci) / "parent").write_text("eth0\n")
    tree.port("rxe0", link_layer="Ethernet", gids=[Entry("fe80::1", "RoCE v2", "eth0")])
    assert nics_of(tree)["rxe0:1"].software


@pytest.mark.parametrize("machine", [plain_vm, SysfsTree])
def test_a_machine_without_rdma(tmp_path: Path, machine: Callable[[Path], SysfsTree]) -> None:
    assert nics_of(machine(tmp_path)) == {}
