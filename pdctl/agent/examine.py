"""What can keep a deployment from running on this host, beyond what the probe says."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from pdctl.agent.interpreter import examine_interpreter
from pdctl.agent.login import login_rules
from pdctl.agent.model_files import examine_model
from pdctl.agent.netdevs import read_netdevs

_VERSION = re.compile(r"\b\d+\.\d+(\.\d+)?\b")
_IPC_LOCK, _BIND_LOW = 14, 10  # the numbers of the capabilities
_ALL_IDS = ["0", "0", "4294967295"]
_FIREWALLS = {"ufw": "ufw", "firewall-cmd": "firewalld"}  # the tool, and what it is called here


def examine(
    folder: Path,
    *,
    address: Optional[str],
    python: str,
    workdirs: List[str],
    model: Optional[str],
    hub: Optional[str],
    read_model: bool,
    proc: Path = Path("/proc"),
) -> Dict[str, Any]:
    """This host, as ``System`` in pdctl/doctor/system.py. ``address``: at which others reach it, where it is given."""
    began = time.time()
    facts = {
        "python": platform.python_version(),
        "interpreter": examine_interpreter(python),
        "absent_workdirs": [workdir for workdir in workdirs if not Path(workdir).is_dir()],
        "has_bash": _tool("bash") is not None,
        "driver": _driver(proc),
        "memlock": None if _locks_all(proc) else _limit(resource.RLIMIT_MEMLOCK)[0],
        "open_files": _limit(resource.RLIMIT_NOFILE)[1],
        "shm": _shm(Path("/dev/shm")),
        "netdevs": read_netdevs(),
        "address": _resolved(address) if address else None,
        "disk": _disk(folder),
        "ports": _port_rules(proc / "sys/net/ipv4", binds_low=_BIND_LOW in _capabilities(proc)),
        "login": login_rules(),
        "firewall": next((name for tool, name in _FIREWALLS.items() if _tool(tool)), None),
        "model": examine_model(model, hub, read=read_model) if model else None,
    }
    return {**facts, "clock": (began, time.time())}


def _driver(proc: Path) -> Optional[str]:
    """The version of NVIDIA's kernel module: there also where its tools are not."""
    found = _VERSION.search(_read(proc / "driver/nvidia/version"))
    return found.group() if found else None


def _limit(which: int) -> Tuple[Optional[int], Optional[int]]:
    """The soft and the hard limit; None: unlimited."""
    soft, hard = (None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(which))
    return soft, hard


def _locks_all(proc: Path) -> bool:
    """Whether the limit on locked memory counts for nothing: with the capability, but not in a user namespace."""
    return _IPC_LOCK in _capabilities(proc) and _read(proc / "self/uid_map").split() == _ALL_IDS


def _capabilities(proc: Path) -> List[int]:
    """Those in effect."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", _read(proc / "self/status"), re.MULTILINE)
    mask = int(found.group(1), 16) if found else 0
    return [number for number in range(64) if mask >> number & 1]


def _resolved(name: str) -> Optional[str]:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return None


def _shm(path: Path) -> Optional[Dict[str, int]]:
    if not path.is_dir():
        return None
    usage = shutil.disk_usage(path)
    return {"total_bytes": usage.total, "free_bytes": usage.free}


def _disk(folder: Path) -> Dict[str, Any]:
    """Of the folder, or of the nearest one above it that exists."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    found = os.statvfs(existing)
    return {
        "path": str(existing),
        "writable": os.access(existing, os.W_OK | os.X_OK),
        "free_bytes": found.f_bavail * found.f_frsize,
        "free_files": found.f_favail if found.f_files else None,  # a file system may have no limit
    }


def _port_rules(folder: Path, *, binds_low: bool) -> Dict[str, Any]:
    first, last = (_read(folder / "ip_local_port_range").split() or ["32768", "60999"])[:2]
    unprivileged = _read(folder / "ip_unprivileged_port_start").strip() or "1024"
    return {
        "ephemeral": (int(first), int(last)),
        "reserved": _read(folder / "ip_local_reserved_ports").strip(),
        "lowest": 1 if binds_low else int(unprivileged),
    }


def _tool(name: str) -> Optional[str]:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # there is no such thing here
        return ""
