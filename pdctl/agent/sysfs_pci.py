"""Where PCI devices are, as sysfs shows it: the bridges above each, and its NUMA node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, Optional

_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")  # domain, bus, device, function
_ROOT = re.compile(r"pci[0-9a-f]{4,}:[0-9a-f]{2}")
_NVIDIA = "0x10de"
_GPU_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers


def read_gpu_places(sysfs: Path) -> List[Dict[str, Any]]:
    """The places of the NVIDIA GPUs, in the order of their addresses, as the driver numbers them."""
    devices = sorted((sysfs / "bus/pci/devices").glob("*"), key=_order)
    places = [read_pci_place(device) for device in devices if _is_gpu(device)]
    return [place for place in places if place is not None]


def read_pci_place(device: Path) -> Optional[Dict[str, Any]]:
    """The place of the PCI device that this is or belongs to; None for one that is on no PCI bus.

    ``path``: the host bridge, the bridges below it, the device; ``numa_node``: None where the kernel does not know it.
    """
    folder = pci_folder(device)
    if folder is None:
        return None
    parts = folder.parts
    roots = [index for index, part in enumerate(parts) if _ROOT.fullmatch(part)]
    path = (
        [part for part in parts[roots[-1] :] if part == parts[roots[-1]] or _ADDRESS.fullmatch(part)] if roots else []
    )
    node = read_attribute(folder / "numa_node")
    return {"path": path or [folder.name], "numa_node": int(node) if node.isdigit() else None}


def pci_folder(device: Path) -> Optional[Path]:
    """The folder of the PCI device that this is, or that is the nearest above it."""
    real = device.resolve()
    return next((folder for folder in (real, *real.parents) if _ADDRESS.fullmatch(folder.name)), None)


def read_attribute(path: Path) -> str:
    """The text of a sysfs attribute; empty where there is none, or where the kernel refuses to read it."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def pci_address(text: str) -> Optional[str]:
    """The address as sysfs writes it, from nvidia-smi's form (00000000:1B:00.0); None for what is none."""
    domain, _, rest = text.lower().partition(":")
    address = f"{domain.lstrip('0').rjust(4, '0')}:{rest}"
    return address if _ADDRESS.fullmatch(address) else None


def _is_gpu(device: Path) -> bool:
    return read_attribute(device / "vendor") == _NVIDIA and read_attribute(device / "class").startswith(_GPU_CLASSES)


def _order(device: Path) -> List[int]:
    return [int(number, 16) for number in re.split("[:.]", device.name)]
