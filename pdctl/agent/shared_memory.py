"""Shared memory that processes left behind when they were killed: files that nobody has mapped any more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Set

from pdctl.agent.procfs import list_pids

FOLDER = Path("/dev/shm")
# As Python's multiprocessing, NCCL and torch name theirs: no engine names its own otherwise.
_PREFIXES = ("psm_", "sem.mp-", "nccl-", "torch_")


def left_in_shared_memory(since: float, folder: Path = FOLDER) -> List[str]:
    """This user's files that were made after ``since`` (seconds since the epoch) and that no process has in use.

    Whose they were cannot be known for certain: they are told of, not removed.
    """
    found = [path for path in _files(folder) if _is_ours(path, since)]
    if not found:
        return []
    in_use = _in_use(str(folder))
    return sorted(str(path) for path in found if str(path) not in in_use)


def _files(folder: Path) -> List[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    except OSError:  # there is none here
        return []


def _is_ours(path: Path, since: float) -> bool:
    try:
        info = path.lstat()
    except OSError:  # removed meanwhile
        return False
    return path.name.startswith(_PREFIXES) and info.st_uid == os.geteuid() and info.st_mtime >= since


def _in_use(folder: str) -> Set[str]:
    """The files of a folder that a process has mapped or open."""
    used: Set[str] = set()
    for pid in list_pids():
        used.update(_mapped(pid, folder))
        used.update(_opened(pid, folder))
    return used


def _mapped(pid: int, folder: str) -> Set[str]:
    try:
        with open(f"/proc/{pid}/maps", errors="replace") as file:
            lines = [line for line in file if folder in line]
    except OSError:  # it ended, or is another user's
        return set()
    return {line[line.index(folder) :].rstrip("\n") for line in lines}


def _opened(pid: int, folder: str) -> Set[str]:
    try:
        targets = [str(Path(entry.path).readlink()) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:  # likewise
        return set()
    return {target for target in targets if target.startswith(folder)}
