"""Processes as /proc shows them: who lives, whose child it is, which run it belongs to, what it uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterable, NamedTuple, Optional

RUN_TAG = "PDCTL_RUN"  # in the environment of every process of a deployment, on every host
PROCESS_TAG = "PDCTL_PROCESS"  # the process's name in the plan; its children inherit it

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Identity(NamedTuple):
    """A process that cannot be taken for a later one with the same pid."""

    pid: int
    start: int  # clock ticks since boot


class Stat(NamedTuple):
    """One line of /proc/<pid>/stat."""

    pid: int
    ppid: int
    start: int
    cpu_ticks: int
    rss_pages: int

    @property
    def identity(self) -> Identity:
        """The pid with the start time."""
        return Identity(self.pid, self.start)


def scan() -> dict[int, Stat]:
    """Every process that lives now (zombies do not)."""
    return read_stats(list_pids())


def list_pids() -> list[int]:
    """Every pid, those of zombies too."""
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def read_stats(pids: Iterable[int]) -> dict[int, Stat]:
    """Those of the processes that live."""
    stats = (read_stat(pid) for pid in pids)
    return {stat.pid: stat for stat in stats if stat is not None}


def read_stat(pid: int) -> Optional[Stat]:
    """The process's line, or None when it does not live."""
    text = _read(pid, "stat")
    if not text:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold spaces and parentheses
    state, threads = fields[0], int(fields[17])
    if state in b"ZX" and threads <= 1:  # a main thread that ended leaves a Z beside its live threads
        return None
    ticks = int(fields[11]) + int(fields[12])
    return Stat(pid, int(fields[1]), int(fields[19]), ticks, int(fields[21]))


def with_descendants(stats: dict[int, Stat], roots: Iterable[int]) -> list[Stat]:
    """The live processes among ``roots`` and everything below them."""
    children: dict[int, list[int]] = {}
    for stat in stats.values():
        children.setdefault(stat.ppid, []).append(stat.pid)
    found: set[int] = set()
    pending = list(roots)
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += children.get(pid, [])
    return [stats[pid] for pid in found if pid in stats]


def tagged(stats: dict[int, Stat], run_id: str, process: Optional[str] = None) -> list[int]:
    """The pids whose environment carries the run (and the process's name)."""
    wanted = {f"{RUN_TAG}={run_id}".encode()}
    if process is not None:
        wanted.add(f"{PROCESS_TAG}={process}".encode())
    return [pid for pid in stats if wanted.issubset(_read(pid, "environ").split(b"\0"))]


def alive(stats: dict[int, Stat], identities: Iterable[Identity]) -> list[int]:
    """The pids of the identities that still live."""
    return [pid for pid, start in identities if pid in stats and stats[pid].start == start]


def command_line(pid: int) -> str:
    """The process's command line, or an empty string."""
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def boot_id() -> str:
    """Differs after each boot: pids and start times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _read(pid: int, name: str) -> bytes:
    """The file's content; nothing for a process that is gone or that belongs to another user."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
