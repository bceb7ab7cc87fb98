"""Sysfs as it is on machines with RDMA NICs, written to a folder: links, attributes and names as the kernel has them.

An attribute that the kernel refuses to read (EINVAL) is a folder here: reading that fails with an OSError as well.
"""

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

GID_TABLE = 8  # entries; real tables have up to 256
ZERO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"
NDR = "400 Gb/sec (4X NDR)"
HDR = "200 Gb/sec (4X HDR)"
EDR = "100 Gb/sec (4X EDR)"
SDR = "2.5 Gb/sec (1X SDR)"  # what a port that is down says


class Entry(NamedTuple):
    """A set entry of a GID table."""

    gid: str
    type: str
    netdev: str | None = None


def roce_gids(netdev: str, link_local: str, ipv4: str | None = None) -> list[Entry]:
    """The table of an Ethernet port: each address twice, for RoCE v1 and v2."""
    gids = [f"fe80:0000:0000:0000:{link_local}"]
    if ipv4:
        a, b, c, d = map(int, ipv4.split("."))
        gids.append(f"0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}")
    return [Entry(gid, kind, netdev) for gid, kind in product(gids, ("IB/RoCE v1", "RoCE v2"))]


class SysfsTree:
    """A folder with `sys` and `dev`."""

    def __init__(self, folder: Path) -> None:
        self.sys = folder / "sys"
        self.dev = folder / "dev"
        self._uverbs = 0
        (self.sys / "bus/pci/devices").mkdir(parents=True)
        (self.dev / "infiniband").mkdir(parents=True)

    def pci(self, *path: str, vendor: str, kind: str, numa: int) -> Path:
        """A device below the bridges that the path begins with; returns its folder."""
        folder = self.sys / "devices" / Path(*path)
        _write(folder, vendor=vendor, numa_node=numa, **{"class": kind})
        _link(self.sys / "bus/pci/devices" / folder.name, folder)
        return folder

    def gpu(self, *path: str, numa: int = -1) -> Path:
        """An H100."""
        return self.pci(*path, vendor="0x10de", kind="0x030200", numa=numa)

    def nic(self, device: str, *path: str, numa: int = -1, **port: Any) -> Path:
        """A ConnectX with one port; `port`: see `port`. Returns the PCI device's folder."""
        kind = "0x020000" if port.get("link_layer") == "Ethernet" else "0x020700"
        folder = self.pci(*path, vendor="0x15b3", kind=kind, numa=numa)
        self.rdma(device, folder)
        self.port(device, **port)
        return folder

    def rdma(self, device: str, parent: Path, *, node_type: str = "1: CA", openable: bool = True) -> Path:
        """An RDMA device without ports, on a PCI device or on none."""
        folder = parent / "infiniband" / device
        _write(folder, node_type=node_type)
        if parent.name != "virtual":
            _link(folder / "device", parent)
        _link(self.sys / "class/infiniband" / device, folder)
        node = f"uverbs{self._uverbs}"
        self._uverbs += 1
        _write(parent / "infiniband_verbs" / node, ibdev=device)
        _link(self.sys / "class/infiniband_verbs" / node, parent / "infiniband_verbs" / node)
        if openable:
            (self.dev / "infiniband" / node).touch()
        return folder

    def port(
        self,
        device: str,
        number: int = 1,
        *,
        link_layer: str = "InfiniBand",
        rate: str = NDR,
        state: str = "4: ACTIVE",
        phys_state: str = "5: LinkUp",
        lid: int = 0,
        gids: Sequence[Entry] = (),
        netdev: str | None = None,
    ) -> None:
        """A port of a device, with its network interface."""
        folder = (self.sys / "class/infiniband" / device).resolve()
        port = folder / "ports" / str(number)
        _write(port, state=state, phys_state=phys_state, rate=rate, link_layer=link_layer, lid=f"{lid:#x}")
        for index in range(GID_TABLE):
            entry = gids[index] if index < len(gids) else None
            _write(port / "gids", **{str(index): entry.gid if entry else ZERO_GID})
            for attribute, value in (("types", entry and entry.type), ("ndevs", entry and entry.netdev)):
                _write(port / "gid_attrs" / attribute, **{str(index): value})
        if netdev is not None:
            self.netdev(netdev, (folder / "device").resolve(), number)

    def netdev(self, name: str, parent: Path, port: int = 1) -> Path:
        """A network interface."""
        folder = parent / "net" / name
        _write(folder, dev_port=port - 1)
        _link(self.sys / "class/net" / name, folder)
        return folder

    def bond(self, name: str, *slaves: str) -> None:
        """A bond of interfaces that exist."""
        folder = self.netdev(name, self.sys / "devices/virtual")
        _write(folder / "bonding", slaves=" ".join(slaves))
        for slave in slaves:
            _link((self.sys / "class/net" / slave).resolve() / "master", folder)

    def virtual_function(self, device: str, *path: str, of: Path, **port: Any) -> Path:
        """A NIC that is a virtual function of another."""
        folder = self.nic(device, *path, **port)
        _link(folder / "physfn", of)
        return folder


def hgx_h100(folder: Path) -> SysfsTree:
    """Eight GPUs, each with an NDR NIC at its switch, and two dual-port Ethernet cards, one port of each up.

    Devices, buses and interfaces as such hosts list them with ibdev2netdev. Nothing runs IP over InfiniBand.
    """
    tree = SysfsTree(folder)
    buses = {0: 0x1A, 3: 0x3C, 4: 0x4D, 5: 0x5E, 6: 0x9C, 9: 0xBC, 10: 0xCC, 11: 0xDC}
    for lid, (number, bus) in enumerate(buses.items(), start=11):
        numa = int(bus > 0x80)
        switch = hgx_switch(bus)
        address = f"0000:{bus:02x}:00.0"
        gid = Entry(f"fe80:0000:0000:0000:a088:c203:00ab:{bus:04x}", "IB/RoCE v1")
        tree.nic(
            f"mlx5_{number}",
            *switch,
            address_of_port(bus, 0),
            address,
            numa=numa,
            lid=lid,
            gids=[gid],
            netdev=f"ibp{bus}s0",
        )
        tree.gpu(*switch, address_of_port(bus, 1), f"0000:{bus + 3:02x}:00.0", numa=numa)
    for number, bus, numa in ((1, 0x1B, 0), (7, 0x9D, 1)):
        above = (*hgx_switch(bus - 1), address_of_port(bus - 1, 2))
        up, down = f"enp{bus}s0f0np0", f"enp{bus}s0f1np1"
        tree.nic(
            f"mlx5_{number}",
            *above,
            f"0000:{bus:02x}:00.0",
            numa=numa,
            netdev=up,
            link_layer="Ethernet",
            rate=EDR,
            gids=roce_gids(up, "ba3f:d2ff:fe01:0001", f"10.0.{numa}.5"),
        )
        tree.nic(
            f"mlx5_{number + 1}",
            *above,
            f"0000:{bus:02x}:00.1",
            numa=numa,
            netdev=down,
            link_layer="Ethernet",
            rate=SDR,
            state="1: DOWN",
            phys_state="3: Disabled",
            gids=roce_gids(down, "ba3f:d2ff:fe01:0002"),
        )
    return tree


def hgx_switch(bus: int) -> tuple[str, str, str]:
    """The host bridge, root port and switch above a NIC's bus."""
    return f"pci0000:{bus - 5:02x}", f"0000:{bus - 5:02x}:01.0", f"0000:{bus - 4:02x}:00.0"


def address_of_port(bus: int, number: int) -> str:
    """A downstream port of the switch above a NIC's bus."""
    return f"0000:{bus - 3:02x}:{number:02x}.0"


def roce_server(folder: Path) -> SysfsTree:
    """Two sockets, each with two GPUs and a NIC at root ports of their own; a slow NIC beside the first."""
    tree = SysfsTree(folder)
    for number, (base, numa) in enumerate(((0x10, 0), (0x90, 1))):
        for slot in range(2):
            bus = base + 0x10 * (slot + 1)
            tree.gpu(f"pci0000:{bus:02x}", f"0000:{bus:02x}:01.0", f"0000:{bus + 1:02x}:00.0", numa=numa)
        netdev = f"ens{number + 1}f0np0"
        tree.nic(
            f"mlx5_{number}",
            f"pci0000:{base:02x}",
            f"0000:{base:02x}:03.1",
            f"0000:{base + 1:02x}:00.0",
            numa=numa,
            netdev=netdev,
            link_layer="Ethernet",
            rate=HDR,
            gids=roce_gids(netdev, f"0e42:a1ff:fe00:000{number}", f"192.168.{number}.7"),
        )
    netdev = "eno1np0"
    tree.nic(
        "rocep3s0f0",
        "pci0000:00",
        "0000:00:05.0",
        "0000:03:00.0",
        numa=0,
        netdev=netdev,
        link_layer="Ethernet",
        rate="25 Gb/sec (1X EDR)",
        gids=roce_gids(netdev, "7ec2:55ff:fe00:0001", "10.1.0.7"),
    )
    return tree


def cloud_vm(folder: Path) -> SysfsTree:
    """Four GPUs and four NDR NICs, each in a PCI domain of its own, and a virtual function for the VM's network."""
    tree = SysfsTree(folder)
    for number in range(4):
        numa = number // 2
        tree.gpu(*_vmbus(number, f"{number + 1:04x}"), numa=numa)
        gid = Entry(f"fe80:0000:0000:0000:0015:5dff:fd33:ff0{number}", "IB/RoCE v1")
        tree.nic(
            f"mlx5_ib{number}",
            *_vmbus(number + 8, f"{0x101 + number:04x}"),
            numa=numa,
            lid=900 + number,
            gids=[gid],
            netdev=f"ib{number}",
        )
    netdev = "enP29189s1"
    tree.nic(
        "mlx5_an0",
        *_vmbus(20, "7205"),
        numa=0,
        netdev=netdev,
        link_layer="Ethernet",
        rate=EDR,
        gids=roce_gids(netdev, "020d:3aff:fe11:2233", "10.2.0.4"),
    )
    return tree


def _vmbus(number: int, domain: str) -> tuple[str, ...]:
    bus = ("LNXSYSTM:00", "LNXSYBUS:00", "ACPI0004:00", "MSFT1000:00", f"47505500-{number:04x}-0000-3130-444531454238")
    return (*bus, f"pci{domain}:00", f"{domain}:00:00.0")


def plain_vm(folder: Path) -> SysfsTree:
    """A GPU that was passed through to a small VM: no RDMA, no bridges, no NUMA nodes."""
    tree = SysfsTree(folder)
    tree.pci("pci0000:00", "0000:00:03.0", vendor="0x1af4", kind="0x020000", numa=-1)
    tree.gpu("pci0000:00", "0000:00:06.0")
    return tree


def soft_roce_vm(folder: Path) -> SysfsTree:
    """Soft-RoCE on an interface of a VM that has no NIC."""
    tree = SysfsTree(folder)
    virtual = tree.sys / "devices/virtual"
    tree.netdev("dummy0", virtual)
    device = tree.rdma("rxe0", virtual)
    _write(device, parent="dummy0")
    gids = [entry for entry in roce_gids("dummy0", "1061:e2ff:fe32:9ecc", "10.99.0.1") if entry.type == "RoCE v2"]
    tree.port("rxe0", link_layer="Ethernet", rate=SDR, gids=gids)
    return tree


def _write(folder: Path, **attributes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in attributes.items():
        if value is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_text(f"{value}\n")


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent))
