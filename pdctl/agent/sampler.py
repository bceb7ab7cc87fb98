"""CPU and memory of whole process trees, from one pass over /proc."""

from __future__ import annotations

import os
import time
from typing import Dict, List, NamedTuple, Optional, Set

from pdctl.agent.procfs import (
    PAGE_BYTES,
    TICKS_PER_SECOND,
    Identity,
    Stat,
    alive,
    list_pids,
    read_stats,
    tagged,
    with_descendants,
)


class Usage(NamedTuple):
    """One process tree as it was sampled."""

    tree: Set[Identity]
    cpu_percent: float  # of one core, since the last sample
    memory_bytes: int  # resident


class TreeSampler:
    """Remembers each process's CPU time, to tell what was used since the last sample."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._ticks: Dict[Identity, int] = {}
        self._foreign: Set[int] = set()
        self._time: Optional[float] = None

    def sample(self, trees: Dict[str, Set[Identity]]) -> Dict[str, Usage]:
        """The usage of each tree by name, found from the processes last known of it. Blocks."""
        stats, now = self._scan(), time.monotonic()
        elapsed = now - self._time if self._time is not None else 0.0
        found = {name: self._members(stats, name, known) for name, known in trees.items()}
        usages = {name: self._usage(members, elapsed) for name, members in found.items()}
        self._ticks = {stat.identity: stat.cpu_ticks for members in found.values() for stat in members}
        self._time = now
        return usages

    def _scan(self) -> Dict[int, Stat]:
        """What may be below us. No other process ever gets there, so on a busy host the many others are read once.

        One whose chain of parents broke while we looked is not taken for another: it may be an orphan of ours.
        """
        pids = set(list_pids())
        self._foreign &= pids
        stats = read_stats(pids - self._foreign)
        tops = [stat.pid for stat in stats.values() if stat.ppid == 0 or stat.ppid in self._foreign]
        ours = {stat.pid for stat in with_descendants(stats, [os.getpid()])}
        self._foreign |= {stat.pid for stat in with_descendants(stats, tops)} - ours
        return stats

    def _members(self, stats: Dict[int, Stat], name: str, known: Set[Identity]) -> List[Stat]:
        """Orphans of a double fork have the agent as parent: their tag says whose they are."""
        adopted = {pid: stat for pid, stat in stats.items() if stat.ppid == os.getpid()}
        return with_descendants(stats, alive(stats, known) + tagged(adopted, self._run_id, name))

    def _usage(self, members: List[Stat], elapsed: float) -> Usage:
        ticks = sum(stat.cpu_ticks - self._ticks.get(stat.identity, 0) for stat in members)
        cpu_percent = 100.0 * ticks / TICKS_PER_SECOND / elapsed if elapsed else 0.0
        memory = sum(stat.rss_pages for stat in members) * PAGE_BYTES
        return Usage({stat.identity for stat in members}, cpu_percent, memory)
