"""The RDMA devices of a host, a port each, as sysfs shows them. Which of them are used is for the planner to say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Optional

from pdctl.agent.sysfs_pci import pci_folder, read_attribute, read_pci_place

_ZERO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"


def read_nics(sysfs: Path, dev: Path) -> List[Dict[str, Any]]:
    """Every port of every RDMA device, as ``Nic`` in pdctl/planning/inventory.py; none where the kernel has no RDMA."""
    can_open = _devices_to_open(sysfs, dev)
    found = []
    for device in sorted((sysfs / "class/infiniband").glob("*"), key=lambda path: _natural(path.name)):
        about = _device(device, can_open=device.name in can_open)
        ports = sorted((device / "ports").glob("*"), key=lambda path: _natural(path.name))
        found += [{**about, **_port(sysfs, device, port)} for port in ports]
    return found


def _devices_to_open(sysfs: Path, dev: Path) -> List[str]:
    """The devices whose node for verbs is here and open to this user: containers often show the others in sysfs."""
    nodes = (sysfs / "class/infiniband_verbs").glob("uverbs*")
    return [
        read_attribute(node / "ibdev") for node in nodes if os.access(dev / "infiniband" / node.name, os.R_OK | os.W_OK)
    ]


def _device(device: Path, *, can_open: bool) -> Dict[str, Any]:
    return {
        "device": device.name,
        "node_type": _named(read_attribute(device / "node_type")),
        "can_open": can_open,
        "place": read_pci_place(device / "device"),
        "software": _is_software(device),
        "physical_function": _physical_function(device / "device"),
    }


def _is_software(device: Path) -> bool:
    """Whether the kernel does its work: Soft-RoCE, which names its interface in ``parent``, or what has no bus."""
    return (device / "parent").exists() or not (device / "device").exists()


def _physical_function(device: Path) -> Optional[str]:
    """The PCI address of what this is a virtual function of."""
    folder = pci_folder(device)
    if folder is None or not (folder / "physfn").exists():
        return None
    return (folder / "physfn").resolve().name


def _port(sysfs: Path, device: Path, port: Path) -> Dict[str, Any]:
    lid = read_attribute(port / "lid")
    gids = _gids(port)
    netdev = next((gid["netdev"] for gid in gids if gid["netdev"]), None) or _netdev(device, int(port.name))
    return {
        "port": int(port.name),
        "state": _named(read_attribute(port / "state")),
        "phys_state": _named(read_attribute(port / "phys_state")),
        "rate": read_attribute(port / "rate"),
        "link_layer": read_attribute(port / "link_layer"),
        "lid": int(lid, 16) if lid else 0,
        "gids": gids,
        "netdev": netdev,
        "bond": read_attribute(sysfs / "class/net" / netdev / "bonding/slaves").split() if netdev else [],
    }


def _gids(port: Path) -> List[Dict[str, Any]]:
    """The entries of the GID table that are set; of one that is not, the attributes cannot be read."""
    entries = sorted((port / "gids").glob("*"), key=lambda path: int(path.name))
    gids = [(int(entry.name), read_attribute(entry)) for entry in entries]
    attributes = port / "gid_attrs"
    return [
        {
            "index": index,
            "gid": gid,
            "type": read_attribute(attributes / "types" / str(index)),
            "netdev": read_attribute(attributes / "ndevs" / str(index)) or None,
        }
        for index, gid in gids
        if gid not in ("", _ZERO_GID)
    ]


def _netdev(device: Path, port: int) -> Optional[str]:
    """The interface of a port whose GIDs name none: down, or InfiniBand."""
    netdevs = sorted((device / "device/net").glob("*"))
    of_port = [netdev for netdev in netdevs if read_attribute(netdev / "dev_port") == str(port - 1)]
    chosen = next(iter(of_port or netdevs), None)
    if chosen is None:
        return None
    master = chosen / "master"
    return master.resolve().name if (master / "bonding").exists() else chosen.name


def _named(text: str) -> str:
    """The name in ``4: ACTIVE``."""
    return text.partition(":")[2].strip() or text


def _natural(name: str) -> "tuple[str, int, str]":
    """Sorts mlx5_2 before mlx5_10."""
    digits = len(name) - len(name.rstrip("0123456789"))
    return (name[: len(name) - digits], int(name[len(name) - digits :] or 0), name)
