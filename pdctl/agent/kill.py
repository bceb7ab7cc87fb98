"""Ending processes for certain: find, SIGKILL, and look again until nothing is found."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Callable, Iterable

from pdctl.agent.procfs import Identity, Stat, alive, read_stat, scan, tagged, with_descendants

_POLL_S = 0.02  # /proc announces nothing


def kill_until_gone(find: Callable[[], list[Stat]], timeout_s: float) -> list[Stat]:
    """SIGKILL whatever ``find`` names until it names nothing; returns what still lives at the deadline. Blocks."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = find()
        if not found or time.monotonic() > deadline:
            return found
        for stat in found:
            send_signal(stat.identity, signal.SIGKILL)
        time.sleep(_POLL_S)


def send_signal(target: Identity, number: int) -> None:
    """Signal this very process; nothing happens when it has ended, even if its pid is in use again."""
    stat = read_stat(target.pid)
    if stat is None or stat.start != target.start:
        return
    # It ended in between: what the caller wants. It runs as another user: the caller finds that it still lives.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(target.pid, number)


def process_tree(run_id: str, process: str, known: Iterable[Identity]) -> list[Stat]:
    """What lives of one process: those ``known``, those that carry its tags, and everything below either."""
    stats = scan()
    roots = alive(stats, known) + tagged(stats, run_id, process)
    return [stat for stat in with_descendants(stats, roots) if stat.pid != os.getpid()]


def run_processes(run_id: str, known: Iterable[Identity] = ()) -> list[Stat]:
    """What lives of a whole run: those ``known``, those that carry its tag, and everything below either."""
    stats = scan()
    roots = alive(stats, known) + tagged(stats, run_id)
    return [stat for stat in with_descendants(stats, roots) if stat.pid != os.getpid()]


def own_descendants() -> list[Stat]:
    """Everything below the calling process (complete when it is a subreaper)."""
    return [stat for stat in with_descendants(scan(), [os.getpid()]) if stat.pid != os.getpid()]
