"""What the processes of a deployment hold: memory, open files, and how many they are."""

import os
from contextlib import suppress
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from tests.cluster.cluster import Cluster, Process

GROUPS = {"router": " -m pdctl.router ", "agents": " serve --dir ", "engines": " -m engine "}
YOUNG_S = 15.0  # a process that is younger may still load


class Held(NamedTuple):
    """Of one process, or the mean of several."""

    memory_mib: float
    files: float


class Usage(NamedTuple):
    """One look at all hosts."""

    at_s: float
    held: dict[str, Held]  # by group
    processes: int  # on all hosts, but for sshd and what serves connections


def look(cluster: Cluster, at_s: float) -> Usage:
    """Look at every process, through /proc."""
    ours = [process for process in cluster.processes() if process.host in {host.name for host in cluster}]
    held = {group: _mean(ours, words) for group, words in GROUPS.items()}
    return Usage(at_s, held, len(ours))


def print_usage(looks: list[Usage], rows: int = 10) -> None:
    """A table over time, and how the last third differs from the first; there must be a look at least."""
    columns = [f"{group} {figure}" for group in GROUPS for figure in ("MiB", "files")]
    print(f"| minute | {' | '.join(columns)} | processes |\n|---:|{'---:|' * (len(columns) + 1)}")
    step = -(-len(looks) // rows)
    for usage in looks[::step]:
        print(f"| {usage.at_s / 60:.1f} | {' | '.join(f'{figure:.1f}' for figure in _figures(usage))} |")
    third = max(1, len(looks) // 3)
    first, last = looks[:third], looks[-third:]
    print("medians of the first and of the last third:")
    for number, column in enumerate([*columns, "processes"]):
        print(f"  {column}: {_median(first, number):.1f} -> {_median(last, number):.1f}")


def _figures(usage: Usage) -> list[float]:
    return [*(figure for group in GROUPS for figure in usage.held[group]), usage.processes]


def _median(looks: list[Usage], column: int) -> float:
    return median(_figures(usage)[column] for usage in looks)


def _mean(processes: list[Process], words: str) -> Held:
    found: list[Held] = []
    for process in processes:
        if words in process.command:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                if _age_s(process.pid) > YOUNG_S:
                    found.append(_held(process.pid))
    if not found:
        return Held(0.0, 0.0)
    return Held(mean(held.memory_mib for held in found), mean(held.files for held in found))


def _held(pid: int) -> Held:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Held(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(list(Path(f"/proc/{pid}/fd").iterdir())))


def _age_s(pid: int) -> float:
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return uptime_s - started / os.sysconf("SC_CLK_TCK")
