"""What a host has: processors, memory, GPUs, disk, and who holds the ports that are asked for."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from pdctl.agent.port_book import PortBook
from pdctl.agent.sysfs_nics import read_nics
from pdctl.agent.sysfs_pci import pci_address, read_gpu_places

_GPU_FIELDS = ("index", "uuid", "name", "memory.total", "memory.used", "pci.bus_id")
_USER_FIELDS = ("gpu_uuid", "pid", "process_name")
NVIDIA_SMI_TIMEOUT_S = 10.0
_LISTEN = "0A"  # the state in /proc/net/tcp


def probe(folder: Path, ports: List[int], *, sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> Dict[str, Any]:
    """The inventory of this host, as pdctl/planning/inventory.py reads it. ``folder``: where the state will be."""
    gpus, gpu_problem = _gpus()
    return {
        "hostname": socket.gethostname(),
        "address": _address(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpus": gpus,
        "gpu_problem": gpu_problem,
        "gpu_places": read_gpu_places(sysfs),
        "nics": read_nics(sysfs, dev),
        "nics_in_environment": os.environ.get("KVCACHE_RDMA_NICS"),
        "taken_ports": port_holders(ports),
        "python": sys.executable,
        "free_disk_bytes": shutil.disk_usage(_existing(folder)).free,
    }


def port_holders(ports: Sequence[int]) -> Dict[int, str]:
    """Who has the ports that are not free: a process that listens, or a run that has reserved them."""
    reserved = PortBook().reserved(list(ports))
    holders = {port: _holder(port) or reserved.get(port) for port in ports}
    return {port: holder for port, holder in holders.items() if holder is not None}


def _address() -> str:
    """The address of the interface that leads outside; loopback when there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probing:
        try:
            probing.connect(("192.0.2.1", 9))  # sends nothing: it only asks for the route
        except OSError:
            return "127.0.0.1"
        return str(probing.getsockname()[0])


def _gpus() -> Tuple[List[Dict[str, Any]], Optional[str]]:
    """The GPUs, or none and why they are not known: most deployments can do without."""
    if shutil.which("nvidia-smi") is None:
        return [], None
    try:
        gpus = [_gpu(line) for line in ask_nvidia_smi("gpu", _GPU_FIELDS)]
    except (OSError, ValueError) as error:
        return [], f"nvidia-smi {error}"
    users = _gpu_users() if any(gpu["memory_used_mb"] for gpu in gpus) else {}
    return [{**gpu, "users": users.get(gpu["uuid"], [])} for gpu in gpus], None


def _gpu(line: str) -> Dict[str, Any]:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(_GPU_FIELDS) or not fields[0].isdigit():
        raise ValueError(f"wrote what is not understood: {line[:80]!r}")
    index, uuid, name, total, used, bus_id = fields
    return {
        "index": int(index),
        "uuid": uuid,
        "name": name,
        "memory_total_mb": _megabytes(total),
        "memory_used_mb": _megabytes(used),
        "pci": pci_address(bus_id),
    }


def _gpu_users() -> Dict[str, List[str]]:
    """The processes on each GPU, by its uuid; none where the tool does not tell."""
    users: Dict[str, List[str]] = {}
    try:
        lines = ask_nvidia_smi("compute-apps", _USER_FIELDS)
    except (OSError, ValueError):
        return users
    for fields in (line.split(", ", 2) for line in lines):
        if len(fields) == len(_USER_FIELDS):
            users.setdefault(fields[0], []).append(f"pid {fields[1]} ({Path(fields[2]).name})")
    return users


def ask_nvidia_smi(what: str, fields: Sequence[str]) -> List[str]:
    """A line of fields for each; ValueError says why there are none."""
    query = ["nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(query, stdout=pipe, stderr=pipe, text=True, errors="replace")
    try:
        output, errors = process.communicate(timeout=NVIDIA_SMI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # and not waited for: in a driver that hangs it does not end
        raise ValueError(f"did not answer in {NVIDIA_SMI_TIMEOUT_S:g} s") from None
    if process.returncode != 0:  # the tool is there, the driver is not
        said = (output + errors).strip().splitlines() or [f"exit code {process.returncode}"]
        raise ValueError(f"failed: {said[0]}")
    return [line for line in output.splitlines() if line.strip()]


def _megabytes(field: str) -> int:
    """Where GPU and host share one memory, the tool says [N/A]: 0."""
    return int(field) if field.isdigit() else 0


def _holder(port: int) -> Optional[str]:
    """None when the port can be bound, else who has it: ``pid 123 (nginx)``."""
    with socket.socket() as probing:
        probing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not hold a port
        try:
            probing.bind(("0.0.0.0", port))
        except OSError as error:
            return _owner(port) if error.errno == errno.EADDRINUSE else str(error.strerror)
    return None


def _owner(port: int) -> str:
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*"):
        if _holds(process, inodes):
            return f"pid {process.name} ({_name(process)})"
    return "a process of another user"


def _listening_inodes(port: int) -> List[str]:
    """Column 1 is local address:port in hex, 3 the state, 9 the inode."""
    suffix = f":{port:04X}"
    rows = [line.split() for table in ("tcp", "tcp6") for line in _lines(Path("/proc/net") / table)[1:]]
    return [row[9] for row in rows if row[1].endswith(suffix) and row[3] == _LISTEN]


def _holds(process: Path, sockets: "set[str]") -> bool:
    try:
        fds = list((process / "fd").iterdir())
    except OSError:  # it ended, or belongs to another user
        return False
    return any(_target(fd) in sockets for fd in fds)


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except OSError:  # closed meanwhile
        return ""


def _name(process: Path) -> str:
    return "".join(_lines(process / "comm")[:1]) or "ended meanwhile"


def _lines(path: Path) -> List[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # no IPv6 here, or the process ended
        return []


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())
