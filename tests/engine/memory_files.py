"""The KV pools that processes share, found through /proc and not through our books: they have no name anywhere else."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_LINK = "/memfd:pdctl-kv"
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)  # it ended while we looked, or is somebody else's


class MemoryFile(NamedTuple):
    """A pool's memory; the kernel keeps it while one process has it open or maps it."""

    device: int
    inode: int


def memory_files(pid: int) -> set[MemoryFile]:
    """The pools that a process has open or maps."""
    process = Path("/proc") / str(pid)
    try:
        return {*_opened(process), *_mapped(process)}
    except _GONE:
        return set()


def holders(files: Iterable[MemoryFile]) -> set[int]:
    """The processes, of all on this machine, that have one of these open or map it."""
    wanted = set(files)
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return {pid for pid in pids if memory_files(pid) & wanted}


def _opened(process: Path) -> Iterator[MemoryFile]:
    for link in (process / "fd").iterdir():
        try:
            if str(link.readlink()).startswith(_LINK):
                status = link.stat()
                yield MemoryFile(status.st_dev, status.st_ino)
        except FileNotFoundError:
            continue


def _mapped(process: Path) -> Iterator[MemoryFile]:
    for line in (process / "maps").read_text().splitlines():
        fields = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode, path
        if len(fields) == 6 and fields[5].startswith(_LINK):
            major, minor = (int(number, 16) for number in fields[3].split(":"))
            yield MemoryFile(os.makedev(major, minor), int(fields[4]))
