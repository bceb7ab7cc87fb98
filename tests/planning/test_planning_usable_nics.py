"""Which RDMA ports can be used, why the others cannot, and their GIDs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inventories import inventory_of

from pdctl.planning.inventory import Gid, Nic, PciPlace
from pdctl.planning.usable_nics import choose_gid, reasons_left_out, usable_nics
from tests.agent import sysfs_trees
from tests.agent.sysfs_trees import SysfsTree

V1, V2 = "IB/RoCE v1", "RoCE v2"
LINK_LOCAL = "fe80:0000:0000:0000:0e42:a1ff:fe00:0001"
GLOBAL = "2001:0db8:0000:0000:0000:0000:0000:0001"
IPV4 = "0000:0000:0000:0000:0000:ffff:0a00:0001"


def port(device: str = "mlx5_0", gid: str = IPV4, **changes: Any) -> Nic:
    fields = {"rate": "200 Gb/sec (4X HDR)", "link_layer": "Ethernet", "netdev": "eth0"}
    gids = [Gid(index=3, gid=gid, type=V2)]
    return Nic.model_validate({"device": device, "port": 1, "gids": gids, **fields, **changes})


def place(address: str) -> PciPlace:
    return PciPlace(path=("pci0000:10", "0000:10:01.0", address))


def reasons(*nics: Nic) -> list[str | None]:
    return list(reasons_left_out(nics).values())


@pytest.mark.parametrize(
    ("table", "index"),
    [
        ([(LINK_LOCAL, V1), (LINK_LOCAL, V2), (GLOBAL, V1), (GLOBAL, V2), (IPV4, V1), (IPV4, V2)], 5),
        ([(LINK_LOCAL, V1), (LINK_LOCAL, V2), (GLOBAL, V1), (GLOBAL, V2)], 3),
        ([(LINK_LOCAL, V1), (LINK_LOCAL, V2)], 1),
        ([(IPV4, V2), (IPV4, V2)], 0),
        ([(IPV4, V1)], None),
        ([], None),
    ],
)
def test_the_gid_of_an_ethernet_port(table: list[tuple[str, str]], index: int | None):
    gids = [Gid(index=number, gid=gid, type=kind) for number, (gid, kind) in enumerate(table)]
    chosen = choose_gid(port(gids=gids))
    assert (chosen and chosen.index) == index


def test_the_gid_of_an_infiniband_port_is_its_first():
    gids = [Gid(index=0, gid=LINK_LOCAL, type=V1), Gid(index=1, gid=IPV4, type=V2)]
    chosen = choose_gid(port(link_layer="InfiniBand", gids=gids))
    assert chosen is not None
    assert chosen.index == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"state": "DOWN", "phys_state": "Polling"}, "is DOWN (Polling)"),
        ({"state": "INIT"}, "is INIT (LinkUp)"),
        ({"node_type": "RNIC"}, "is no InfiniBand or RoCE device, but RNIC"),
        ({"gids": []}, "has no RoCE v2 GID: give its interface eth0 an address"),
        ({"gids": [], "link_layer": "InfiniBand"}, None),
        ({"can_open": False}, "cannot be opened: no /dev/infiniband/uverbs* that this user may write is its own"),
    ],
)
def test_what_a_port_lacks(changes: dict[str, Any], reason: str | None):
    assert reasons(port(**changes)) == [reason]


def test_a_virtual_function_is_left_out_where_its_physical_one_is_used():
    owner = port(place=place("0000:11:00.0"))
    function = port("mlx5_1", place=place("0000:11:00.2"), physical_function="0000:11:00.0")
    other = port("mlx5_2", place=place("0000:12:00.2"), physical_function="0000:12:00.0")
    assert reasons(owner, function, other) == [None, "is a virtual function of mlx5_0, which is used", None]
    assert reasons(owner.model_copy(update={"state": "DOWN"}), function)[1] is None


def test_software_is_left_out_where_there_is_a_nic():
    software = port("rxe0", software=True)
    assert reasons(software, port()) == ["works in software, beside mlx5_0", None]
    assert reasons(software, port(state="DOWN"))[0] is None


@pytest.mark.parametrize(
    ("infiniband", "ethernet", "left_out"), [(400, [100, 100], 1), (100, [400], 0), (200, [100, 100], 1)]
)
def test_the_link_layer_with_more_bandwidth_is_used(infiniband: int, ethernet: list[int], left_out: int):
    rates = [("InfiniBand", infiniband), *(("Ethernet", rate) for rate in ethernet)]
    nics = [port(f"mlx5_{n}", link_layer=layer, rate=f"{rate} Gb/sec (4X)") for n, (layer, rate) in enumerate(rates)]
    layers = ["InfiniBand", "Ethernet"]
    said = f"is {layers[left_out]}: this host has more bandwidth on {layers[1 - left_out]}"
    assert {nic.link_layer: reason for nic, reason in reasons_left_out(nics).items()} == {
        layers[left_out]: said,
        layers[1 - left_out]: None,
    }


@pytest.mark.parametrize(
    ("machine", "usable"),
    [
        (sysfs_trees.hgx_h100, [f"mlx5_{number}" for number in (0, 3, 4, 5, 6, 9, 10, 11)]),
        (sysfs_trees.roce_server, ["mlx5_0", "mlx5_1", "rocep3s0f0"]),
        (sysfs_trees.cloud_vm, [f"mlx5_ib{number}" for number in range(4)]),
        (sysfs_trees.plain_vm, []),
        (sysfs_trees.soft_roce_vm, ["rxe0"]),
    ],
)
def test_machines(tmp_path: Path, machine: Callable[[Path], SysfsTree], usable: list[str]):
    assert [nic.device for nic in usable_nics(inventory_of(machine(tmp_path)).nics)] == usable
